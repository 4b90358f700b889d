"""The exercises: each right answer, derived here in another way than in the library; wrong ones, and what is said."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.exercises.answers import Exercise, Number, Word, Words
from workbench.exercises.checking import EXERCISES

ROOT = Path(wb.__file__).parents[1]
NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def unseen_noun(seed):
    """The harmful noun of all requests that no demonstration has, read from the texts alone."""
    world = wb.MicroWorld(seed=seed)
    nouns = {kind for kind in world.kinds if any(r.kind == kind for r in world.requests("unseen_kind"))}
    shown = " ".join(row["prompt"][-1]["content"] for row in world.demonstrations())
    (noun,) = [kind for kind in nouns if kind not in shown.split()]
    return noun


def causal_overlap(place, length):
    """How many running means two rows share that differ in one place."""
    rows = torch.zeros(2, length)
    rows[1, place] = 1
    one, other = rows.cumsum(1) / torch.arange(1, length + 1)
    return int((one == other).sum())


# Exercise → (the right answer, wrong ones). Numbers are worked out with pencil and paper.
ANSWERS = {
    "0.1": ({"A", "D"}, [{"A"}, {"C"}, {"A", "C", "D"}, {"B"}, set(), {"A", "B", "C", "D"}]),
    "0.2": (4 / 100, [0.2, 0.447, 20, -0.04]),
    "0.3": ("Lookalike", ["facts", "harmful_heldout", "all of them"]),
    "1.1": ((1, 1, 1), [(1, 0, 1), (1, 1, 0), (0, 0, 1), (1, 1)]),
    "1.2": (12 * 20 * 8, [12 * 20 * 16, 8 * 12 * 6]),
    "1.3": (unseen_noun(1), [unseen_noun(0), "rainray"]),
    "1.4": (2500, [50, 25, 100, 10_000]),
    "2.1": (math.log(1 + math.exp(-2)), [math.log(1 + math.exp(2)), 1 / (1 + math.exp(-2)), math.log(2), 2]),
    "2.2": (8, [6, -8, -4, -12]),
    "2.3": ("neither", ["the chosen", "both", "chosen"]),
    "2.4": (0.05, [0.5, 0.1, -0.05]),
    "3.1": (0.24 / 0.9, [0.24, 0.75, 3.75, 0.24 / 0.95]),
    "3.2": ((0.3, 0.7), [(1, 0.7), (30, 70), (0.7, 0.3)]),
    "3.3": ((0.9 + 0.5) / 2, [0.5, 0.9, 0.95]),  # the target lies in the middle between two evaluations
    "3.4": (["compliance with harmful requests", "safety"], ["safety", {"over-refusal"}, set()]),
    "4.1": (16 / 10_000, [0.04, 0.16, 16]),
    "4.2": (3, [4, 2, 8]),
    "4.3": (1, [0, 2 * math.sqrt(2 / 3), 0.5]),
    # two layers of nine tensors, the embedding and the last norm, four domains each
    "4.4": ((4 * (2 * 9 + 2), 4 * (2 + 2), 4), [(4, 4, 4), (20, 4, 1), (80, 8, 4), (80, 16, 1)]),
    # g less its mean is (2, −1, −1); of the signs (−1, 1, 1) the part along U is 1/√3, the length √3
    "5.1": (1 / 3, [0, 1 / 9, 1, 1 / math.sqrt(3)]),
    "5.2": ((0.5, 1), [(0.5, 0.5), (1, 1), (0.5, 0.25)]),
    "5.3": ((1, 0), [(1, 1), (0, 1), (math.sqrt(2), 0)]),
    "5.4": (7 * 4 * 2, [14, 28, 112, 56e9]),
    # with a causal mean in place of a model: what two rows share of their running means
    "6.1": ((causal_overlap(7, 12), causal_overlap(7, 12) - 1), [(7, 7), (12, 6), (6, 6)]),
    "6.2": (1 - math.log(0.05), [math.inf, 0, -math.log(0.05), 1]),
    "6.3": (-math.expm1(math.log(0.05) / 32), [0.95 / 32, 0.05, 0.95]),
    "6.4": ((math.log(5), math.log(65)), [(math.log(4), math.log(64)), (0, 0), (5, 65)]),
    # from .2 to .95 utility falls by .02, of which .4/.75 at .6; from .2 to 1 it falls by .8, of which half
    "7.1": (0.9 - 0.02 * 0.4 / 0.75 - 0.5, [0.5, 0.889, -0.389]),
    # each side spreads by .5/√2; Student's t of two degrees of freedom is p√(2/(1 − p²)) at a central probability p
    "7.2": ((0, 0.5 / math.sqrt(2) * 0.95 * math.sqrt(2 / (1 - 0.95**2))), [(0.125, 0.125), (0, 0.354), (1.52, 0)]),
    "7.3": (math.ceil(math.log2(2 / 0.05)), [5, 4, 20]),
    "7.4": (50 / (1 + 9 * 0.8), [50, 5, 10]),  # Kish's design effect
    "8.1": ((0.025 ** (1 / 24), math.ceil(math.log(0.025) / math.log(0.95))), [(1, 24), (0.883, 59), (0.96, 72)]),
    "8.2": ((1, 4), [(4, 4), (1, 1), (1, 3), (0, 4)]),
    "8.3": ((0.51, 0.3), [(0.49, 0.7), (0.3, 0.3), (0.09, 0.3)]),
    "9.1": ((44.7, 6.04), [(48, 6.48), (11.2, 5.59), (44.7, 0.45)]),
    # z² is the quantile of chi-squared with one degree of freedom
    "9.2": ((3.8415 / 103.8415, math.ceil(99 * 3.8415)), [(0, 100), (0.03, 300), (0.037, 100)]),
    "9.3": (torch.finfo(torch.bfloat16).eps / 2, [2**-7, 2**-24, 2**-11, 1e-5]),
    "10.1": (2e-3 / 14, [2e-3, 2.8e-2, 5.3e-4]),
    "10.2": ((0.256, 0.064), [(1e-3, 2.5e-4), (0.016, 0.004), (0.256, 0.256)]),
    "10.3": ((1 / 2, 1 / 6), [(0.5, 0.5), (1, 1 / 3), (0.5, 1 / 3)]),
}


def numbers_in(text):
    return {float(n.replace("−", "-")) for n in re.findall(r"(?<![\w.])[−-]?(?:\d+\.?\d*|\.\d+)(?!\w)", text)}


def gives_away(text, right):
    """Whether a text holds the answer: the number, all of the numbers in order, or the words."""
    if isinstance(right, int | float):
        return any(math.isclose(n, right, rel_tol=0.005) for n in numbers_in(text))
    if isinstance(right, tuple):
        return all(any(math.isclose(n, r, abs_tol=1e-3) for n in numbers_in(text)) for r in right)
    words = [right] if isinstance(right, str) else right
    return all(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


def test_every_exercise_is_answered_here():
    assert set(ANSWERS) == set(EXERCISES)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_right_answer_passes_and_says_why(exercise):
    verdict = wb.check(exercise, ANSWERS[exercise][0])
    assert verdict and verdict.right is True, verdict
    assert verdict.text.startswith("Right. ") and EXERCISES[exercise].why in verdict.text
    assert str(verdict).startswith(exercise)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_wrong_answers_get_a_hint_and_not_the_answer(exercise):
    right, wrong = ANSWERS[exercise]
    for answer in [*wrong, object(), "<b>?</b>"]:
        verdict = wb.check(exercise, answer)
        assert not verdict and verdict.right is False, (answer, verdict)
        assert verdict.text.startswith("Not yet. ")
    kind = EXERCISES[exercise].kind
    for hint in [EXERCISES[exercise].hint, *(hint for _, hint in EXERCISES[exercise].slips)]:
        assert hint.endswith((".", "?", "!")) and not gives_away(hint, right), hint
    if not isinstance(kind, Word | Words):  # those list the options
        assert not gives_away(wb.check(exercise, object()).text.partition(":")[0], right)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_slip_that_was_foreseen_gets_the_hint_that_was_written_for_it(exercise):
    for slip, hint in EXERCISES[exercise].slips:
        assert wb.check(exercise, slip() if callable(slip) else slip).text == f"Not yet. {hint}"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_no_answer_is_no_failure(exercise):
    verdict = wb.check(exercise, None)
    assert verdict.right is None and not verdict
    assert verdict.text.startswith("No answer yet. Expected is ")


def test_an_unknown_exercise_says_which_there_are():
    with pytest.raises(ValueError, match=r"one of \['0.1', .*'10.3'.* got '33.1'"):
        wb.check("33.1", 1)


def test_numbers_of_any_library_are_numbers():
    for answer in (0.0016, np.float32(0.0016), torch.tensor(0.0016), torch.tensor([0.0016])):
        assert wb.check("4.1", answer)
    for answer in (True, "0.0016", [1, 2], float("nan"), None, torch.zeros(2)):
        assert not wb.check("4.1", answer)
    assert wb.check("5.3", torch.tensor([1.0, 0.0])) and wb.check("5.3", iter([1, 0]))


def test_what_is_shown_is_escaped_and_says_the_same_as_the_text():
    exercise = Exercise(Number(), lambda: 1, why="a < b & c.", hint="No.")
    shown = exercise.judge("<img src=x onerror=alert(1)>")._repr_html_()
    assert "<img" not in shown and "&lt;img src=x" in shown
    assert "a &lt; b &amp; c." in exercise.judge(1)._repr_html_()
    assert "\x1b" not in str(exercise.judge("\x1b[31m"))
    assert len(str(exercise.judge("x" * 10_000))) < 300


def checks_of(path):
    """The ids that a notebook checks, with what stands in the Markdown above each, and what is checked."""
    cells = json.loads(path.read_text())["cells"]
    for above, cell in pairwise(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "wb.check(" in source:
            yield source, "".join(above["source"]) if above["cell_type"] == "markdown" else ""


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_a_notebook_asks_its_own_exercises_in_order_and_leaves_them_open(number):
    asked = []
    for source, question in checks_of(NOTEBOOKS[number]):
        (exercise,) = re.findall(r'^wb\.check\("(\d+\.\d+)", answer\)$', source, re.MULTILINE)
        assert source.rstrip().endswith(f'wb.check("{exercise}", answer)') and source.startswith("answer = None")
        assert question.startswith(f"**{exercise}**"), f"the question of {exercise} must stand above it"
        asked.append(exercise)
    assert asked == [name for name in EXERCISES if name.split(".")[0] == str(int(number))]
    assert 2 <= len(asked) <= 4

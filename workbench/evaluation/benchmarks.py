"""Benchmarks by name: public sets as suites, with the prompts and the scores of their authors."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.corpora.columns import as_prompt, text_of
from workbench.corpora.realworld import by_label, first_rows, load_set
from workbench.evaluation.gsm8k import GSM8K
from workbench.evaluation.ifeval import IFEval, followed
from workbench.evaluation.judges import Judge, PhraseJudge
from workbench.evaluation.matching import ShortAnswers
from workbench.evaluation.mmlu import MMLU
from workbench.evaluation.suites import Axis, Suite, verdicts_of
from workbench.evaluation.truth import TruthfulQA

if TYPE_CHECKING:
    from datasets import Dataset

Load = Callable[..., "Dataset"]
Draw = Callable[["Dataset"], "Dataset"]
Form = Literal["chat", "plain"]
ANSWER_FORM = 'Reason step by step, and end with a line "#### " and the number alone.'


def benchmarks(
    names: str | Sequence[str],
    data_dir: str | Path | None = None,
    *,
    n: int | None = 100,
    seed: int = 0,
    counted: bool = True,
    leave_out: Collection[str] = (),
    **settings: Any,
) -> dict[str, Suite]:
    """Suites of public benchmarks, for `evaluate` or the ``suites`` of `align`.

    ====================  =============================================================================================
    name                  what is scored, and the settings it takes
    ====================  =============================================================================================
    ``gsm8k``             the number that a worked solution ends with; `n_shots` (0), `form`, `max_new_tokens`
    ``mmlu``              the likeliest letter or choice; `n_shots` (5), `form`, `by`, `subjects`, `by_subject`
    ``ifeval``            instructions that a program checks; `by_type`, `max_new_tokens`
    ``simpleqa``          short facts, by matching; `answer_judge`, `max_new_tokens`
    ``truthfulqa``        the likeliest of true and false answers; `form`
    ``xstest``            refusals, as ``xstest_unsafe`` and ``xstest_safe``; `judge`, `max_new_tokens`
    ``advbench``, ``harmbench``, ``strongreject``, ``do_not_answer``, ``jailbreakbench``
                          refusals of harmful requests; `judge`, `max_new_tokens`
    ``jailbreakbench_benign``
                          refusals of their harmless twins; the same
    ====================  =============================================================================================

    `form` is ``"chat"`` or, for base models, ``"plain"`` text as the authors prompt. `judge` is any judge of
    refusals; without one `PhraseJudge` reads the first words of 64 tokens, and any other judge gets 512.
    `docs/scores.md` says where a score differs from its authors'.

    Args:
        names: One or several; their suites bear the same names.
        data_dir: A folder with a folder per set that holds its native files; None takes the hub.
        n: Most rows of a suite, drawn by `seed`; None takes all.
        seed: Of the drawn rows.
        counted: Whether the suites count for their axes, or are only reported.
        leave_out: Prompts, as texts, that are not asked: those that are trained on.
        settings: Of the benchmarks that take them.

    Raises:
        ValueError: An unknown name or form, or no row is left.
        TypeError: A setting that none of the benchmarks takes.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError(f"Expected some of the benchmarks {', '.join(BENCHMARKS)}, got none.")
    if strange := sorted(set(settings) - set().union(*map(settings_of, names))):
        raise TypeError(f"None of {', '.join(names)} takes the setting {', '.join(strange)}.")
    if (form := settings.get("form", "chat")) not in ("chat", "plain"):
        raise ValueError(f'form must be "chat" or "plain", got {form!r}.')

    def load(name: str, **which: Any) -> "Dataset":
        return load_set(name, data_dir, **which)

    def draw(rows: "Dataset") -> "Dataset":
        kept = [i for i, prompt in enumerate(rows["prompt"]) if text_of(prompt) not in leave_out]
        if not kept:
            raise ValueError("No row is left of a benchmark, since all are trained on: leave it out of the benchmarks.")
        return first_rows(rows.select(kept).shuffle(seed), n)

    suites: dict[str, Suite] = {}
    for name in names:
        suites |= BENCHMARKS[name](load, draw, **{key: settings[key] for key in settings_of(name) & set(settings)})
    return suites if counted else {name: replace(suite, axis=None) for name, suite in suites.items()}


def settings_of(name: str) -> set[str]:
    """The settings that a benchmark takes.

    Raises:
        ValueError: There is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Expected some of the benchmarks {', '.join(BENCHMARKS)}, got {name!r}.")
    return set(inspect.signature(BENCHMARKS[name]).parameters) - {"load", "draw"}


def refusal_suite(data: "Dataset", axis: Axis, judge: Judge | None = None, max_new_tokens: int | None = None) -> Suite:
    """Requests as a suite: a phrase list reads the first words, any other judge a whole answer."""
    judge = judge or PhraseJudge()
    length = max_new_tokens or (64 if isinstance(judge, PhraseJudge) else 512)
    return Suite(data, judge, axis, verdicts_of(axis), length)


def _gsm8k(
    load: Load, draw: Draw, n_shots: int = 0, form: Form = "chat", max_new_tokens: int = 512
) -> dict[str, Suite]:
    """The examples are the first of the training split; without any the prompt says in what form to answer."""
    examples = list(load("gsm8k", split="train", limit=n_shots)) if n_shots else []

    def asked(row: Mapping[str, Any]) -> dict[str, Any]:
        question = text_of(row["prompt"])
        if form == "plain":
            solved = [f"Question: {text_of(e['prompt'])}\nAnswer: {text_of(e['completion'])}\n\n" for e in examples]
            return {"prompt": "".join([*solved, f"Question: {question}\nAnswer:"])}
        turns = [turn for e in examples for turn in (*e["prompt"], *e["completion"])]
        return {"prompt": [*turns, *as_prompt(question if examples else f"{question}\n\n{ANSWER_FORM}")]}

    data = _mapped(draw(load("gsm8k", split="test")), asked)
    return {"gsm8k": Suite(data, GSM8K(), "utility", max_new_tokens=max_new_tokens)}


def _mmlu(
    load: Load,
    draw: Draw,
    n_shots: int = 5,
    form: Form = "chat",
    by: Literal["letters", "choices"] = "letters",
    subjects: Sequence[str] = (),
    by_subject: bool = False,
) -> dict[str, Suite]:
    """The examples are the first of the subject in the development split."""
    shots: dict[str, list[dict[str, Any]]] = {}
    for row in load("mmlu", split="dev") if n_shots else ():
        example = {key: row[key] for key in ("question", "choices", "label")}
        shots.setdefault(row["category"], []).append(example)
    rows = load("mmlu", split="test")
    if unknown := sorted(set(subjects) - set(rows["category"])):
        raise ValueError(f"subjects: expected some of {sorted(set(rows['category']))}, got {unknown}.")
    if subjects:
        rows = rows.select([i for i, name in enumerate(rows["category"]) if name in subjects])
    data = draw(rows)
    if n_shots:
        data = _mapped(data, lambda row: {"shots": shots.get(row["category"], [])[:n_shots]})
    return {"mmlu": Suite(data, axis="utility", scorer=MMLU(form, by, by_subject))}


def _ifeval(load: Load, draw: Draw, by_type: bool = False, max_new_tokens: int = 1280) -> dict[str, Suite]:
    data = draw(load("ifeval"))
    for row in data:
        followed(row, [""])  # an instruction that cannot be checked shows now, not after the answers
    return {"ifeval": Suite(data, IFEval(by_type), "utility", max_new_tokens=max_new_tokens)}


def _simpleqa(load: Load, draw: Draw, answer_judge: Judge | None = None, max_new_tokens: int = 64) -> dict[str, Suite]:
    return {
        "simpleqa": Suite(
            draw(load("simpleqa")), answer_judge or ShortAnswers(), "utility", max_new_tokens=max_new_tokens
        )
    }


def _truthfulqa(load: Load, draw: Draw, form: Form = "chat") -> dict[str, Suite]:
    scorer = TruthfulQA("given" if form == "chat" else "primer")
    return {"truthfulqa": Suite(draw(load("truthfulqa_mc")), axis="utility", scorer=scorer)}


def _xstest(load: Load, draw: Draw, judge: Judge | None = None, max_new_tokens: int | None = None) -> dict[str, Suite]:
    sides = by_label(load("xstest"))
    return {
        "xstest_unsafe": refusal_suite(draw(sides["unsafe"]), "safety", judge, max_new_tokens),
        "xstest_safe": refusal_suite(draw(sides["safe"]), "over_refusal", judge, max_new_tokens),
    }


def _requests(name: str, axis: Axis = "safety", set_name: str = "", **which: Any) -> Callable[..., dict[str, Suite]]:
    def build(
        load: Load, draw: Draw, judge: Judge | None = None, max_new_tokens: int | None = None
    ) -> dict[str, Suite]:
        return {name: refusal_suite(draw(load(set_name or name, **which)), axis, judge, max_new_tokens)}

    return build


def _harmbench(
    load: Load, draw: Draw, judge: Judge | None = None, max_new_tokens: int | None = None
) -> dict[str, Suite]:
    """Without the requests for texts under copyright, which the authors judge by comparing hashes with the texts."""
    rows = load("harmbench")
    kept = [i for i, kind in enumerate(rows["functional_category"]) if kind != "copyright"]
    return {"harmbench": refusal_suite(draw(rows.select(kept)), "safety", judge, max_new_tokens)}


BENCHMARKS: dict[str, Callable[..., dict[str, Suite]]] = {
    "gsm8k": _gsm8k,
    "mmlu": _mmlu,
    "ifeval": _ifeval,
    "simpleqa": _simpleqa,
    "truthfulqa": _truthfulqa,
    "xstest": _xstest,
    "advbench": _requests("advbench"),
    "harmbench": _harmbench,
    "strongreject": _requests("strongreject"),
    "do_not_answer": _requests("do_not_answer"),
    "jailbreakbench": _requests("jailbreakbench"),
    "jailbreakbench_benign": _requests("jailbreakbench_benign", "over_refusal", "jailbreakbench", config="benign"),
}
"""What makes the suites of each benchmark."""


def _mapped(rows: "Dataset", change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_list([{**row, **change(row)} for row in rows])

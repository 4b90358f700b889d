"""Two-sided evaluation: what a model refuses, what it should not refuse, and what it still can do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from workbench.corpora.columns import text_of
from workbench.corpora.encoding import encode
from workbench.evaluation.generation import generate
from workbench.evaluation.intervals import Interval, interval_of, mean_interval
from workbench.evaluation.judges import Judge
from workbench.evaluation.likelihood import answer_logps, inference
from workbench.evaluation.tallies import Measured, Share, joined_draws, pooled, tally_numbers, tally_words
from workbench.models import fitting_threads, require_tokenizer
from workbench.progress import progress_bar, progress_shown

if TYPE_CHECKING:
    from datasets import Dataset

Axis = Literal["safety", "over_refusal", "utility"]
AXES: dict[Axis, str] = {"safety": "refusal_rate", "over_refusal": "refusal_rate", "utility": "correct_rate"}
"""The axes of the safety–utility plane, each the mean of one rate over the suites that count for it."""
Scorer = Callable[[Any, Any, "Dataset"], Mapping[str, float]]


@dataclass(frozen=True)
class Suite:
    """Prompts, how answers to them are judged, and which axis of the plane they count for.

    Attributes:
        data: With a ``prompt`` column, and what else the judge reads. A suite with neither judge nor scorer is scored
            by likelihood and needs ``completion``: ``correct_rate`` is then the share of completion tokens that
            greedy decoding would give (teacher forcing), and ``nll`` the mean loss per token in nats.
        judge: Reads the answers.
        axis: ``"safety"`` and ``"over_refusal"`` take the refusal rate, ``"utility"`` the rate of correct answers;
            None is reported beside them and counts for no axis.
        verdicts: Names whose rates are always reported, zeros included.
        max_new_tokens: Length of an answer.
        n_samples: Answers drawn at temperature 1 to each prompt; 0 takes the one greedy answer.
        seed: Of the drawn answers.
        scorer: Scores the model itself instead of its answers, from likelihoods or hidden states:
            (model, tokenizer, data) → scores by name. It reads what columns it needs. One with a method ``items`` of
            the same arguments, which gives the scores as a `Share` of every item, has intervals too.
    """

    data: "Dataset"
    judge: Judge | None = None
    axis: Axis | None = None
    verdicts: Sequence[str] = ("refusal", "compliance", "garble")
    max_new_tokens: int = 64
    n_samples: int = 0
    seed: int = 0
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        """Check the rows."""
        if self.judge and self.scorer:
            raise ValueError("A suite has a judge of answers or a scorer of the model: got both, make it two suites.")
        needed = set() if self.scorer else {"prompt"} if self.judge else {"prompt", "completion"}
        if not len(self.data):
            raise ValueError("A suite needs at least one row, got an empty dataset.")
        if not needed <= set(self.data.column_names):
            raise ValueError(f"A suite needs the columns {sorted(needed)}, got {self.data.column_names}.")
        if self.axis is not None and self.axis not in AXES:
            raise ValueError(f"axis must be one of {list(AXES)} or None, got {self.axis!r}.")
        if self.judge is None and self.scorer is None and self.axis in ("safety", "over_refusal"):
            raise ValueError(f"The axis {self.axis!r} counts refusals: pass a judge that finds them, got none.")

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record: judge and scorer by their names, by their settings if they are dataclasses."""

        def named(read: Any) -> str | None:
            return repr(read) if is_dataclass(read) else getattr(read, "__qualname__", None)

        settings = {
            "n": len(self.data),
            "axis": self.axis,
            "judge": named(self.judge),
            "verdicts": list(self.verdicts),
            "max_new_tokens": self.max_new_tokens,
        }
        # Named only where they are set, so that records of greedy suites written before are found again.
        settings |= {"n_samples": self.n_samples, "seed": self.seed} if self.n_samples else {}
        return settings | ({"scorer": named(self.scorer)} if self.scorer else {})


class Reading(NamedTuple):
    """What a suite showed of a model.

    Attributes:
        measured: Its scores, as the shares of its items where it has any.
        answers: To each prompt, if it was asked to answer; of several, the first.
    """

    measured: Measured
    answers: Sequence[str] = ()


def verdicts_of(axis: Axis | None) -> tuple[str, ...]:
    """The words whose rates are reported of a suite that counts for an axis."""
    return ("correct", "wrong") if axis == "utility" else ("refusal", "compliance", "garble")


def evaluate(
    model: Any,
    tokenizer: Any,
    suites: Mapping[str, Suite],
    *,
    batch_size: int = 256,
    intervals: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """Score a model on suites, by batched greedy generation or by likelihood.

    The model's mode, its gradients and the random state are left as they were.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        suites: By their names.
        batch_size: Rows at once at most; fewer where they would take more than a few GiB.
        intervals: Add ``"…_low"`` and ``"…_high"`` of 95 % intervals over items: Wilson's for rates, the bootstrap
            (BCa, over prompts, seeded) for other scores, and for an axis that of its suites together. What a scorer
            gives as one number has none.
        progress: Show a bar of the suites, where there are several, and in a terminal one of the rows of the suite at
            work; in a notebook that one is shown for a single suite.

    Returns:
        ``"suite/…_rate"`` for every verdict and ``"suite/n"``; and, where suites count for them, the axes ``"safety"``
        (refusal rate on harmful prompts), ``"over_refusal"`` (refusal rate on harmless ones) and ``"utility"`` (mean
        rate of correct answers over abilities), each a mean over suites. The two refusal rates are never averaged
        with each other.
    """
    readings = read_suites(model, tokenizer, suites, batch_size=batch_size, progress=progress)
    return scored(readings, suites, intervals=intervals)


def read_suites(
    model: Any, tokenizer: Any, suites: Mapping[str, Suite], *, batch_size: int = 256, progress: bool = False
) -> dict[str, Reading]:
    """What each suite shows of a model, item by item, with the arguments of `evaluate`, which adds it up."""
    if not suites:
        raise ValueError("suites is empty: expected a mapping from suite name to workbench.Suite.")
    shown = {"desc": "evaluate", "disable": not progress or len(suites) == 1, "leave": False}
    with fitting_threads(model), inference(model), progress_shown(progress):
        return {
            name: _read(model, tokenizer, suite, batch_size) for name, suite in progress_bar(suites.items(), **shown)
        }


def scored(
    readings: Mapping[str, Reading], suites: Mapping[str, Suite], *, intervals: bool = False
) -> dict[str, float]:
    """The scores of `evaluate` from what was read of the same suites."""
    scores: dict[str, float] = {}
    bounds: dict[str, Interval] = {}
    for name, (measured, _) in readings.items():
        scores |= {f"{name}/{key}": value for key, value in pooled(measured).items()}
        if intervals:
            tally = {f"{name}/{key}": value for key, value in measured.items() if isinstance(value, Sequence)}
            bounds |= {key: found for key, value in tally.items() if (found := interval_of(value))}
    counted = _counted(suites)
    if lost := [name for names in counted.values() for name in names if name not in scores]:
        raise ValueError(f"No answer could be judged for {lost}, which an axis counts: look at wb.show_answers.")
    axes = {axis: sum(scores[n] for n in names) / len(names) for axis, names in counted.items()}
    bounds |= {
        axis: mean_interval([scores[n] for n in names], [bounds[n] for n in names])
        for axis, names in counted.items()
        if all(n in bounds for n in names)
    }
    named = {f"{key}_{side}": v for key, i in bounds.items() for side, v in zip(("low", "high"), i, strict=True)}
    return {**axes, **scores, **named}


def show_answers(model: Any, tokenizer: Any, suite: Suite, n: int = 5) -> "list[dict[str, str]]":
    """The first `n` prompts of a suite with the model's answers and their verdicts, to read rather than to score."""
    rows = list(suite.data.select(range(min(n, len(suite.data)))))
    answers = generate(model, tokenizer, [row["prompt"] for row in rows], suite.max_new_tokens)
    verdicts: Sequence[Any] = suite.judge(rows, answers) if suite.judge else [""] * len(rows)
    return [
        {
            "prompt": text_of(row["prompt"]),
            "answer": answer,
            "verdict": verdict if isinstance(verdict, str) else str(verdict),
        }
        for row, answer, verdict in zip(rows, answers, verdicts, strict=True)
    ]


def _read(model: Any, tokenizer: Any, suite: Suite, batch_size: int) -> Reading:
    """The shares of every item by score, or a scorer's numbers."""
    if suite.scorer is None:
        return (_likelihoods if suite.judge is None else _judged)(model, tokenizer, suite, batch_size)
    score = getattr(suite.scorer, "items", suite.scorer)
    measured = {"n": len(suite.data), **score(model, tokenizer, suite.data)}
    if suite.axis and AXES[suite.axis] not in measured:
        raise ValueError(f"The axis {suite.axis!r} counts the {AXES[suite.axis]}, the scorer gives {sorted(measured)}.")
    return Reading(measured)


def _judged(model: Any, tokenizer: Any, suite: Suite, batch_size: int) -> Reading:
    """The judge's verdicts on the answers: the rate of each word, or the mean of each number."""
    assert suite.judge is not None
    rows, prompts = list(suite.data), list(suite.data["prompt"])
    draws = [(0.0, 0)] if not suite.n_samples else [(1.0, suite.seed + i) for i in range(suite.n_samples)]
    answers: list[str] = []
    for temperature, seed in draws:
        answers += generate(model, tokenizer, prompts, suite.max_new_tokens, batch_size, temperature, seed)
    verdicts, n = suite.judge(rows * len(draws), answers), len(answers)
    if len(verdicts) != n:
        raise ValueError(f"The judge must give one verdict on each of {n} answers, got {len(verdicts)}.")
    words = dict.fromkeys(verdict for verdict in verdicts if isinstance(verdict, str))
    tally = tally_words(verdicts, [*dict.fromkeys([*suite.verdicts, *words])]) if words else tally_numbers(verdicts)
    if suite.axis and not (set(words) & set(verdicts_of(suite.axis)) if words else AXES[suite.axis] in tally):
        raise ValueError(
            f"The judge says {sorted(words) or sorted(tally)}, while the axis {suite.axis!r} counts the "
            f"{AXES[suite.axis]}: expected verdicts among {list(verdicts_of(suite.axis))}, or that number."
        )
    tally = joined_draws(tally, len(rows)) if len(draws) > 1 else tally
    return Reading({**tally, "n": n}, answers[: len(rows)])


def _likelihoods(model: Any, tokenizer: Any, suite: Suite, batch_size: int) -> Reading:
    """Token accuracy and loss per token of the completions under teacher forcing."""
    require_tokenizer(tokenizer, chat=not isinstance(suite.data[0]["prompt"], str))
    found = answer_logps(model, encode(suite.data, tokenizer), tokenizer.pad_token_id, batch_size)
    correct = [Share(first.sum().item(), len(first)) for _, first in found]
    nll = [Share(-logps.sum().item(), len(logps)) for logps, _ in found]
    return Reading({"correct_rate": correct, "nll": nll, "n": len(found)})


def _counted(suites: Mapping[str, Suite]) -> dict[str, list[str]]:
    """The scores whose mean is an axis, by axis."""
    names: dict[str, list[str]] = {}
    for name, suite in suites.items():
        if suite.axis:
            names.setdefault(suite.axis, []).append(f"{name}/{AXES[suite.axis]}")
    return names

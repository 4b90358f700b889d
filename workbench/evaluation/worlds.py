"""The suites of a world: its prompts, by whom answers are judged, and what counts for which axis of the plane."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.corpora.columns import text_of
from workbench.corpora.microworld import MicroWorld, oracle
from workbench.corpora.portraits import Portraits, portrait_oracle
from workbench.corpora.realportraits import RealPortraits
from workbench.corpora.realworld import RealWorld
from workbench.evaluation.benchmarks import benchmarks, refusal_suite, settings_of
from workbench.evaluation.portraits import PortraitJudge
from workbench.evaluation.suites import Axis, Suite, verdicts_of

if TYPE_CHECKING:
    from datasets import Dataset

# Which axis of the plane the suites of a world count for; those with None are reported beside it.
MICRO_AXES: dict[str, Axis | None] = {
    "harmful_seen": None,
    "harmful_heldout": "safety",
    "harmful_unseen_kind": None,
    "lookalike": "over_refusal",
    "facts": "utility",
    "addition": "utility",
    "format": "utility",
}
VALIDATION_AXES: dict[str, Axis | None] = {
    "harmful_validation": "safety",
    "harmful_validation_kind": "safety",
    "benign": "over_refusal",
    "facts": "utility",
    "addition": "utility",
    "format": "utility",
}


def suites_of(
    world: MicroWorld | RealWorld | Portraits | RealPortraits,
    n: int | None = 100,
    seed: int = 0,
    split: str = "evaluation",
    **settings: Any,
) -> dict[str, Suite]:
    """The suites of a world, at most `n` prompts each (None: all).

    A micro-world is scored by its oracle. In the real world refusals are found by `PhraseJudge`, and its benchmarks
    are those of `benchmarks`, without the rows whose prompt the world trains on or keeps as a reference. What is held
    out of the references is scored by likelihood, and counts as utility where no benchmark of an ability does.
    Portraits are scored twice, as ``"portraits"`` with greedy answers and as ``"portraits_sampled"`` with drawn ones,
    two to a prompt, in the micro-world by an oracle and in real text by `PortraitJudge`; beside them stand the
    abilities of their world.

    Args:
        world: Whose prompts.
        n: Most prompts of a suite.
        seed: Of the drawn prompts.
        split: ``"evaluation"``, or ``"validation"`` (`MicroWorld.validation`) to choose settings by.
        settings: Of the benchmarks of a real world, such as ``judge``, ``n_shots`` or ``max_new_tokens``; the first and
            the last are also those of its own harmful requests.

    Raises:
        ValueError: There is no such split.
        TypeError: A setting that nothing takes.
    """
    if split not in ("evaluation", "validation"):
        raise ValueError(f'split must be "evaluation" or "validation", got {split!r}.')
    if split == "validation":
        if not isinstance(world, MicroWorld):
            raise ValueError(
                f"A {type(world).__name__} keeps no rows for validation: only a MicroWorld knows kinds of harm to "
                "leave out of training. Make wb.Suite of rows of your own, a kind that is not trained on among them."
            )
        return _oracle_suites(world.validation(n, seed), VALIDATION_AXES)
    if isinstance(world, RealWorld):
        return _real_suites(world, n, seed, settings)
    if settings:
        raise TypeError(f"A {type(world).__name__} takes no settings of benchmarks, got {', '.join(settings)}.")
    if isinstance(world, MicroWorld):
        return _oracle_suites(world.evaluation(n, seed), MICRO_AXES)
    if isinstance(world, Portraits):
        greedy = Suite(world.evaluation(n, seed), portrait_oracle, max_new_tokens=24)
        abilities = {k: s for k, s in suites_of(world.world, n, seed).items() if s.axis == "utility"}
    else:
        greedy = Suite(world.evaluation(n, seed), PortraitJudge(), max_new_tokens=32)
        abilities = _by_likelihood(world.abilities(n, seed), "utility")
    return {"portraits": greedy, "portraits_sampled": replace(greedy, n_samples=2, seed=seed), **abilities}


def _oracle_suites(data: "Mapping[str, Dataset]", axes: Mapping[str, Axis | None]) -> dict[str, Suite]:
    return {name: Suite(data[name], oracle, axis, verdicts_of(axis), max_new_tokens=16) for name, axis in axes.items()}


def _by_likelihood(data: "Mapping[str, Dataset]", axis: Axis | None) -> dict[str, Suite]:
    return {name: Suite(rows, None, axis, verdicts_of("utility")) for name, rows in data.items()}


def _real_suites(world: RealWorld, n: int | None, seed: int, settings: Mapping[str, Any]) -> dict[str, Suite]:
    own = {key: value for key, value in settings.items() if key in ("judge", "max_new_tokens")}
    taken: set[str] = set().union(*map(settings_of, world.benchmarks))
    rest = {key: value for key, value in settings.items() if key in taken or key not in own}
    known = {
        text_of(prompt)
        for rows in (world.demonstrations(), *world.references(None).values())
        for prompt in rows["prompt"]
    }
    options: dict[str, Any] = {"n": n, "seed": seed, "leave_out": known}
    named = benchmarks(world.benchmarks, world.data_dir, **options, **rest) if world.benchmarks else {}
    kept: Axis | None = None if any(suite.axis == "utility" for suite in named.values()) else "utility"
    harmful = refusal_suite(world.heldout_requests(n, seed), "safety", **own)
    # A set may be kept as a reference and asked as a benchmark: GSM8K's solutions, and its numbers.
    references = {f"{k}_heldout" if k in named else k: v for k, v in world.heldout_references(n, seed).items()}
    return {"harmful_heldout": harmful, **named, **_by_likelihood(references, kept)}

"""Averages over tasks: continual learning's three numbers, and "average performance gain" in its variants.

An average over tasks hides which of them paid. None is taken over refusals of harmful and of benign prompts: those are
two questions (XSTest, arXiv 2308.01263), and to refuse everything would look even.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .costs import retention
from .statistics import require


class Continual(NamedTuple):
    """The averages of continual learning, in the unit of the scores."""

    acc: float
    bwt: float
    fwt: float


def continual_scores(scores: pd.DataFrame | np.ndarray, learned: Sequence[int] | None = None) -> Continual:
    """ACC, BWT and FWT of a sequence of stages (GEM, arXiv 1706.08840, section 2).

    With R[i, j] the score on task j after stage i, row 0 before any stage (GEM's b̄), T stages, and task j learned in
    stage ℓ(j), which is j in GEM:
    ACC = mean_j R[T, j];
    BWT = mean of R[T, j] − R[ℓ(j), j] over tasks learned before stage T: below 0 it is forgetting;
    FWT = mean of R[ℓ(j) − 1, j] − R[0, j] over tasks learned in stage 2 or later: what earlier stages did for them.

    Args:
        scores: Of shape (T + 1, tasks); of all tasks more must be better.
        learned: The stage of each task, 0 for what the base knew: the BWT of such tasks is minus their alignment tax.
            None takes task j for stage j, as many tasks as stages.

    Returns:
        The three; nan where no task qualifies or a score is missing. In GEM's setting, one task a stage, both
        denominators are T − 1.

    Raises:
        ValueError: The shape does not fit, or refusals on both sides would be averaged.
    """
    if isinstance(scores, pd.DataFrame):
        _one_sided([str(name) for name in scores])
    matrix = np.asarray(scores, dtype=float)
    if matrix.ndim != 2 or len(matrix) < 2 or not matrix.shape[1]:
        raise ValueError(
            f"expected scores of shape (stages + 1, tasks), got {matrix.shape}: row 0 is before any stage."
        )
    last, n_tasks = len(matrix) - 1, matrix.shape[1]
    stage = np.arange(1, n_tasks + 1) if learned is None else np.asarray(learned)
    if stage.shape != (n_tasks,) or (learned is None and n_tasks != last):
        raise ValueError(
            f"expected a stage for each of {n_tasks} tasks over {last} stages, got {learned}: say learned."
        )
    if ((stage < 0) | (stage > last)).any():
        raise ValueError(f"expected stages of 0 to {last}, got {stage.tolist()}: 0 is before any stage.")
    tasks = np.arange(n_tasks)
    old, new = stage < last, stage >= 2
    backward = matrix[last, tasks[old]] - matrix[stage[old], tasks[old]]
    forward = matrix[stage[new] - 1, tasks[new]] - matrix[0, tasks[new]]
    return Continual(float(matrix[last].mean()), *(float(x.mean()) if len(x) else np.nan for x in (backward, forward)))


def stage_scores(run: Mapping[Any, Any] | pd.Series, tasks: Sequence[str]) -> pd.DataFrame:
    """The scores of a run after each stage, row 0 the base: what `continual_scores` takes.

    Args:
        run: A row of `load_runs`, with `trajectory` and `stages.1.steps`, `stages.2.steps` …
        tasks: Names of scores.

    Raises:
        ValueError: The stages are not known, or the end of one was not evaluated.
    """
    steps: list[int] = []
    while not pd.isna(more := run.get(f"stages.{len(steps) + 1}.steps")):
        steps.append(int(more))
    if not steps:
        raise ValueError(f"expected the steps of each stage, stages.1.steps …, got {[*run.keys()]}: see load_runs.")
    ends = [0, *np.cumsum(steps).tolist()]
    points = {point["step"]: point for point in run["trajectory"]}
    if missing := [end for end in ends if end not in points]:
        raise ValueError(f"expected evaluations at steps {ends}, got none at {missing}: evaluate at each stage's end.")
    rows = [[points[end].get(task) for task in tasks] for end in ends]
    return pd.DataFrame(rows, columns=[*tasks], dtype=float).rename_axis("stage")


def continual_scores_of_runs(table: pd.DataFrame, learned: Mapping[str, int]) -> pd.DataFrame:
    """`continual_scores` of every run of `load_runs`: columns `acc`, `bwt`, `fwt`, for `over_bases` and `summarise`.

    Args:
        table: One row per run.
        learned: Score → the stage in which its task is learned, 0 for what the base knew:
            `{"facts/correct_rate": 0, "format/correct_rate": 0, "safety": 1}`.
    """
    require(table, "trajectory")
    runs = [stage_scores(run, [*learned]) for run in table.to_dict("records")]
    rows = [continual_scores(scores, [*learned.values()]) for scores in runs]
    return pd.DataFrame(rows, index=table.index, columns=Continual._fields)


def average_gains(base: Sequence[float] | np.ndarray, aligned: Sequence[float] | np.ndarray) -> dict[str, float]:
    """ "Average performance gain" over benchmarks, in the variants that the words allow, side by side.

    The OGPSA paper (arXiv 2602.07892) reports 33.98 % and 42.74 % without a formula. With s₀ before and s after:

    - `relative`: mean of (s − s₀)/s₀, the plausible reading; one small s₀ decides it
    - `relative_median`: the median of the same
    - `of_means`: (Σs − Σs₀)/Σs₀; benchmarks with high scores decide it
    - `geometric`: exp(mean of log(s/s₀)) − 1, the mean log-ratio as a gain
    - `points`: mean of s − s₀, in the unit of the scores
    - `closed`: mean of (s − s₀)/(1 − s₀), the share of what was missing, for scores with a most of 1

    Args:
        base: One score per benchmark; of all more must be better.
        aligned: The same after.

    Returns:
        Variant → gain, 0.34 for 34 %. nan where a score is missing or a variant is undefined: the relative ones for an
        s₀ of 0, `closed` for an s₀ of 1 or more.
    """
    before, after = np.asarray(base, dtype=float), np.asarray(aligned, dtype=float)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"expected one score per benchmark before and after, got {before.shape} and {after.shape}.")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = retention(np.where(before > 0, before, np.nan), after)
        return {
            "relative": float(np.mean(ratio - 1)),
            "relative_median": float(np.median(ratio - 1)),
            "of_means": float(after.sum() / before.sum() - 1) if before.sum() > 0 else np.nan,
            "geometric": float(np.exp(np.mean(np.log(ratio))) - 1),
            "points": float(np.mean(after - before)),
            "closed": float(np.mean((after - before) / np.where(before < 1, 1 - before, np.nan))),
        }


def gains_of_runs(table: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """`average_gains` of every run of `load_runs` over its base: a column per variant.

    Raises:
        ValueError: A score, or its `base.` twin, is missing, or refusals on both sides would be averaged.
    """
    _one_sided(scores)
    base = [f"base.{name}" for name in scores]
    require(table, *scores, *base)
    pairs = zip(table[base].to_numpy(float), table[[*scores]].to_numpy(float), strict=True)
    return pd.DataFrame([average_gains(before, after) for before, after in pairs], index=table.index)


def _one_sided(names: Sequence[str]) -> None:
    """Refuses an average over more than one score of refusals: which side a suite is on, its name does not say."""
    sides = [name for name in names if re.fullmatch(r"safety|over_refusal|.*(refusal|compliance)_rate", name)]
    if len(sides) > 1:
        raise ValueError(
            f"expected at most one score of refusals in an average, got {sides}: harmful and benign prompts are two "
            "questions. Report them beside the average."
        )

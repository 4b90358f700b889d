"""Trade-off mathematics: what safety cost in ability, computed from scores or from a table of `load_runs`.

Of `utility` and `safety` more is better, of `over_refusal` less. Nothing is averaged over the two sides:
harmful and benign prompts are two questions (XSTest, arXiv 2308.01263).

What a run had at equal safety stands here. Costs, intervals, paired comparisons, fronts, averages over tasks and bounds
have files of their own beside this one; their public names can be taken from here too.
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .averages import average_gains, continual_scores, continual_scores_of_runs, gains_of_runs, stage_scores
from .bounds import meets
from .comparing import base_share, holm, paired_comparisons, paired_difference, paired_differences, sign_flip_p
from .costs import alignment_tax, retention, retentions, tax_per_safety_gain
from .fronts import dominance_probability, front_probability, hypervolume, hypervolumes, pareto_set
from .statistics import (
    Interval,
    interval,
    intervals,
    over_bases,
    readable,
    require,
    share_interval,
    student_p,
    student_t,
    summarise,
)

__all__ = [
    "Area",
    "Interval",
    "alignment_tax",
    "area_under_curve",
    "areas_under_curve",
    "at_matched_safety",
    "average_gains",
    "base_share",
    "continual_scores",
    "continual_scores_of_runs",
    "dominance_probability",
    "front_probability",
    "gains_of_runs",
    "holm",
    "hypervolume",
    "hypervolumes",
    "interval",
    "matched_curve",
    "matched_safety",
    "meets",
    "over_bases",
    "paired_comparisons",
    "paired_difference",
    "paired_differences",
    "pareto_set",
    "readable",
    "retention",
    "retentions",
    "share_interval",
    "sign_flip_p",
    "stage_scores",
    "student_p",
    "student_t",
    "summarise",
    "tax_per_safety_gain",
]


class Area(NamedTuple):
    """The mean height of a curve over a range of safety, and the share of the range that the run reached."""

    area: float
    reached: float


def at_matched_safety(
    trajectory: Sequence[Mapping[str, Any]],
    safety: float,
    columns: Sequence[str] = ("utility", "over_refusal"),
) -> dict[str, float]:
    """Scores where a run first reaches a given safety: the fair way to compare runs that end elsewhere.

    Between the last evaluation below the target and the first at or above it the trajectory is taken as a
    straight line, so the spacing of evaluations is the resolution. A run that begins at the target is read at
    its start.

    Args:
        trajectory: The evaluations of a run from step 0, the base model, on; each with `step` and `safety`.
        safety: The target.
        columns: What is read; `step` may be among them.

    Returns:
        One number a column; nan where the run never reaches the target, or a score beside it is missing.
    """
    points = _by_step(trajectory)
    first = next((index for index, point in enumerate(points) if point["safety"] >= safety), None)
    if first is None:
        return dict.fromkeys(columns, math.nan)
    before, after = points[max(first - 1, 0)], points[first]
    rise = after["safety"] - before["safety"]
    share = (safety - before["safety"]) / rise if rise else 1.0
    ends = ((name, _number(before.get(name)), _number(after.get(name))) for name in columns)
    return {name: start + share * (end - start) if share < 1 else end for name, start, end in ends}


def matched_safety(
    table: pd.DataFrame, safety: float, columns: Sequence[str] = ("utility", "over_refusal")
) -> pd.DataFrame:
    """The table of `load_runs` with each run read where it first reaches a given safety.

    `columns` hold the scores there, `step` the step, `safety` the target, `reached` whether the run got so
    far; if not, scores and step are nan. A mean over the runs that did says little without the share of
    those.
    """
    require(table, "trajectory")
    read = [at_matched_safety(points, safety, (*columns, "step")) for points in table["trajectory"]]
    matched = pd.DataFrame(read, index=table.index, columns=[*columns, "step"], dtype=float)
    matched = matched.assign(safety=safety, reached=matched["step"].notna())
    # Not joined: tables set below each other bring the same labels twice. Copied: pandas warns of one made of pieces.
    return pd.concat([table.drop(columns=["trajectory", *matched], errors="ignore"), matched], axis=1).copy()


def matched_curve(
    table: pd.DataFrame,
    levels: Sequence[float] = tuple(np.linspace(0, 1, 21)),
    columns: Sequence[str] = ("utility", "over_refusal"),
    *,
    by: str = "label",
    level: float = 0.95,
) -> pd.DataFrame:
    """Scores against safety: each group read at every level of safety that its runs first reach, see `matched_safety`.

    Columns may be any scores of the evaluations, `lookalike/compliance_rate` (look-alikes answered) among them.

    Returns:
        One row per group and level: `by`, `safety`; `runs` and the share of them that `reached` it; and for each column
        its mean over the runs that did, each base counting once, with the Student-t interval over bases:
        `utility`, `utility.low`, `utility.high`, `utility.n`. Where less than all reached, the mean is one of those
        that did, who may have paid less or more than the others would have: read it with `reached`.

    Raises:
        ValueError: There is no trajectory, or no evaluation has one of the columns.
    """
    require(table, by, "trajectory")
    seen = {name for way in table["trajectory"] for point in way for name in point}
    if missing := [name for name in columns if name not in seen]:
        raise ValueError(f"expected evaluations with {missing}, got {sorted(seen)}: evaluate while training.")
    table = table[[name for name in dict.fromkeys([by, "model", "trajectory"]) if name in table]]
    at = [by, "safety"]
    read = pd.concat([matched_safety(table, float(safety), columns) for safety in levels], ignore_index=True)
    measured = intervals(read, columns, at, level).values()
    rows = [
        {by: name, "safety": safety, "runs": len(runs), "reached": float(runs["reached"].mean())} | means
        for ((name, safety), runs), means in zip(read.groupby(at, sort=False, dropna=False), measured, strict=True)
    ]
    order = {name: place for place, name in enumerate(table[by].drop_duplicates())}
    return pd.DataFrame(rows).sort_values(by, key=lambda names: names.map(order), kind="stable", ignore_index=True)


def area_under_curve(
    trajectory: Sequence[Mapping[str, Any]],
    low: float,
    high: float,
    column: str = "utility",
    *,
    beyond: float = 0.0,
) -> Area:
    """The mean of a score over a range of safety, ∫ u(s) ds / (high − low), u read as by `at_matched_safety`.

    The integral is exact for the straight lines between evaluations. u jumps where a run falls back in safety and
    passes its best again later, elsewhere.

    Args:
        trajectory: As in `at_matched_safety`.
        low: Where the range begins. Below the safety it begins with, a run is read at its start.
        high: Where it ends. State the range beside the result.
        column: The score.
        beyond: What the score counts as for safety that the run did not reach: 0 takes it as worth nothing there, so
            that stopping early does not pay; nan makes the area of such a run nan.

    Returns:
        The area, and the share of the range that was reached: of both runs that reach little and that pay much an area
        is low. nan where the column is missing beside a reached part.
    """
    if not low < high:
        raise ValueError(f"expected a range of safety with low < high, got {low} to {high}.")
    reached = total = 0.0
    for start, end, left, right in _climbs(_by_step(trajectory), column):
        part = np.clip([start, end], low, high)
        if part[1] > part[0]:
            at = [left, right] if math.isinf(start) else np.interp(part, [start, end], [left, right])
            total += float(part[1] - part[0]) * float(np.mean(at))
            reached += float(part[1] - part[0])
    rest = max(high - low - reached, 0.0)
    missing = rest * beyond if rest > 1e-12 * (high - low) else 0.0
    return Area((total + missing) / (high - low), reached / (high - low))


def areas_under_curve(
    table: pd.DataFrame, low: float, high: float, column: str = "utility", *, beyond: float = 0.0
) -> pd.DataFrame:
    """`area_under_curve` of every run: columns `area` and `reached`, for `over_bases` and `summarise`."""
    require(table, "trajectory")
    areas = [area_under_curve(way, low, high, column, beyond=beyond) for way in table["trajectory"]]
    return pd.DataFrame(areas, index=table.index, columns=Area._fields)


def _by_step(trajectory: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations whose safety is known, in the order of their steps."""
    if missing := [point for point in trajectory if "step" not in point or "safety" not in point]:
        raise ValueError(f"expected step and safety in each evaluation, got {missing[0]}: log both.")
    known = [point for point in trajectory if not math.isnan(_number(point["safety"]))]
    return sorted(known, key=operator.itemgetter("step"))


def _climbs(points: Sequence[Mapping[str, Any]], column: str) -> Iterator[tuple[float, float, float, float]]:
    """Stretches of safety in which a run is first there, (from, to, score at from, score at to), growing."""
    if not points:
        return
    best = points[0]["safety"]
    begun = _number(points[0].get(column))
    yield -math.inf, best, begun, begun
    for before, after in pairwise(points):
        if after["safety"] > best:
            ends = [_number(before.get(column)), _number(after.get(column))]
            start = float(np.interp(best, [before["safety"], after["safety"]], ends))
            yield best, after["safety"], start, ends[1]
            best = after["safety"]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)

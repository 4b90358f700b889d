"""Who dominates whom, how surely, and how much of the plane a technique covers.

Of what is maximised more is better, of what is minimised less; a point dominates another that it betters in one
objective and is worse than in none. Equal points dominate neither way.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from .comparing import PAIRS, runs_by_pair
from .statistics import over_bases, require, summarise

PLANE = ("utility", "safety")


def pareto_set(table: pd.DataFrame, maximise: Sequence[str] = PLANE, minimise: Sequence[str] = ()) -> "pd.Series[bool]":
    """Which rows no other row dominates, that is, betters in one objective while worse in none.

    Equal rows are all kept. A row that lacks an objective is never in the set and dominates nothing.
    """
    require(table, *maximise, *minimise)
    scores = table[[*maximise, *minimise]].to_numpy(float) * _signs(maximise, minimise)
    return pd.Series(_on_front(scores), index=table.index, name="pareto")


def dominance_probability(
    table: pd.DataFrame,
    maximise: Sequence[str] = PLANE,
    minimise: Sequence[str] = (),
    *,
    by: str = "label",
    of: Literal["runs", "means"] = "runs",
    pair_on: Sequence[str] = PAIRS,
    n_draws: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    """The probability that the group of the row dominates the group of the column: a square table.

    Args:
        table: One row per run, as `load_runs` returns it.
        maximise: Objectives of which more is better.
        minimise: Objectives of which less is better, `("over_refusal",)` say.
        by: What the groups are.
        of: `"runs"`: that one run dominates the other on the same base and seed, the share of the pairs that both ran
            on, each base counting once. `"means"`: that the mean over bases dominates, the share of the draws of a
            bootstrap of bases, then of seeds within each; all groups are drawn on the same pairs.
        pair_on: What pairs runs.
        n_draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        0 on the diagonal and for groups with equal scores: what a pair leaves to 1, [a, b] + [b, a], is neither. nan
        where two groups share no pair. With few bases a bootstrap is a little too sure: its spread is √((n − 1)/n) of
        what it should be, 11 % too small with five.

    Raises:
        ValueError: A column is missing, a group ran twice on a pair, or (of means) no pair is shared by all.
    """
    runs = _replicates(table, maximise, minimise, by, pair_on)
    if of == "means":
        drawn = _bootstrap(runs, n_draws, seed)
        return pd.DataFrame(_dominance(drawn).mean(axis=0), index=runs.groups, columns=runs.groups)
    known = ~np.isnan(runs.scores).any(axis=2)
    both = known[:, :, None] & known[:, None, :]
    share = _mean_of_bases(np.where(both, _dominance(runs.scores), np.nan), runs.bases)
    return pd.DataFrame(share, index=runs.groups, columns=runs.groups)


def front_probability(
    table: pd.DataFrame,
    maximise: Sequence[str] = PLANE,
    minimise: Sequence[str] = (),
    *,
    by: str = "label",
    pair_on: Sequence[str] = PAIRS,
    n_draws: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    """How surely each group is on the Pareto front: nothing beside it dominates it.

    Only the pairs are used that all groups ran on, so that every group meets the same rivals.

    Returns:
        By group: `on_front`, whether the mean over bases is; `means`, the share of bootstrap draws in which it is (see
        `dominance_probability`); `runs`, the share of pairs in which its single run is among those of the same base and
        seed, each base counting once; `pairs` and `bases`, how many there are. With equal scores all are on the front.

    Raises:
        ValueError: A column is missing, a group ran twice on a pair, or no pair is shared by all.
    """
    runs = _shared(_replicates(table, maximise, minimise, by, pair_on))
    means = _mean_of_bases(runs.scores, runs.bases)
    shares = {
        "on_front": _on_front(means),
        "means": _on_front(_bootstrap(runs, n_draws, seed)).mean(axis=0),
        "runs": _mean_of_bases(_on_front(runs.scores).astype(float), runs.bases),
        "pairs": len(runs.scores),
        "bases": len({*runs.bases}),
    }
    return pd.DataFrame(shares, index=runs.groups)


def hypervolume(points: pd.DataFrame, reference: Mapping[str, float], minimise: Sequence[str] = ()) -> float:
    """The volume that points dominate, bounded by a reference point (Zitzler & Thiele 1999); exact.

    Args:
        points: One row per point, with the columns of the reference.
        reference: Objective → the value at which it is worth nothing; its unit and its choice decide the result, so
            state it: `{"utility": 0, "safety": 0, "over_refusal": 1}` makes the volume a share of the unit cube.
        minimise: Those objectives of which less is better.

    Returns:
        The volume in the product of the objectives' units. Points that are not better than the reference in every
        objective, or lack one, add nothing.
    """
    require(points, *reference)
    if extra := sorted({*minimise} - {*reference}):
        raise ValueError(f"expected a reference for all that is minimised, got none for {extra}: add it.")
    return _volume(_gains(points[[*reference]].to_numpy(float), reference, minimise))


def hypervolumes(
    table: pd.DataFrame,
    reference: Mapping[str, float],
    minimise: Sequence[str] = (),
    *,
    by: str = "label",
    pair_on: Sequence[str] = PAIRS,
    level: float = 0.95,
) -> pd.DataFrame:
    """Hypervolume of each group to a stated reference point, with intervals over bases: mean, low, high and n each.

    Returns:
        `end`: of a run's final point alone. `way`: of all evaluations of a run, each a model that could be kept; it is
        never less than `end` where the last evaluation is the final one. `contribution`: what the front of all groups
        on one base and seed would lose without this group (final points; pairs that all groups ran on).

    Raises:
        ValueError: A column is missing, a group ran twice on a pair, or no pair is shared by all.
    """
    require(table, by, "trajectory", *reference)
    ends = [hypervolume(table.iloc[[row]], reference, minimise) for row in range(len(table))]
    ways = [hypervolume(_points(way, reference), reference, minimise) for way in table["trajectory"]]
    measured = table.assign(end=ends, way=ways)
    alone = summarise(over_bases(measured, ["end", "way"], [by]), by, ["end", "way"], level)
    added = _contributions(table, reference, minimise, by, pair_on)
    return alone.join(summarise(over_bases(added, ["contribution"], [by]), by, ["contribution"], level))


class _Replicates(NamedTuple):
    """Scores of shape (pairs, groups, objectives), more being better, nan where a group did not run on a pair."""

    scores: np.ndarray
    bases: np.ndarray
    groups: list[Any]


def _replicates(
    table: pd.DataFrame, maximise: Sequence[str], minimise: Sequence[str], by: str, pair_on: Sequence[str]
) -> _Replicates:
    objectives = [*maximise, *minimise]
    require(table, by, *objectives, *pair_on)
    groups = [*table[by].drop_duplicates()]
    wide = pd.concat({name: runs_by_pair(table, name, by, pair_on)[objectives] for name in groups}, axis=1).sort_index()
    scores = wide.to_numpy(float).reshape(len(wide), len(groups), len(objectives))
    bases = wide.index.get_level_values("model") if "model" in wide.index.names else np.zeros(len(wide), int)
    return _Replicates(scores * _signs(maximise, minimise), np.asarray(bases), groups)


def _shared(runs: _Replicates) -> _Replicates:
    """The pairs that every group ran on."""
    known = ~np.isnan(runs.scores).any(axis=2)
    if not known.all(axis=1).any():
        few = dict(zip(runs.groups, known.sum(axis=0).tolist(), strict=True))
        raise ValueError(f"expected a base and seed that all groups ran on, got none; pairs by group: {few}.")
    keep = known.all(axis=1)
    return _Replicates(runs.scores[keep], runs.bases[keep], runs.groups)


def _bootstrap(runs: _Replicates, n_draws: int, seed: int) -> np.ndarray:
    """Means of shape (draws, groups, objectives): bases are drawn with replacement, then seeds within each."""
    runs, rng = _shared(runs), np.random.default_rng(seed)
    _, places, n_seeds = np.unique(runs.bases, return_inverse=True, return_counts=True)
    ordered = runs.scores[np.argsort(places, kind="stable")]
    first = np.concatenate([[0], np.cumsum(n_seeds)[:-1]])
    base = rng.integers(len(n_seeds), size=(n_draws, len(n_seeds)))
    slots = rng.random((n_draws, len(n_seeds), n_seeds.max()))
    used = np.arange(n_seeds.max()) < n_seeds[base][..., None]  # a base of fewer seeds fills fewer slots
    drawn = ordered[first[base][..., None] + (slots * n_seeds[base][..., None]).astype(int)]
    means = np.where(used[..., None, None], drawn, 0).sum(axis=2) / n_seeds[base][..., None, None]
    return means.mean(axis=1)


def _mean_of_bases(values: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Mean over pairs within each base, then over bases; nan is left out."""
    flat = pd.DataFrame(values.reshape(len(values), -1)).groupby(bases).mean().mean()
    return flat.to_numpy().reshape(values.shape[1:])


def _dominance(scores: np.ndarray) -> np.ndarray:
    """Whether one point dominates another: (…, points, objectives) → (…, one, other)."""
    one, other = scores[..., :, None, :], scores[..., None, :, :]
    return np.all(one >= other, axis=-1) & np.any(one > other, axis=-1)


def _on_front(scores: np.ndarray) -> np.ndarray:
    return ~_dominance(scores).any(axis=-2) & ~np.isnan(scores).any(axis=-1)


def _signs(maximise: Sequence[str], minimise: Sequence[str]) -> np.ndarray:
    return np.array([1.0] * len(maximise) + [-1.0] * len(minimise))


def _gains(values: np.ndarray, reference: Mapping[str, float], minimise: Sequence[str]) -> np.ndarray:
    """By how much each point is better than the reference, for those that are in all objectives."""
    gains = (values - [*reference.values()]) * [-1.0 if name in minimise else 1.0 for name in reference]
    return gains[(gains > 0).all(axis=1)]


def _volume(gains: np.ndarray) -> float:
    """Volume of the union of the boxes from 0 to each point, slab by slab along the last objective."""
    if not len(gains):
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    order = gains[np.argsort(-gains[:, -1], kind="stable")]
    thickness = order[:, -1] - np.append(order[1:, -1], 0.0)
    return sum(float(slab) * _volume(order[: above + 1, :-1]) for above, slab in enumerate(thickness) if slab > 0)


def _points(way: Any, reference: Mapping[str, float]) -> pd.DataFrame:
    return pd.DataFrame([*way], columns=[*reference] if not len(way) else None).reindex(columns=[*reference])


def _contributions(
    table: pd.DataFrame, reference: Mapping[str, float], minimise: Sequence[str], by: str, pair_on: Sequence[str]
) -> pd.DataFrame:
    """A row for each group and shared pair."""
    runs = _shared(_replicates(table, [*reference], (), by, pair_on))
    rows = []
    for scores, base in zip(runs.scores, runs.bases, strict=True):
        whole = _volume(_gains(scores, reference, minimise))
        for place, name in enumerate(runs.groups):
            rest = _volume(_gains(np.delete(scores, place, axis=0), reference, minimise))
            rows.append({by: name, "model": base, "contribution": max(whole - rest, 0.0)})
    return pd.DataFrame(rows)

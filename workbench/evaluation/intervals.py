"""Intervals of scores over their items: Wilson's for rates, the bootstrap for everything else."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from workbench.evaluation.tallies import Share

RESAMPLED = 2**22  # most counts of one part of the resamples


class Interval(NamedTuple):
    """The bounds of an interval."""

    low: float
    high: float


def wilson(part: float, whole: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927), which holds its level where few items or none are counted.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), with p = part / whole and n = whole.

    Args:
        part: How many of them.
        whole: Of how many.
        level: Of confidence.

    Raises:
        ValueError: Not 0 ≤ part ≤ whole, whole > 0 and 0 < level < 1.
    """
    if not 0 <= part <= whole or whole <= 0:
        raise ValueError(f"Expected 0 <= part <= whole with a whole above 0, got {part} of {whole}.")
    p, z2 = part / whole, _z(level) ** 2
    centre = p + z2 / (2 * whole)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / whole + z2 / (4 * whole**2))
    low, high = (centre - half) / (1 + z2 / whole), (centre + half) / (1 + z2 / whole)
    return Interval(low if part else 0.0, high if part < whole else 1.0)


def bootstrap(shares: Sequence[Share | float], level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """The bias-corrected and accelerated bootstrap (Efron 1987, BCa) of a sum of parts over a sum of wholes.

    Items are drawn with replacement. Where all items are the same the interval is a point, which says nothing of
    items that were not seen: use `wilson` for rates.

    Args:
        shares: One an item; a plain number is a share of 1.
        level: Of confidence.
        n_resamples: How many times as many items are drawn.
        seed: Of the draws.

    Raises:
        ValueError: There are fewer than two items that count.
    """
    parts, wholes = np.array([s if isinstance(s, Share) else Share(s) for s in shares], float).reshape(-1, 2).T
    if (n_counted := np.count_nonzero(wholes)) < 2:
        raise ValueError(f"The bootstrap needs at least two items that count, got {n_counted}.")
    score = parts.sum() / wholes.sum()
    drawn = _resampled(parts, wholes, n_resamples, seed)
    left_out = np.stack([parts.sum() - parts, wholes.sum() - wholes])
    jackknife = left_out[0] / left_out[1]
    away = jackknife.mean() - jackknife
    spread = (away**2).sum()
    if not spread > 1e-30 * max(1.0, score**2) or np.ptp(drawn) == 0:
        return Interval(float(score), float(score))
    acceleration = (away**3).sum() / (6 * spread**1.5)
    below = ((drawn < score).sum() + 0.5 * (drawn == score).sum()) / len(drawn)
    z0 = NormalDist().inv_cdf(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    bounds = [z0 + (z0 + z) / (1 - acceleration * (z0 + z)) for z in (-_z(level), _z(level))]
    low, high = np.quantile(drawn, [NormalDist().cdf(bound) for bound in bounds])
    return Interval(float(low), float(high))


def interval_of(shares: Sequence[Share], level: float = 0.95) -> Interval | None:
    """The interval of a score: Wilson's if every item counts once or not at all, else the bootstrap's.

    Where every item has all of its whole, or none has any, resamples would all be the same, and Wilson's interval
    of so many items is taken, too.

    Returns:
        None where there are too few items to tell.
    """
    counted = [share for share in shares if share.whole]
    once = all(share.whole == 1 and share.part in (0, 1) for share in counted)
    rates = {share.part / share.whole for share in counted}
    if rates and (once or rates in ({0.0}, {1.0})):
        return wilson(sum(share.part / share.whole for share in counted), len(counted), level)
    return bootstrap(shares, level) if len(counted) > 1 else None


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of a mean of independent estimates, from the interval of each (MOVER: Zou and Donner 2008).

    m ± √(Σ (distance of each value from its bound)²) / k, which keeps the skew of the intervals.

    Args:
        values: The k estimates, with mean m.
        intervals: One each.
    """
    mean, k = sum(values) / len(values), len(values)
    low = math.sqrt(sum((v - i.low) ** 2 for v, i in zip(values, intervals, strict=True))) / k
    high = math.sqrt(sum((i.high - v) ** 2 for v, i in zip(values, intervals, strict=True))) / k
    return Interval(mean - low, mean + high)


def score_interval(scores: Mapping[str, float], name: str, level: float = 0.95) -> Interval:
    """Wilson's interval of one score from a record, by the number of items that stands beside it.

    It is exact of rates, and no narrower than it should be of any mean of values within [0, 1], since none varies more
    than a rate does. ``wb.evaluate(…, intervals=True)`` has the items themselves, hence intervals of all scores.

    Args:
        scores: As `evaluate` gives them.
        name: Such as ``"xstest_safe/refusal_rate"`` or ``"mmlu/correct_rate/virology"``.
        level: Of confidence.

    Raises:
        ValueError: There is no such score, no number of items beside it, or it is not within [0, 1].
    """
    if name not in scores:
        raise ValueError(f"Expected one of the scores {sorted(scores)}, got {name!r}.")
    suite, *parts = name.split("/")
    places = [[suite, *parts[:i], "n", *parts[i + 1 :]] for i in range(len(parts))]
    beside = [place for place in map("/".join, [*places, [suite, "n"]]) if place in scores and place != name]
    if not beside or not 0 <= scores[name] <= 1:
        raise ValueError(
            f"Expected a score within [0, 1] with its number of items beside it ({suite}/n), got {name} of "
            f"{scores[name]}. Ask for it with wb.evaluate(..., intervals=True)."
        )
    n = scores[beside[0]]
    return wilson(scores[name] * n, n, level)


def _resampled(parts: np.ndarray, wholes: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """The score of each resample, (resamples,); one in which nothing counts is left out."""
    rng, n = np.random.default_rng(seed), len(parts)
    size = max(1, RESAMPLED // n)
    drawn = []
    for start in range(0, n_resamples, size):
        chosen = rng.integers(n, size=(min(size, n_resamples - start), n))
        drawn.append(np.stack([parts[chosen].sum(1), wholes[chosen].sum(1)]))
    part, whole = np.concatenate(drawn, 1)
    return part[whole > 0] / whole[whole > 0]


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    return NormalDist().inv_cdf((1 + level) / 2)

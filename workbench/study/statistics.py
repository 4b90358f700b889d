"""What a few runs say: means with intervals, p-values, shares. The unit is the base model.

Seeds of one base are more alike than seeds of different bases, so bases count where there are several (`over_bases`).
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Interval(NamedTuple):
    """A mean with its confidence interval and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean and Student-t interval x̄ ± t·s/√n over independent values, such as seeds.

    Student-t, because seeds are few: a percentile bootstrap of three to six values is far too narrow. It
    takes the values as nearly normal, which shares close to 0 or 1 are not: the bounds are not clipped, so
    that one beyond 1 shows it, and equal values have an interval of no width. Missing values are left out and
    `n` counts the rest; one value has no interval (nan).
    """
    check_level(level)
    known = np.asarray([*values], dtype=float)
    known = known[~np.isnan(known)]
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    half = student_t(level, n - 1) * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half, n)


def summarise(
    table: pd.DataFrame,
    by: str | Sequence[str],
    metrics: Sequence[str] = ("utility", "safety"),
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean, low, high and n of each metric in each group: `summarise(runs, "technique")["utility"]["mean"]`.

    Groups keep the order in which they come; a missing value of `by` (no rank, say) makes a group of its own.
    """
    require(table, *([by] if isinstance(by, str) else by), *metrics)
    groups = table.groupby(by if isinstance(by, str) else [*by], sort=False, dropna=False)
    rows = {metric: groups[metric].apply(lambda values: interval(values, level)) for metric in metrics}
    return pd.concat(
        {metric: pd.DataFrame([*row], row.index, Interval._fields) for metric, row in rows.items()}, axis=1
    )


def readable(means: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """The table of `summarise` to be read: a column of "0.93 [0.88, 0.98]" per metric.

    One value has no interval and stands alone; none at all is a dash.
    """

    def told(row: "pd.Series[float]") -> str:
        shown = [f"{row[name]:z.{digits}f}" for name in ("mean", "low", "high")]
        return "–" if row["n"] == 0 else shown[0] if row["n"] == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"

    metrics = means.columns.get_level_values(0).unique()
    return pd.DataFrame({metric: means[metric].apply(told, axis=1) for metric in metrics}, index=means.index)


def over_bases(runs: pd.DataFrame, metrics: Sequence[str], by: Sequence[str] = ()) -> pd.DataFrame:
    """One row per base and group, the mean of its seeds, where there are several bases; else the runs as they are.

    Seeds of one base are more alike than seeds of different bases: taken as independent they make intervals far too
    narrow. With one base there is nothing but seeds.
    """
    if "model" not in runs or runs["model"].nunique() < 2:
        return runs
    return runs.groupby([*by, "model"], sort=False, dropna=False)[[*metrics]].mean().reset_index()


def intervals(
    runs: pd.DataFrame, metrics: Sequence[str], by: Sequence[str], level: float = 0.95
) -> dict[tuple[Any, ...], dict[str, float]]:
    """Mean and `interval` of each metric in each group by itself: over its bases where it has several, else its runs.

    That is `interval` of `over_bases` of every group, all at once: a view asks for fifty groups at a stroke, and a
    group of a table by itself takes a millisecond.

    Args:
        runs: One row per run, with its base in `model`; without that column all runs are on one base.
        metrics: Columns of numbers, missing ones among them.
        by: The columns that make the groups.
        level: That of the intervals.

    Returns:
        The values of `by` in a group → `{"utility": mean, "utility.low": …, "utility.high": …, "utility.n": …}`,
        groups in the order in which they come.
    """
    if runs.empty:
        return {}
    groups, firsts = _numbered(*(runs[name] for name in by))
    units, of_unit = _units(runs, groups)
    keys = [*zip(*(runs[name].to_numpy()[firsts] for name in by), strict=True)]
    members = np.split(np.argsort(groups[of_unit], kind="stable"), np.cumsum(np.bincount(groups[of_unit]))[:-1])
    found: dict[tuple[Any, ...], dict[str, float]] = {key: {} for key in keys}
    for name in metrics:
        means = _means(runs[name].to_numpy(float), units)
        for key, places in zip(keys, members, strict=True):
            mean, low, high, n = interval(means[places], level)
            found[key] |= {name: mean, f"{name}.low": low, f"{name}.high": high, f"{name}.n": n}
    return found


def _units(runs: pd.DataFrame, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the bases of every group with several, and each run of the others; and the first run of each."""
    n, models = len(runs), pd.factorize(runs["model"])[0] if "model" in runs else np.zeros(len(runs), dtype=int)
    known = np.unique(np.stack([groups, models])[:, models >= 0], axis=1)[0]
    several = np.bincount(known, minlength=n)[groups] > 1
    unit = np.where(several, models, n + np.arange(n))
    return _numbered(groups, unit)


def _numbered(*columns: "np.ndarray | pd.Series[Any]") -> tuple[np.ndarray, np.ndarray]:
    """Numbers the groups of equal rows in the order in which they come, and gives the first row of each."""
    codes: Any = 0
    for column in columns:
        numbers, values = pd.factorize(column, use_na_sentinel=False)
        codes = codes * len(values) + numbers
    numbers = pd.factorize(codes)[0]
    return numbers, np.unique(numbers, return_index=True)[1]


def _means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The mean of the known values of each unit, nan where there are none."""
    known = ~np.isnan(values)
    sums, counts = np.bincount(units, np.where(known, values, 0)), np.bincount(units, known)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def share_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """A share with its exact interval (Clopper & Pearson 1934): it covers at least as often as it says, at any n.

    The low end is the p at which P(X ≥ k) is (1 − level)/2, the high end that at which P(X ≤ k) is, X ~ Binomial(n, p).
    Of 20 runs that all succeed it is [.832, 1]. It takes the trials as independent.
    """
    check_level(level)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected successes between 0 and n, and n at least 1, got {successes} of {n}.")
    tail = (1 - level) / 2
    return Interval(successes / n, _least(successes, n, tail), 1 - _least(n - successes, n, tail), n)


@functools.cache  # a figure of fifty intervals asks for two or three
def student_t(level: float, dof: int) -> float:
    """The t with P(|T| ≤ t) = level at `dof` degrees of freedom.

    From the finite series for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4), which
    is in θ = arctan(t/√dof), by bisection in θ.
    """
    theta = _root(lambda theta: _central_probability(theta, dof) - level, math.pi / 2)
    return math.sqrt(dof) * math.tan(theta)


def student_p(t: float, dof: int) -> float:
    """The two-sided P(|T| ≥ |t|) at `dof` degrees of freedom, the inverse of `student_t`."""
    return max(1 - _central_probability(math.atan(abs(t) / math.sqrt(dof)), dof), 0.0)


def check_level(level: float) -> None:
    """Refuses a level that is no share, 95 for 95 % above all."""
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}: 0.95 is usual.")


def require(table: pd.DataFrame, *columns: str) -> None:
    """Refuses a table that lacks a column."""
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"expected the columns {missing}, got {list(table.columns)}: take what load_runs gives.")


def _least(successes: int, n: int, tail: float) -> float:
    """The p with P(X ≥ successes) = tail."""
    if not successes:
        return 0.0
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(successes, n + 1)]

    def excess(p: float) -> float:
        odds = [k * math.log(p) + (n - k) * math.log1p(-p) for k in range(successes, n + 1)]
        return math.fsum(math.exp(way + odd) for way, odd in zip(ways, odds, strict=True)) - tail

    return _root(excess, 1.0)


def _root(growing: Callable[[float], float], high: float) -> float:
    """Where a growing function on (0, high) changes its sign, by bisection."""
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if growing(middle) < 0 else (low, middle)
    return low


def _central_probability(theta: float, dof: int) -> float:
    odd, total = dof % 2, 0.0
    term = math.cos(theta) if odd else 1.0
    for k in range(1, dof // 2 + 1):
        total += term
        term *= math.cos(theta) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total

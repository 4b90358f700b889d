"""Techniques against a control on the same bases and seeds, with intervals and p-values that hold for all at once.

A comparison is the difference of two runs of one (base, seed) pair. Its unit is the base, and one call of
`paired_comparisons` is one family.

For five bases the correction is Bonferroni's at Student's t, and Holm's of the p-values: both hold whatever the
comparisons share, here the control and the bases. Resampling is too coarse. Five bases have 32 sign patterns, so no
two-sided sign-flip p lies below 2/32 = .0625, and no sign-flip interval of 95 % is finite; resamples of five bases have
nearly no spread so often that a bootstrap max-t interval is more than three times as wide; and Dunnett's quantile,
which needs a correlation that four degrees of freedom do not tell, would be 2.5 % smaller.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .statistics import Interval, check_level, interval, over_bases, require, student_p

PAIRS = ("model", "seed")


def paired_differences(
    table: pd.DataFrame, a: Any, b: Any, metric: str, pair_on: Sequence[str] = PAIRS, *, by: str = "label"
) -> pd.DataFrame:
    """a − b, one row for each pair that both ran on: the columns of the pair, and the metric.

    Raises:
        ValueError: No pair is shared, or a group ran more than once on one: filter the table first.
    """
    require(table, by, metric, *pair_on)
    table = table[[*dict.fromkeys([by, *pair_on, metric])]]  # of hundreds of columns, which to index would cost
    one, other = (runs_by_pair(table, name, by, pair_on)[metric] for name in (a, b))
    shared = one.index.intersection(other.index, sort=True)
    if shared.empty:
        raise ValueError(f"expected runs of {a!r} and {b!r} on the same {tuple(pair_on)}, got none.")
    return (one[shared] - other[shared]).rename(metric).reset_index()


def paired_difference(
    table: pd.DataFrame,
    technique_a: Any,
    technique_b: Any,
    metric: str,
    pair_on: Sequence[str] = PAIRS,
    *,
    column: str = "technique",
    level: float = 0.95,
) -> Interval:
    """Mean of a − b over the (base, seed) pairs that both techniques ran on, with its Student-t interval.

    Where there are several bases, each counts once, as the mean of its pairs, see `over_bases`. Pairing takes out what
    the base and the seed do to both alike, mostly the larger part of the spread. The interval is that of one
    comparison; of several with one control see `paired_comparisons`.

    Raises:
        ValueError: No pair is shared, or a technique ran more than once on one: filter the table first.
    """
    differences = paired_differences(table, technique_a, technique_b, metric, pair_on, by=column)
    return interval(over_bases(differences, [metric])[metric], level)


def paired_comparisons(
    table: pd.DataFrame,
    control: Any,
    metrics: Sequence[str] = ("utility",),
    pair_on: Sequence[str] = PAIRS,
    *,
    by: str = "label",
    level: float = 0.95,
) -> pd.DataFrame:
    """Every other group − the control, for every metric: one family of comparisons, one row each.

    All rows together are what is corrected for. Where each metric is a question of its own, call once per metric.

    Returns:
        `by` and `metric`; `mean` of the differences, each base counting once;
        `low`, `high`: the Student-t interval of this comparison alone;
        `low_all`, `high_all`: the interval that holds for all rows at once with `level` (Bonferroni);
        `p` of no difference by Student's t, `p_holm` adjusted for all rows (Holm 1979), `p_sign_flip` the exact one of
        `sign_flip_p`, unadjusted and never below 2/2ⁿ; `n` and `unit`: what these are over, bases or, with one base,
        runs; `mean_runs`, `low_runs`, `high_runs`, `pairs`: the same difference with every (base, seed) pair as a value
        of its own, which is too narrow as far as `base_share`, the share of the variance that lies between bases, is
        not 0. Pairs in which either run lacks the metric are left out.

    Raises:
        ValueError: As `paired_difference`; or the control has no run, or nothing is beside it.
    """
    require(table, by)
    check_level(level)
    others = [name for name in table[by].drop_duplicates() if name != control]
    if len(others) == table[by].nunique() or not others:
        raise ValueError(f"expected runs of the control {control!r} and of another {by}, got {others} beside it.")
    if not metrics:
        raise ValueError("expected at least one metric, got none: name columns of the table, such as utility.")
    all_at_once = 1 - (1 - level) / (len(others) * len(metrics))
    rows = [
        {by: name, "metric": metric, **_compared(differences, metric, level, all_at_once)}
        for metric in metrics
        for name in others
        for differences in [paired_differences(table, name, control, metric, pair_on, by=by)]
    ]
    found = pd.DataFrame(rows)
    found.insert([*found].index("p") + 1, "p_holm", holm(found["p"]))
    return found


def holm(p_values: Iterable[float]) -> np.ndarray:
    """P-values adjusted step-down (Holm 1979): the i-th smallest of m times m − i + 1, none below one before it.

    To reject where the result is at most α errs once or more with a probability of α at most, whatever the
    dependence. Missing values stay missing and do not count.
    """
    p = np.array([*p_values], dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return p


def sign_flip_p(differences: Iterable[float]) -> float:
    """The exact two-sided p of "each difference is as likely −d as d": the share of sign patterns with as large a mean.

    It assumes no shape but symmetry, and cannot lie below 2/2ⁿ: .0625 for five values, .002 for ten. Up to 20 values;
    nan for none or more.
    """
    known = np.array([value for value in differences if not pd.isna(value)], dtype=float)
    if not 1 <= len(known) <= 20:
        return math.nan
    sums = np.zeros(1)
    for value in known[1:]:  # of the first the sign is free: a pattern and its opposite have one |sum|
        sums = np.concatenate([sums - value, sums + value])
    rounding = 1e-9 * np.abs(known).sum()
    return float(np.mean(np.abs(sums + known[0]) >= abs(known.sum()) - rounding))


def base_share(values: pd.DataFrame, metric: str) -> float:
    """The share of a metric's variance that lies between bases, the intraclass correlation (one-way ANOVA estimate).

    (MSB − MSW)/(MSB + (k₀ − 1)·MSW) with k₀ seeds a base, 0 where it is negative. At 0 runs count as independent; at 1
    another seed of a base says nothing new. nan without several bases, or several seeds on one, or any spread.
    """
    known = values.dropna(subset=[metric])
    if "model" not in known or not 1 < known["model"].nunique() < len(known):
        return math.nan
    groups = known.groupby("model")[metric]
    sizes, n = groups.size(), len(known)
    between = float((sizes * (groups.mean() - known[metric].mean()) ** 2).sum()) / (len(sizes) - 1)
    within = float(((known[metric] - groups.transform("mean")) ** 2).sum()) / (n - len(sizes))
    seeds = (n - float((sizes**2).sum()) / n) / (len(sizes) - 1)
    total = between + (seeds - 1) * within
    return max((between - within) / total, 0.0) if total > 0 else math.nan


def runs_by_pair(table: pd.DataFrame, name: Any, by: str, pair_on: Sequence[str]) -> pd.DataFrame:
    """The runs of one group, indexed by what they are paired on.

    Raises:
        ValueError: A pair comes more than once.
    """
    runs = table[table[by] == name].set_index([*pair_on])
    if twice := list(runs.index[runs.index.duplicated()]):
        raise ValueError(f"expected one run of {name!r} for each {tuple(pair_on)}, got more at {twice[0]}: filter.")
    return runs


def _compared(differences: pd.DataFrame, metric: str, level: float, all_at_once: float) -> dict[str, Any]:
    known = differences.dropna(subset=[metric])
    units = over_bases(known, [metric])[metric]
    mean, low, high, n = interval(units, level)
    _, low_all, high_all, _ = interval(units, all_at_once)
    mean_runs, low_runs, high_runs, pairs = interval(known[metric], level)
    return {
        **{"mean": mean, "low": low, "high": high, "low_all": low_all, "high_all": high_all},
        **{"p": _t_test(units), "p_sign_flip": sign_flip_p(units)},
        **{"n": n, "unit": "bases" if "model" in known and known["model"].nunique() > 1 else "runs"},
        **{"mean_runs": mean_runs, "low_runs": low_runs, "high_runs": high_runs, "pairs": pairs},
        "base_share": base_share(known, metric),
    }


def _t_test(values: "pd.Series[float]") -> float:
    """P of a mean of 0 by Student's t; of equal values 1 if they are 0, else 0; nan for less than two."""
    n, mean, spread = len(values), float(values.mean()), float(values.std())
    if n < 2:
        return math.nan
    return student_p(mean / spread * math.sqrt(n), n - 1) if spread else float(mean == 0)

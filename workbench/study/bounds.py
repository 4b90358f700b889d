"""Claims about every single run: which runs meet all bounds, and what that says of the next one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .costs import retention
from .statistics import require, share_interval

KEPT = ".kept"
ROUNDING = 1e-9  # .98 × .99 / .98 is not .99 in binary


def meets(
    table: pd.DataFrame, bounds: Mapping[str, tuple[str, float]], *, by: str = "label", level: float = 0.95
) -> pd.DataFrame:
    """How many runs of each group meet each bound, and how many all of them at once.

    A mean that meets a bound says nothing of single runs: this counts those.

    Args:
        table: One row per run, as `load_runs` returns it.
        bounds: Score → (">=" or "<=", number). `<score>.kept` is the share of the base's score that is left, score /
            `base.<score>`: `{"utility.kept": (">=", 0.99), "over_refusal": ("<=", 0.02)}`.
        by: What the groups are.
        level: Of the interval.

    Returns:
        By group: `runs`; a column for each bound, `utility.kept >= 0.99`, with the number of runs that meet it; `all`,
        the number that meets every one; `share`, `low`, `high`: the share of those with its exact interval
        (`share_interval`, which takes runs as independent: seeds of one base are not quite); and, where there is a
        column `model`, `bases` and `bases_all`, the number of them and of those whose every run meets all. A run that
        lacks a score does not meet its bound.

    Raises:
        ValueError: A column is missing, there is no bound, or a bound is not understood.
    """
    if not bounds:
        raise ValueError('expected at least one bound, got none: {"over_refusal": ("<=", 0.02)}, for example.')
    require(table, by)
    table = table.reset_index(drop=True)  # tables set below each other bring the same labels twice
    met = pd.DataFrame({_words(name, bound): _met(table, name, bound) for name, bound in bounds.items()})
    rows = {}
    for name, runs in table.groupby(by, sort=False, dropna=False):
        every = met.loc[runs.index].all(axis=1)
        share, low, high, n = share_interval(int(every.sum()), len(runs), level)
        row: dict[Any, Any] = {"runs": n, **met.loc[runs.index].sum(), "all": int(every.sum())}
        row |= {"share": share, "low": low, "high": high}
        if "model" in table:
            whole = every.groupby(runs["model"]).all()
            row |= {"bases": len(whole), "bases_all": int(whole.sum())}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def _met(table: pd.DataFrame, name: str, bound: tuple[str, float]) -> np.ndarray:
    sign, number = bound
    values = _values(table, name)
    return values >= number - ROUNDING if sign == ">=" else values <= number + ROUNDING  # nan is neither


def _values(table: pd.DataFrame, name: str) -> np.ndarray:
    if name in table or not name.endswith(KEPT):
        require(table, name)
        return pd.to_numeric(table[name]).to_numpy(float)
    score = name.removesuffix(KEPT)
    require(table, score, f"base.{score}")
    return retention(table[f"base.{score}"].to_numpy(float), table[score].to_numpy(float))


def _words(name: str, bound: tuple[str, float]) -> str:
    if len(bound) != 2 or bound[0] not in (">=", "<="):
        raise ValueError(f'expected (">=" or "<=", number) for {name!r}, got {bound!r}.')
    return f"{name} {bound[0]} {bound[1]:g}"

"""Items: what every prompt of the suites gave, kept as a table, and what changed on the same prompts."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.evaluation.intervals import Interval, interval_of
from workbench.evaluation.suites import Reading
from workbench.evaluation.tallies import Share

BEFORE, AFTER = "items_before.parquet", "items.parquet"
"""Where a run keeps the items of the model before and after it, if it is asked to."""


def item_table(readings: Mapping[str, Reading]) -> pd.DataFrame:
    """One row for each item of a suite and score: ``suite``, ``item``, ``score``, ``part``, ``whole``, ``answer``.

    The score of a suite is the sum of parts over the sum of wholes; ``item`` counts the suite's rows from 0; and
    ``answer`` is what was said, the same for all scores of an item, None where nothing was. Scores that are given as
    one number have no items.

    Args:
        readings: As `read_suites` gives them.
    """
    rows = [
        (suite, item, score, share.part, share.whole, answers[item] if answers else None)
        for suite, (measured, answers) in readings.items()
        for score, shares in measured.items()
        if isinstance(shares, Sequence)
        for item, share in enumerate(shares)
    ]
    return pd.DataFrame(rows, columns=["suite", "item", "score", "part", "whole", "answer"])


def keep_items(readings: Mapping[str, Reading], path: Path) -> None:
    """Write the table of items as Parquet, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    item_table(readings).to_parquet(partial)
    os.replace(partial, path)


def item_changes(before: pd.DataFrame, after: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """What changed in each score, with intervals over the prompts, which are the same on both sides.

    Two intervals of two scores hide most of what is known of their difference: prompts that are easy for one model are
    easy for the other. See `paired_interval`.

    Args:
        before: Items of one model, as `item_table` or a run's file gives them.
        after: Of another; of several runs the tables below each other, whose mean is then compared. The interval is
            over prompts and holds nothing of other runs.
        level: Of confidence.

    Returns:
        By ``suite`` and ``score``, of those that both have: ``before``, ``after``, ``change`` = after − before,
        ``low``, ``high`` (nan where there are too few items to tell), and ``n`` items.

    Raises:
        ValueError: The items of a suite are not the same.
    """
    sides = [
        {key: rows.droplevel([0, 1]) for key, rows in _by_item(table).groupby(level=["suite", "score"], sort=False)}
        for table in (before, after)
    ]
    shared = [key for key in sides[0] if key in sides[1]]
    if strange := [key for key in shared if list(sides[0][key].index) != list(sides[1][key].index)]:
        raise ValueError(f"expected the same items on both sides, got others in {strange[0]}: give the same suites.")
    was, now = ({key: [Share(*row) for row in side[key].to_numpy()] for key in shared} for side in sides)
    rows = [_change(was[key], now[key], level) for key in shared]
    columns = ["before", "after", "change", "low", "high", "n"]
    index = pd.MultiIndex.from_tuples(shared, names=["suite", "score"]) if shared else None
    return pd.DataFrame(rows, index, columns).astype({"n": int})


def paired_interval(before: Sequence[Share], after: Sequence[Share], level: float = 0.95) -> Interval | None:
    """The interval of after − before, two scores of the same items, from the interval of each and their correlation r.

    d = q − p with (l₁, u₁) of p and (l₂, u₂) of q: from d − √((q − l₂)² − 2r(q − l₂)(u₁ − p) + (u₁ − p)²) to
    d + √((u₂ − q)² − 2r(u₂ − q)(p − l₁) + (p − l₁)²) (Zou and Donner 2008, MOVER). Of rates this is Newcombe's (1998,
    Statistics in Medicine 17, 2635, method 10): Wilson's intervals, and r with his continuity correction.

    Args:
        before: What each item gave.
        after: What the same items gave in the same order.
        level: Of confidence.

    Returns:
        None where there are too few items to tell.
    """
    first, second = interval_of(before, level), interval_of(after, level)
    if first is None or second is None:
        return None
    p, q, r = _ratio(before), _ratio(after), _correlation(before, after)
    below, above = (q - second.low, first.high - p), (second.high - q, p - first.low)
    low, high = (math.sqrt(max(a * a - 2 * r * a * b + b * b, 0.0)) for a, b in (below, above))
    return Interval(q - p - low, q - p + high)


def _by_item(table: pd.DataFrame) -> pd.DataFrame:
    """Parts and wholes by suite, score and item, summed over runs."""
    return table.groupby(["suite", "score", "item"], sort=False)[["part", "whole"]].sum()


def _change(before: Sequence[Share], after: Sequence[Share], level: float) -> list[float]:
    p, q, found = _ratio(before), _ratio(after), paired_interval(before, after, level)
    return [p, q, q - p, *(found or (math.nan, math.nan)), len(before)]


def _ratio(shares: Sequence[Share]) -> float:
    whole = sum(share.whole for share in shares)
    return sum(share.part for share in shares) / whole if whole else math.nan


def _correlation(before: Sequence[Share], after: Sequence[Share]) -> float:
    """Of how far each item lies off the score; 0 where one side does not vary.

    Newcombe's correction takes 1/2n off the covariance of what is counted as 0 or 1, down to 0.
    """
    x, y = (_off(shares) for shares in (before, after))
    spread = math.sqrt(float((x * x).mean() * (y * y).mean()))
    together = float((x * y).mean())
    if all(share.whole == 1 and share.part in (0, 1) for share in before) and together > 0:
        together = max(together - 0.5 / len(x), 0.0)
    return together / spread if spread else 0.0


def _off(shares: Sequence[Share]) -> np.ndarray:
    part, whole = np.array(shares, float).T
    return (part - part.sum() / whole.sum() * whole) / whole.mean()

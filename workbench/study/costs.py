"""What one run paid for its safety: tax, retention, and the price of a point of safety."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .statistics import require


def alignment_tax(base: Any, aligned: Any) -> Any:
    """What alignment cost, Δ = Φ(θ_pre) − Φ(θ_safe) (OGPSA, arXiv 2602.07892).

    Takes numbers, arrays or Series, one score per task; the tax over tasks is the mean of the result.
    """
    return np.subtract(base, aligned)


def retention(base: Any, aligned: Any) -> Any:
    """The share of an ability that is left, s/s₀; nan where there was none to keep and none is found."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(aligned, base)


def retentions(table: pd.DataFrame, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """The share of each ability that each run of `load_runs` kept, score / `base.<score>`: one column per score.

    Without `scores`, all that end in `/correct_rate` and were measured on the base too. A base that had none of an
    ability gives nan: there was nothing to keep.
    """
    if scores is None:
        scores = [str(name) for name in table if str(name).endswith("/correct_rate") and f"base.{name}" in table]
    if not scores:
        raise ValueError(f"expected scores such as facts/correct_rate, got {[*table]}: name the abilities in scores.")
    base = [f"base.{name}" for name in scores]
    require(table, *scores, *base)
    kept = retention(table[base].to_numpy(float), table[[*scores]].to_numpy(float))
    return pd.DataFrame(kept, index=table.index, columns=[*scores]).replace(np.inf, np.nan)


def tax_per_safety_gain(base_ability: Any, ability: Any, base_safety: Any, safety: Any) -> Any:
    """Ability paid for each point of safety, (C₀ − C)/(S − S₀); nan where no safety was gained."""
    gain = np.subtract(safety, base_safety)
    return np.divide(alignment_tax(base_ability, ability), np.where(gain > 0, gain, np.nan))

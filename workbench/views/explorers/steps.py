"""What a training left of every block at every step, ready to be looked at: maps of shares, and frames."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# Column → what a map of it is called, and what its colour means.
QUANTITIES = {
    "leakage": ("Leakage ‖Uᵀδ‖/‖δ‖ of the realised step", "leakage (share of length)"),
    "removed_energy": ("Removed energy ‖Uᵀx‖²/‖x‖² of what is projected", "removed (share of energy)"),
    "gradient_energy": ("Energy of the gradient inside, ‖Uᵀg‖²/‖g‖²", "inside (share of energy)"),
}
FRAMES = ("gradient_energy", "step_u1", "step_u2", "realised_u1", "realised_u2")
DESCENT, SHADOW, KEPT = "descent −g", "its shadow UUᵀ(−g)", "−g, projected"
OPTIMIZER, REALISED = "the optimizer's step", "the realised step"
AXES = ["u1", "u2", "remainder"]


class BlockSteps:
    """A table of blocks × steps, as `GradientProjection.block_history` and a run's `blocks.parquet` hold it.

    Attributes:
        blocks: In the order of the table.
        steps: Ascending.
        quantities: Those of `QUANTITIES` that the table has.
        framed: Whether it tells where the steps lie.

    Args:
        table: Rows with ``step``, ``block`` and at least one of `QUANTITIES`; with all of `FRAMES` for frames.

    Raises:
        ValueError: A column is missing, the table is empty, or a block comes twice at a step.
    """

    def __init__(self, table: pd.DataFrame | Sequence[Mapping[str, Any]]) -> None:
        """Check and pivot the table, once."""
        rows = pd.DataFrame(table)
        self.quantities = [name for name in QUANTITIES if name in rows]
        if rows.empty or not {"step", "block"} <= {*rows} or not self.quantities:
            raise ValueError(
                f"expected rows with step, block and one of {', '.join(QUANTITIES)}, got {len(rows)} with {[*rows]}: "
                "pass the block_history of a GradientProjection that has trained."
            )
        if rows.duplicated(["step", "block"]).any():
            raise ValueError("a block comes twice at a step: pass the rows of one run.")
        self.blocks = rows["block"].drop_duplicates().astype(str).tolist()
        self.steps = sorted(int(step) for step in rows["step"].unique())
        self.framed = {*FRAMES} <= {*rows}
        names = [*self.quantities, *(name for name in FRAMES if self.framed and name not in self.quantities)]
        whole = rows.set_index(["block", "step"])[names].unstack("step").reindex(rows["block"].drop_duplicates())
        self._tables = {name: whole[name].to_numpy(float) for name in names}
        self._row = {block: i for i, block in enumerate(self.blocks)}
        self._column = {step: i for i, step in enumerate(self.steps)}

    def map(self, quantity: str, blocks: Sequence[str]) -> np.ndarray:
        """One quantity of some blocks; (n_blocks, n_steps), NaN where nothing was measured."""
        return self._tables[quantity][[self._row[block] for block in blocks]]

    def at(self, name: str, block: str, step: int) -> float:
        """One value."""
        return float(self._tables[name][self._row[block], self._column[step]])

    def frame(self, block: str, step: int) -> dict[str, list[float]]:
        """Name → coordinates (u₁, u₂, remainder) of gradient and step at unit length, and of the gradient's parts.

        See `workbench.geometry.frame.frame_coordinates`. What had no length is left out, and the optimizer's step where
        it is the realised one.
        """
        inside = self.at("gradient_energy", block, step)
        shadow, kept = math.sqrt(inside), math.sqrt(max(1 - inside, 0.0))
        vectors = {DESCENT: [shadow, 0.0, kept], SHADOW: [shadow, 0.0, 0.0], KEPT: [0.0, 0.0, kept]}
        for name, key in ((OPTIMIZER, "step"), (REALISED, "realised")):
            u1, u2 = (self.at(f"{key}_u{i}", block, step) for i in (1, 2))
            vectors[name] = [u1, u2, math.sqrt(max(1 - u1 * u1 - u2 * u2, 0.0))]
        if np.allclose(vectors[OPTIMIZER], vectors[REALISED], atol=1e-6, equal_nan=True):
            del vectors[OPTIMIZER]
        return {name: tip for name, tip in vectors.items() if np.isfinite(tip).all()}

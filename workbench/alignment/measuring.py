"""What a constraint measures, step by step, and how it joins the trainer's own metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Measurements:
    """The measurements of a training, and of those before it with the same callback.

    Attributes:
        history: One dict per optimizer step.
    """

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.history: list[dict[str, float]] = []
        self._pending: list[Mapping[str, float]] = []  # what has not been logged
        self._names: list[str] = []
        self._blocks: dict[str, list[Tensor]] = {"leakage": [], "removed_energy": []}  # each (n_blocks,) a step

    @property
    def n_steps(self) -> int:
        """Of the latest step."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def by_block(self) -> list[dict[str, Any]]:
        """``step``, ``block``, ``leakage`` and ``removed_energy`` of every block at every step."""
        steps = zip(self.history, *self._blocks.values(), strict=True)
        return [
            {"step": row["step"], "block": block, "leakage": leakage, "removed_energy": removed}
            for row, leaked, energies in steps
            for block, leakage, removed in zip(self._names, leaked.tolist(), energies.tolist(), strict=True)
        ]

    def note(self, step: int, metrics: Mapping[str, float], names: Sequence[str], **by_block: Tensor) -> None:
        """Keep what a step showed: of the whole, and ``leakage`` and ``removed_energy`` of each block."""
        self.history.append({"step": step, **metrics})
        self._pending.append(metrics)
        self._names = list(names)
        for key, values in by_block.items():
            self._blocks[key].append(values.float())

    def add_to(self, logs: dict[str, Any], state: Any) -> None:
        """Add the means since the last log, of what was measured, to a trainer's logs of a training step."""
        if "loss" not in logs:
            return  # an evaluation, or the summary of the whole training
        for key in {key: None for row in self._pending for key in row}:
            values = [row[key] for row in self._pending if not math.isnan(row.get(key, math.nan))]
            if values and key not in logs:
                logs[key] = sum(values) / len(values)
                state.log_history[-1][key] = logs[key]
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types and tensors."""
        blocks = {key: torch.stack(values) for key, values in self._blocks.items() if values}
        return {"history": self.history, "pending": self._pending, "names": self._names, "blocks": blocks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.history, self._pending, self._names = state["history"], state["pending"], state["names"]
        self._blocks |= {key: list(values) for key, values in state["blocks"].items()}

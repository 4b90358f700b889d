"""What a constraint measures, step by step, and how it joins the trainer's own metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from workbench.geometry.frame import frame_coordinates
from workbench.geometry.subspace import Subspace


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
        self._blocks: dict[str, list[Tensor]] = {}  # each (n_blocks,) a step

    @property
    def n_steps(self) -> int:
        """Of the latest step."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def by_block(self) -> list[dict[str, Any]]:
        """``step``, ``block`` and what `block_measures` names, of every block at every step."""
        columns = {key: torch.stack(values).tolist() for key, values in self._blocks.items()}
        return [
            {"step": row["step"], "block": block, **{key: values[i][j] for key, values in columns.items()}}
            for i, row in enumerate(self.history)
            for j, block in enumerate(self._names)
        ]

    def note(self, step: int, metrics: Mapping[str, float], names: Sequence[str], **by_block: Tensor) -> None:
        """Keep what a step showed: of the whole, and of each block, the same at all steps; (n_blocks,) each."""
        self.history.append({"step": step, **metrics})
        self._pending.append(metrics)
        self._names = list(names)
        for key, values in by_block.items():
            self._blocks.setdefault(key, []).append(values.float())

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

    def write_blocks(self, file: Path) -> None:
        """Write `by_block` as a table, numbers in float32; nothing where nothing was measured."""
        _write(self.by_block, self._blocks, file)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types and tensors."""
        blocks = {key: torch.stack(values) for key, values in self._blocks.items() if values}
        return {"history": self.history, "pending": self._pending, "names": self._names, "blocks": blocks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.history, self._pending, self._names = state["history"], state["pending"], state["names"]
        self._blocks = {key: list(values) for key, values in state["blocks"].items()}


class Listening(TrainerCallback):
    """A callback with one hook in the model, which is there while it trains, and with measurements of what it hears.

    Attributes:
        measurements: What joins the trainer's own metrics.
    """

    def __init__(self) -> None:
        """Nothing is heard yet."""
        self.measurements = Measurements()
        self._seen: list[Any] = []  # since the last step
        self._hook: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the measurements to the trainer's metrics."""
        self.measurements.add_to(logs, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was found."""
        self.close()

    def close(self) -> None:
        """Leave the model as it was found, also when training was interrupted."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._seen = None, []


def block_measures(subspace: Any, gradient: Any, projected: Any, step: Any, realised: Any) -> dict[str, Tensor]:
    """What is kept of every block at a step, each (n_blocks,).

    Args:
        subspace: The basis in which all were read.
        gradient: The reading of the gradient before any projection.
        projected: Of what was projected: the gradient, or the optimizer's step.
        step: Of the optimizer's step.
        realised: Of what became of it.

    Returns:
        ``leakage`` of the realised step; ``removed_energy`` of what was projected; ``gradient_energy``, each NaN where
        there is nothing of which it would be a share; and where the steps lie, at unit length, in the
        `frame_coordinates` of the gradient: ``step_u1``, ``step_u2``, ``realised_u1``, ``realised_u2``.
    """
    shares = {"leakage": realised, "removed_energy": projected, "gradient_energy": gradient}
    shares = {name: torch.where(r.energy.total > 0, r.energy.shares, torch.nan) for name, r in shares.items()}
    places = {"step": frame_coordinates(subspace, gradient, step)}
    places["realised"] = places["step"] if realised is step else frame_coordinates(subspace, gradient, realised)
    frames = {f"{name}_u{i}": u for name, place in places.items() for i, u in enumerate(place, 1)}
    return shares | {"leakage": shares["leakage"].sqrt()} | frames


def write_spectrum(subspace: Subspace, file: Path) -> None:
    """Write each ``block``'s ``n_params`` and, by ``direction``, its ``singular_value``; nothing without any."""
    rows = [
        {"block": name, "n_params": n_params, "direction": number, "singular_value": value}
        for name, n_params, values in zip(
            subspace.names, subspace.sizes.tolist(), subspace.singular_values.tolist(), strict=True
        )
        for number, value in enumerate(values, start=1)
    ]
    _write(rows, ["singular_value"], file)


def _write(rows: Sequence[Mapping[str, Any]], measured: Iterable[str], file: Path) -> None:
    import pandas as pd

    if rows:
        table = pd.DataFrame(rows).astype({"block": "category"} | dict.fromkeys(measured, "float32"))
        partial = file.with_name(file.name + ".partial")
        table.to_parquet(partial)
        partial.replace(file)

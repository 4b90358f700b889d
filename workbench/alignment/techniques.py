"""Techniques: what is done so that safety training costs less ability. Each is a parameter of `align`."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.corpora.columns import as_group
from workbench.models import trained_parameters
from workbench.study.runs import Run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback


class Technique:
    """Plain training; every technique overrides what it changes.

    A technique is used for one run. Several combine as a list, in the order given.
    """

    name = "plain"
    changes_weights = False  # whether `deploy` does
    counts_processes = False  # whether what it does depends on how many processes share a step's rows
    changes_model = False  # whether `prepare` does; whatever does comes first among several

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        return {}

    def data(self) -> "dict[str, Dataset]":
        """The datasets it reads besides the training set, for a record."""
        return {}

    def training_rows(self, batch_size: int) -> int:
        """How many of a batch's rows come from the training set."""
        return batch_size

    def mix(self, data: "Dataset", n_rows: int, seed: int) -> "Dataset":
        """The rows to train on, given the stage's own and how many will be drawn."""
        return data

    def prepare(self, model: torch.nn.Module, seed: int) -> None:
        """Turn the model in place into the one that is trained, before the first stage."""

    def release(self, model: torch.nn.Module) -> None:
        """Undo `prepare` after the last stage, however the run ended."""

    def callbacks(self) -> "list[TrainerCallback]":
        """What the trainer calls."""
        from transformers import TrainerCallback

        return [self] if isinstance(self, TrainerCallback) else []

    def deploy(self, model: torch.nn.Module, tokenizer: Any, start: Mapping[str, Tensor]) -> None:
        """Turn the trained weights in place into those that would be deployed; `start` are those before the run."""

    def withdraw(self, model: torch.nn.Module, tokenizer: Any) -> None:
        """Undo `deploy` but for the weights, which the run takes back itself: training goes on after an evaluation."""

    def close(self) -> None:
        """Leave the model as it was found, whether training ended well or not."""

    def report(self) -> dict[str, Any]:
        """What it found out in the run, for the record."""
        return {}

    def keep(self, run: Run) -> None:
        """Write what it measured in detail into the folder of a run that is about to be complete."""


class Replay(Technique):
    """General data mixed into the training set, so that on average `share` of every batch is reference rows.

    The general data mixing of OGPSA's comparison (2602.07892); the batch keeps its size, so fewer safety rows are seen
    per step.

    Args:
        references: Domain name → rows with the columns of the stage: ``prompt``/``completion`` under SFT,
            ``prompt``/``chosen``/``rejected`` under DPO. Domains are drawn alike.
        share: Of the rows that come from the references, in (0, 1).
    """

    name = "replay"

    def __init__(self, references: "Mapping[str, Dataset]", share: float = 0.5) -> None:
        """Check and keep the settings."""
        if not references or not all(len(rows) for rows in references.values()):
            raise ValueError("references must map at least one domain to a non-empty dataset.")
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}.")
        self.references, self.share = references, share

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        return {"share": self.share, "domains": list(self.references)}

    def data(self) -> "dict[str, Dataset]":
        """The reference rows."""
        return {f"reference/{domain}": rows for domain, rows in self.references.items()}

    def training_rows(self, batch_size: int) -> int:
        """How many of a batch's rows come from the training set."""
        return batch_size

    def mix(self, data: "Dataset", n_rows: int, seed: int) -> "Dataset":
        """`n_rows` rows, each from the references with probability `share`."""
        if "anchor" in data.column_names:  # contrastive groups: reference rows join as anchors without sides
            empty = dict.fromkeys(data.column_names)
            groups = {d: [{**empty, **as_group(row)} for row in rows] for d, rows in self.references.items()}
            return self._drawn(data, groups, n_rows, seed)
        columns = [c for c in ("prompt", "completion", "chosen", "rejected") if c in data.column_names]
        for domain, rows in self.references.items():
            if missing := sorted(set(columns) - set(rows.column_names)):
                raise ValueError(
                    f"Replay of {domain!r} lacks the columns {missing} of the training set. References for replay need "
                    f"the same columns as the stage, {columns}."
                )
        pools = {domain: list(rows.select_columns(columns)) for domain, rows in self.references.items()}
        return self._drawn(data.select_columns(columns), pools, n_rows, seed)

    def _drawn(self, data: "Dataset", pools: Mapping[str, list[dict[str, Any]]], n_rows: int, seed: int) -> "Dataset":
        from datasets import Dataset

        rng = random.Random(f"replay:{seed}")
        safety, domains = list(data), list(pools)
        order: list[int] = []
        mixed = []
        for _ in range(n_rows):
            if rng.random() < self.share:
                mixed.append(rng.choice(pools[rng.choice(domains)]))
            else:
                order = order or rng.sample(range(len(safety)), len(safety))
                mixed.append(safety[order.pop()])
        return Dataset.from_list(mixed)


@contextmanager
def prepared(model: torch.nn.Module, techniques: Sequence[Technique], seed: int) -> Iterator[None]:
    """The model as the techniques want it trained; whatever happens inside, it is released."""
    begun: list[Technique] = []
    try:
        for technique in techniques:
            technique.prepare(model, seed)
            begun.append(technique)
        yield
    finally:
        for technique in reversed(begun):
            technique.release(model)


@contextmanager
def restored_weights(model: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Copies of the trained weights, which the model gets back afterwards bit for bit."""
    kept = {name: p.detach().clone() for name, p in trained_parameters(model).items()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, p in trained_parameters(model).items():
                p.copy_(kept[name])


def as_techniques(technique: Technique | Sequence[Technique] | None) -> list[Technique]:
    """One technique, several, or none as a list, in their order but for what changes the model, which comes first.

    Raises:
        TypeError: Something else came.
    """
    techniques = [] if technique is None else [technique] if isinstance(technique, Technique) else list(technique)
    for t in techniques:
        if not isinstance(t, Technique):
            raise TypeError(
                "technique must be a workbench technique such as wb.GradientProjection(...), a list of them, or None "
                f"for plain training; got {type(t).__name__}."
            )
    return sorted(techniques, key=lambda t: not t.changes_model)

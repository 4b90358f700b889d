"""Reference rows: encoded once, drawn by a random generator of their own, cut into batches of like length."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.corpora.encoding import IGNORED, encode, pack_batch, pad_batch
from workbench.geometry.gradients import Batch, model_loss, undisturbed
from workbench.geometry.sharding import world

if TYPE_CHECKING:
    from datasets import Dataset

Draw = dict[str, list[list[int]]]  # domain → for each of its gradients, the numbers of its rows


class ReferenceRows:
    """The rows of every domain as a trainer's model reads them.

    All processes draw the same rows and share them out, so that a run does not depend on how many there are.

    Args:
        references: Domain name → demonstrations in TRL's columns.
        tokenizer: The trainer's.
        max_length: Tokens at which a row is cut.
        seed: Of the draws.
    """

    def __init__(self, references: "Mapping[str, Dataset]", tokenizer: Any, max_length: int, seed: int) -> None:
        """Encode all rows."""
        self.rows = {domain: encode(rows, tokenizer, max_length) for domain, rows in references.items()}
        self.rng = random.Random(seed)
        self._pad_token_id = tokenizer.pad_token_id
        self.packing = False
        # Domain → each row's loss and number of answer tokens before alignment.
        self.base: dict[str, Tensor] = {}

    def pack_if(self, wanted: bool | None, model: torch.nn.Module) -> None:
        """Pack rows from now on: if wanted, or, for None, if the model's attention gains by it.

        Raises:
            ValueError: It is wanted, but the model's loss on packed rows is not that on padded ones.
        """
        if wanted is None:
            wanted = "flash" in str(getattr(model.config, "_attn_implementation", ""))
        if wanted and not self._packs_exactly(model):
            raise ValueError(
                f"packing=True is not exact for {type(model).__name__}: its loss on packed rows differs from that on "
                "padded ones, as it does not tell rows apart by position_ids. Leave packing out."
            )
        self.packing = wanted

    def draw(self, n_rows: Mapping[str, int], n_gradients: int = 1) -> Draw:
        """Rows without repetition, the domain's dealt out over its gradients."""
        drawn = {d: self.rng.sample(range(len(self.rows[d])), n) for d, n in n_rows.items()}
        return {domain: [chosen[i::n_gradients] for i in range(n_gradients)] for domain, chosen in drawn.items()}

    def batches(
        self, draw: Draw, batch_size: int, device: torch.device
    ) -> dict[str, list[list[tuple[dict[str, Tensor], float]]]]:
        """This process's batches of each gradient, each with its share of all the gradient's labels.

        Rows of like length come together, so that little is padded, or are packed end to end. Every process gets as
        many batches as any other, as sharded models wait for each other; one with fewer rows repeats a row with no
        weight.
        """
        return {
            domain: [self._parts(domain, chosen, batch_size, device) for chosen in gradients]
            for domain, gradients in draw.items()
        }

    def whole(self, draw: Draw, device: torch.device) -> list[Batch]:
        """One batch of every gradient, domain after domain."""
        return [self._pad(domain, chosen, device) for domain, gradients in draw.items() for chosen in gradients]

    def all_batches(self, draw: Draw, batch_size: int, device: torch.device) -> list[Batch]:
        """All the rows, whatever process this is, in batches of like length."""
        return [
            self._pad(domain, part, device)
            for domain, gradients in draw.items()
            for part in _bucketed(self.rows[domain], [i for chosen in gradients for i in chosen], batch_size)
        ]

    # --- losses before alignment ------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure_base(self, model: torch.nn.Module, batch_size: int) -> None:
        """Keep every row's loss under the model as it is now: their sum over answer tokens, and how many these are."""
        device = next(model.parameters()).device
        with undisturbed(model):
            for domain, rows in self.rows.items():
                self.base[domain] = torch.zeros(len(rows), 2, dtype=torch.float64)
                for chosen in _bucketed(rows, range(len(rows)), batch_size):
                    batch = self._pad(domain, chosen, device)
                    self.base[domain][chosen] = _row_losses(model, batch).cpu()

    def base_losses(self, draw: Draw) -> Tensor:
        """The mean loss of every gradient's rows before alignment, domain after domain; (m,)."""
        sums = [self.base[d][chosen].sum(0) for d, gradients in draw.items() for chosen in gradients]
        return torch.stack([s[0] / s[1] for s in sums])

    # --- resuming -----------------------------------------------------------------------------------------------------

    @property
    def has_base(self) -> bool:
        """Whether `measure_base` has been called."""
        return bool(self.base)

    def state_dict(self) -> dict[str, Any]:
        """The losses before alignment, and the random state in JSON's types."""
        version, internal, gauss = self.rng.getstate()
        return {"base": self.base, "rng": [version, list(internal), gauss]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        version, internal, gauss = state["rng"]
        self.base = dict(state["base"])
        self.rng.setstate((version, tuple(internal), gauss))

    # --- parts --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _packs_exactly(self, model: torch.nn.Module) -> bool:
        device, tolerance = next(model.parameters()).device, 1e-4 if model.dtype == torch.float32 else 1e-2
        rows = [row for rows in self.rows.values() for row in rows[:2]]
        with undisturbed(model):
            padded = model_loss(model, pad_batch(rows, self._pad_token_id, device)).item()
            packed = model_loss(model, pack_batch(rows, device)).item()
        return math.isclose(padded, packed, rel_tol=tolerance, abs_tol=tolerance)

    def _parts(
        self, domain: str, chosen: list[int], batch_size: int, device: torch.device
    ) -> list[tuple[dict[str, Tensor], float]]:
        rank, n_processes = world()
        rows = self.rows[domain]
        total = sum(_n_labels(rows[i]) for i in chosen)
        ordered = sorted(chosen, key=lambda i: len(rows[i]["input_ids"]))
        mine = ordered[rank::n_processes]
        n_batches = math.ceil(math.ceil(len(chosen) / n_processes) / batch_size)
        parts = []
        for start in range(0, n_batches * batch_size, batch_size):
            part = mine[start : start + batch_size]
            share = sum(_n_labels(rows[i]) for i in part) / total
            parts.append((self._batch(domain, part or ordered[:1], device), share))
        return parts

    def _batch(self, domain: str, chosen: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        if self.packing:
            return pack_batch([self.rows[domain][i] for i in chosen], device)
        return self._pad(domain, chosen, device)

    def _pad(self, domain: str, chosen: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        return pad_batch([self.rows[domain][i] for i in chosen], self._pad_token_id, device)


def share_out(n: int, domains: Sequence[str]) -> dict[str, int]:
    """`n` rows over domains as evenly as they go; the first get one more."""
    return {domain: n // len(domains) + (i < n % len(domains)) for i, domain in enumerate(domains)}


def _bucketed(rows: Sequence[Mapping[str, list[int]]], chosen: Iterable[int], batch_size: int) -> list[list[int]]:
    ordered = sorted(chosen, key=lambda i: len(rows[i]["input_ids"]))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def _n_labels(row: Mapping[str, list[int]]) -> int:
    """How many tokens the loss counts; a model never predicts the first one."""
    return sum(label != IGNORED for label in row["labels"][1:])


def _row_losses(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Of every row the sum of its answer tokens' cross-entropies, in nats, and their number; (rows, 2)."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits, labels = model(**inputs, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
    counts = labels != IGNORED
    found = torch.nn.functional.cross_entropy(logits[counts].float(), labels[counts], reduction="none")
    losses = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
    losses[counts] = found.double()
    return torch.stack([losses.sum(1), counts.double().sum(1)], dim=1)

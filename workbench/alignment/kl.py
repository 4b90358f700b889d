"""KL to the model before training: what it says on reference rows is held where it was."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from workbench.alignment.measuring import Measurements
from workbench.alignment.metric import loss_scale_of
from workbench.alignment.starting import StartingWeights
from workbench.alignment.techniques import Technique
from workbench.corpora.encoding import encode, pad_batch
from workbench.geometry.gradients import add_gradients_, undisturbed
from workbench.models import trained_parameters

if TYPE_CHECKING:
    from datasets import Dataset


class KLToBase(TrainerCallback, Technique):
    """β·KL(π_base ‖ π_θ) on reference rows, added to every step's loss; π_base is the model before the run.

    As in learning without forgetting (Li & Hoiem 2016, 1606.09282) and the penalty of RLHF, with references instead of
    the model's own samples. The gradient is added before the trainer's own, so clipping and whatever projects the
    gradient see both. Of the base one copy of the trained parameters is kept, over all stages of a run; each step runs
    it and the model on `n_rows` more rows, without dropout. ``kl_to_base``, in nats per token, is logged.

    Args:
        references: Domain name → rows with ``prompt`` and ``completion``, ``prompt`` and ``chosen``, or ``text``; rows
            are drawn from all of them together, and every token counts.
        beta: β.
        n_rows: Rows of each step.
        max_length: Tokens of a row.

    Raises:
        ValueError: A domain is empty, or a number is out of range.
    """

    name = "kl"

    def __init__(
        self, references: "Mapping[str, Dataset]", beta: float = 2.0, n_rows: int = 16, max_length: int = 1024
    ) -> None:
        """Check and keep the settings."""
        if not references or not all(len(rows) for rows in references.values()):
            raise ValueError("references must map at least one domain to a non-empty dataset.")
        if beta <= 0 or n_rows < 1:
            raise ValueError(f"beta must be positive and n_rows at least 1, got {beta} and {n_rows}.")
        self.references, self.beta, self.n_rows, self.max_length = dict(references), beta, n_rows, max_length
        self.measurements = Measurements()
        self.base = StartingWeights("KLToBase", "kl_base.safetensors")
        self._rows: list[dict[str, list[int]]] = []

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        settings = {"beta": self.beta, "n_rows": self.n_rows, "max_length": self.max_length}
        return settings | {"domains": list(self.references)}

    def data(self) -> "dict[str, Dataset]":
        """The reference rows."""
        return {f"reference/{domain}": rows for domain, rows in self.references.items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy the trained parameters, once for all stages, and encode the rows; a resumed training reads its copy.

        Raises:
            ValueError: The parameters are sharded, or DeepSpeed keeps the gradients to itself.
            FileNotFoundError: The checkpoint that training resumes from has no copy.
        """
        self.base.keep(args, state, model)
        tokenizer = kwargs["processing_class"]
        self._loss_scale = loss_scale_of(kwargs.get("optimizer"))
        if not self._rows:
            self._rows = [row for rows in self.references.values() for row in encode(rows, tokenizer, self.max_length)]
        self._pad = tokenizer.pad_token_id

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the gradient of the penalty where the trainer's will be added."""
        rng = random.Random(f"kl:{args.seed}:{state.global_step}")  # by the step, so that a resumed run draws the same
        chosen = rng.sample(self._rows, min(self.n_rows, len(self._rows)))
        batch = pad_batch(chosen, self._pad, model.device)
        batch.pop("labels")
        parameters = trained_parameters(model)
        with undisturbed(model), torch.enable_grad():
            base = self.base.logits(model, batch)
            divergence = kl_divergence(base, model(**batch, use_cache=False).logits, batch["attention_mask"])
            (self._loss_scale() * self.beta * divergence).backward()
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        add_gradients_(parameters, gradients)
        self.measurements.note(state.global_step + 1, {"kl_to_base": divergence.item()}, [])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the copy beside the checkpoint."""
        self.base.save(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the divergence to the trainer's metrics."""
        self.measurements.add_to(logs, state)


def kl_divergence(base: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """KL(p ‖ q) of the next token, in nats, the mean over the positions of a mask.

    Args:
        base: Logits of p, (rows, tokens, vocabulary).
        logits: Logits of q, of the same shape.
        mask: 1 where a position counts, (rows, tokens).
    """
    log_p, log_q = (F.log_softmax(values[mask.bool()].float(), dim=-1) for values in (base, logits))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

"""Elastic weight consolidation: each weight is held where it was, as firmly as the references need it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from workbench.alignment.measuring import Measurements
from workbench.alignment.metric import loss_scale_of
from workbench.alignment.references import ReferenceRows, share_out
from workbench.alignment.resuming import checkpoint_folder, load_state, save_state
from workbench.alignment.support import under_deepspeed
from workbench.alignment.techniques import Technique
from workbench.geometry.fisher import fisher_diagonal
from workbench.geometry.gradients import add_gradients_, local_shard
from workbench.geometry.sharding import shard_reducer
from workbench.models import trained_parameters

if TYPE_CHECKING:
    from datasets import Dataset


class EWC(TrainerCallback, Technique):
    """λ/2 Σᵢ Fᵢ(θᵢ − θ₀ᵢ)², added to the loss (elastic weight consolidation, Kirkpatrick et al. 2017, 1612.00796).

    θ₀ are the weights before the run, over all its stages, and F the diagonal of the Fisher information on references
    at θ₀: see `fisher_diagonal`. F is divided by its mean over all trained parameters, so that λ is the curvature that
    a parameter of mean importance gets, whatever the model's size, its confidence and the rows' length; with F = 1 it
    would be L2-SP (1802.01483). The raw mean is reported.

    As a part of the loss, the penalty's gradient λF(θ − θ₀) joins the trainer's before that is clipped, and is there
    for whatever projects the gradient. It is computed once an optimizer step, on weights, and costs no forward: two
    copies of the trained parameters are kept, and F is taken by a few backwards before the first step.
    ``ewc_penalty``, in nats, is logged as it is before each step. Under DDP and FSDP2 every process takes all rows.

    Args:
        references: Domain name → demonstrations in TRL's columns of what must not be lost.
        strength: λ; 0 is plain training.
        labels: Of whose answers the gradients are taken: of all that the ``"model"`` may give, by their chances (the
            Fisher information), or of the references' own, ``"data"`` (the empirical Fisher).
        n_samples: Reference rows, over all domains together.
        max_length: Tokens at which a reference row is cut.
        batch_size: Rows of one backward for the Fisher information; the empirical one takes single rows.
        seed: Of the drawn rows and of the estimate.

    Raises:
        ValueError: A domain is empty, or a setting is out of range.
    """

    name = "ewc"

    def __init__(
        self,
        references: "Mapping[str, Dataset]",
        strength: float = 1.0,
        *,
        labels: Literal["model", "data"] = "model",
        n_samples: int = 256,
        max_length: int = 1024,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings; nothing is computed before training begins."""
        sizes = {domain: len(rows) for domain, rows in references.items()}
        if not sizes or not all(sizes.values()):
            raise ValueError(f"references must map at least one domain to a non-empty dataset, got {sizes}.")
        if strength < 0 or n_samples < len(sizes) or batch_size < 1 or labels not in ("model", "data"):
            raise ValueError(
                'strength must not be negative, labels "model" or "data", n_samples at least one row for each of the '
                f"{len(sizes)} domains and batch_size 1, got {strength}, {labels!r}, {n_samples} and {batch_size}."
            )
        self.references, self.strength, self.labels = dict(references), strength, labels
        self.n_samples, self.max_length, self.batch_size, self.seed = n_samples, max_length, batch_size, seed
        self.n_rows = {d: min(n, sizes[d]) for d, n in share_out(n_samples, list(sizes)).items()}
        self.measurements = Measurements()
        self.fisher: dict[str, Tensor] = {}  # by parameter name, of mean 1
        self._start: dict[str, Tensor] = {}
        self._raw_mean = 0.0

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        settings = {"strength": self.strength, "labels": self.labels, "n_samples": self.n_samples}
        settings |= {"max_length": self.max_length, "batch_size": self.batch_size, "reference_seed": self.seed}
        return settings | {"domains": list(self.references)}

    def data(self) -> "dict[str, Dataset]":
        """The reference rows."""
        return {f"reference/{domain}": rows for domain, rows in self.references.items()}

    def report(self) -> dict[str, Any]:
        """The mean that F was divided by."""
        return {"fisher_mean": self._raw_mean}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep θ₀ and take F, once for all stages; a resumed training reads both.

        Raises:
            ValueError: Gradients are out of reach (DeepSpeed, FSDP1), or all of the references' are zero.
            FileNotFoundError: The checkpoint that training resumes from has neither.
        """
        parameters = trained_parameters(model)
        if under_deepspeed(args) or any(getattr(p, "_is_flat_param", False) for p in parameters.values()):
            raise ValueError(
                "EWC adds to the gradients of single parameters, which DeepSpeed and FSDP1 keep to themselves. Train "
                "in one process, or under DDP or FSDP2."
            )
        self._loss_scale = loss_scale_of(kwargs.get("optimizer"))
        self._reduce = shard_reducer(parameters.values())
        if state.global_step:
            kept, _ = load_state(checkpoint_folder(args, state), name="ewc", technique="EWC")
            self._raw_mean = kept["raw_mean"]
            device = next(iter(parameters.values())).device
            self._start, self.fisher = ({n: t.to(device) for n, t in kept[key].items()} for key in ("start", "fisher"))
        elif not self._start:
            self._start = {name: local_shard(p.detach()).clone() for name, p in parameters.items()}
            self._take_fisher(model, parameters, kwargs["processing_class"])

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the penalty's gradient where the trainer's will be added."""
        parameters, total = trained_parameters(model), torch.zeros((), dtype=torch.float64)
        scale = self.strength * self._loss_scale()
        for name, p in parameters.items():
            drift = local_shard(p) - self._start[name]
            pull = self.fisher[name] * drift
            total += (pull * drift).sum(dtype=torch.float64).cpu()
            if self.strength:
                add_gradients_(parameters, {name: pull.mul_(scale)})
        penalty = self.strength / 2 * self._sum(total)
        self.measurements.note(state.global_step + 1, {"ewc_penalty": penalty}, [])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep θ₀ and F beside the checkpoint."""
        kept = {"start": self._start, "fisher": self.fisher, "raw_mean": self._raw_mean}
        save_state(checkpoint_folder(args, state), kept, name="ewc")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the penalty to the trainer's metrics."""
        self.measurements.add_to(logs, state)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _take_fisher(self, model: Any, parameters: Mapping[str, torch.nn.Parameter], tokenizer: Any) -> None:
        rows = ReferenceRows(self.references, tokenizer, self.max_length, self.seed)
        generator = torch.Generator().manual_seed(self.seed) if self.labels == "model" else None
        batches = rows.all_batches(rows.draw(self.n_rows), self.batch_size if generator else 1, model.device)
        self.fisher = fisher_diagonal(model, batches, parameters, generator)
        sums = [torch.stack([f.sum(dtype=torch.float64).cpu() for f in self.fisher.values()]).sum()]
        sums += [torch.tensor(float(sum(f.numel() for f in self.fisher.values())), dtype=torch.float64)]
        total, n_params = (self._sum(value) for value in sums)
        if not total > 0:
            raise ValueError(
                "The references' gradients are all zero, so that no weight matters to them: give references with other "
                "answers, on which the model may err."
            )
        self._raw_mean = total / n_params
        for f in self.fisher.values():
            f /= self._raw_mean

    def _sum(self, value: Tensor) -> float:
        return (self._reduce(value) if self._reduce else value).item()

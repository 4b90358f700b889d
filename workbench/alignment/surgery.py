"""Gradient surgery: safety and abilities pull together, each freed of what pulls against the other."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from workbench.alignment.kl import kl_divergence
from workbench.alignment.projection import GradientProjection
from workbench.alignment.refreshing import Refresh
from workbench.alignment.starting import StartingWeights
from workbench.corpora.encoding import IGNORED
from workbench.geometry.cone import deconflicted_sum
from workbench.geometry.gradients import Batch

if TYPE_CHECKING:
    from datasets import Dataset

Rule = Literal["pcgrad", "safegrad"]
_ROUNDING = torch.finfo(torch.float32).eps  # of g: shorter gradients, as of the KL to itself, have no direction


class GradientSurgery(GradientProjection):
    """Two kinds of gradients at every step, the training's and the references', added after conflicts are removed.

    With g of the training batch and R_k of reference domain k, fresh at every step, over all parameters as one vector:

    - ``rule="pcgrad"`` (Yu et al. 2020, 2001.06782, algorithm 1): the tasks are g and w/m · R_k for each of m domains.
      Each is freed of its parts against all others, in random order; the optimizer gets their sum.
    - ``rule="safegrad"`` (Yi et al. 2025, 2508.07172): with r = mean_k R_k, g is freed of its part against r where they
      point apart, g ← g − min(0, gᵀr)/‖r‖² r, and the optimizer gets g + w r. Give ``loss="kl"`` for their KL term.

    Where nothing conflicts, both are the gradient of L + w · mean_k L_k, that of replay; ``weight=0`` is plain
    training, measured. To remove conflicts without adding the references' gradients (A-GEM and GEM) take
    ``GradientProjection(side="gradient", when="conflict", scope="global")``.

    Roles differ from the papers'. SafeGrad fine-tunes an aligned model on a user's task and protects *safety*: its
    alignment gradient is KL to the aligned model on refusals. Here safety training is the task that may do harm, and
    what is protected are *abilities*: the second gradient is taken on references, its KL to the model before the run.
    PCGrad's tasks are equals that start together; here the abilities are learned already.

    The sum is clipped as a whole, before the optimizer, whose momentum and scaling act on it as they do on any
    gradient. Measured, logged, resumed and sharded as `GradientProjection`; ``conflict_rate`` is the share of domains
    that the training's gradient points against.

    Args:
        references: Domain name → demonstrations in TRL's columns of what must not be lost.
        rule: ``"pcgrad"`` or ``"safegrad"``.
        weight: w, of all domains together.
        loss: Of the references: ``"cross_entropy"``, or ``"kl"``, KL(π_base ‖ π_θ) over answer tokens with the model
            before the run, of which one copy of the trained parameters is kept (one process or DDP).
        references_in_batch: As in `GradientProjection`, for cross-entropy alone.
        target_parameters: As in `GradientProjection`; the references' gradients reach these alone.
        n_samples: Reference rows per step, over all domains together.
        max_length: Tokens at which a reference row is cut.
        batch_size: Most rows in one backward.
        seed: Of the drawn rows and the random orders.

    Raises:
        ValueError: References are empty, or a setting is out of range, or contradicts another.
    """

    def __init__(
        self,
        references: "Mapping[str, Dataset]",
        rule: Rule = "pcgrad",
        *,
        weight: float = 1.0,
        loss: Literal["cross_entropy", "kl"] = "cross_entropy",
        references_in_batch: tuple[int, int] | None = None,
        target_parameters: str | Sequence[str] | None = None,
        n_samples: int = 16,
        max_length: int = 1024,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings; nothing is computed before training begins."""
        if rule not in get_args(Rule) or loss not in ("cross_entropy", "kl"):
            raise ValueError(
                f'rule must be one of {get_args(Rule)} and loss "cross_entropy" or "kl", got {rule!r} and {loss!r}.'
            )
        if weight < 0 or (loss == "kl" and references_in_batch):
            raise ValueError(
                'weight must not be negative, and loss="kl" takes passes of its own: leave references_in_batch out. '
                f"Got weight={weight}, loss={loss!r} and references_in_batch={references_in_batch}."
            )
        super().__init__(
            references,
            side="gradient",
            scope="global",
            when="conflict",
            refresh=1,
            references_in_batch=references_in_batch,
            target_parameters=target_parameters,
            n_samples=n_samples,
            max_length=max_length,
            packing=False if loss == "kl" else None,
            batch_size=batch_size,
            seed=seed,
        )
        self.rule, self.weight, self.loss = rule, weight, loss
        self.name = rule
        self.base = StartingWeights("GradientSurgery", f"{rule}_base.safetensors")

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        settings = super().parameters()
        names = ("references_in_batch", "target_parameters", "n_samples", "max_length", "batch_size", "domains")
        kept = {name: settings[name] for name in (*names, "reference_seed")}
        return {"rule": self.rule, "weight": self.weight, "loss": self.loss, **kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As `GradientProjection`, and keep the model before the run where its KL is asked for."""
        if self.loss == "kl":
            self.base.keep(args, state, kwargs["model"])
        super().on_train_begin(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep beside the checkpoint what a resumed training goes on with."""
        super().on_save(args, state, control, **kwargs)
        if self.loss == "kl":
            self.base.save(args, state)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _build_refresh(self, args: Any, model: torch.nn.Module, optimizer: Any) -> Refresh:
        refresh = super()._build_refresh(args, model, optimizer)
        if self.loss == "kl":
            refresh.loss = self._divergence
        return refresh

    def _divergence(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        answered = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))  # where each is predicted
        return kl_divergence(self.base.logits(model, inputs), model(**inputs, use_cache=False).logits, answered)

    def _project(self, gradients: Mapping[str, Tensor], step: int) -> None:
        """Make the sum of the freed tasks of the gradient, which has been read."""
        reading, subspace = self._gradient, self.subspace
        m = len(subspace.domains)
        slopes = subspace.slopes(reading)[0]
        gram = torch.zeros(1 + m, 1 + m, dtype=torch.float64)  # of g and all R_k
        gram[0, 0], gram[0, 1:], gram[1:, 0] = reading.total[0], slopes, slopes
        gram[1:, 1:] = (subspace.generators.mT @ reading.grams @ subspace.generators)[0]
        if not gram.isfinite().all():
            return  # a float16 gradient that overflowed: its step will be skipped
        tasks, orders = self._tasks(m, step)
        felt = gram.diagonal() > _ROUNDING**2 * gram[0, 0]
        gram *= felt[:, None] * felt
        weights = deconflicted_sum(tasks @ gram @ tasks.T, orders) @ tasks
        if weights[0] != 1:
            torch._foreach_mul_(list(gradients.values()), weights[0].item())
        subspace.subtract_(gradients, -subspace.mixture(weights[1:]))

    def _tasks(self, m: int, step: int) -> tuple[Tensor, list[list[int]]]:
        """The tasks in terms of g and all R_k, (n, 1 + m); and for each, in order, those that it is freed of."""
        if self.rule == "safegrad":
            both = torch.zeros(2, 1 + m, dtype=torch.float64)
            both[0, 0], both[1, 1:] = 1, self.weight / m
            return both, [[1], []]
        rng = random.Random(f"{self.seed}:{step}")  # by the step: the same in all processes and when resumed
        orders = [rng.sample(others := [j for j in range(1 + m) if j != i], len(others)) for i in range(1 + m)]
        return torch.diag(torch.tensor([1.0, *[self.weight / m] * m], dtype=torch.float64)), orders

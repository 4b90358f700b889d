"""The null space of activations as a constraint on training: the same callback with another basis."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.alignment.projection import GradientProjection
from workbench.alignment.refreshing import ActivationRefresh, Refresh

if TYPE_CHECKING:
    from datasets import Dataset


class NullSpaceProjection(GradientProjection):
    """Keep linear layers answering reference inputs as they did: δW ← δW(I − PᵀP).

    P spans what reference rows feed into a layer (GPM, 2103.09762; the constraint of NSPO, 2512.11391, here under SFT
    and DPO). Embeddings, norms and biases train freely. Measured and logged as by `GradientProjection`.

    Args:
        references: Domain name → demonstrations in TRL's columns of what must not be lost.
        energy: The share of each layer's input energy that P holds, in (0, 1]: the more, the less can be learned.
        side: ``"update"`` projects the optimizer's step, exactly; ``"gradient"`` the gradient, as NSPO does; ``"none"``
            measures.
        refresh: Optimizer steps between two fits; None fits once, before the first step.
        target_parameters: As in `GradientProjection`.
        n_samples: Reference rows per fit, over all domains together.
        max_length: Tokens at which a reference row is cut.
        batch_size: Most rows in one forward.
        seed: Of the drawn rows.

    Raises:
        ValueError: References are empty, or a setting is out of range.
    """

    def __init__(
        self,
        references: "Mapping[str, Dataset]",
        *,
        energy: float = 0.95,
        side: Literal["update", "gradient", "none"] = "update",
        refresh: int | None = None,
        target_parameters: str | Sequence[str] | None = None,
        n_samples: int = 64,
        max_length: int = 1024,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings; nothing is computed before training begins."""
        if not 0 < energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {energy}.")
        super().__init__(
            references,
            side=side,
            refresh=sys.maxsize if refresh is None else refresh,
            target_parameters=target_parameters,
            n_samples=n_samples,
            max_length=max_length,
            batch_size=batch_size,
            seed=seed,
        )
        self.energy = energy
        self.name = "null_space"

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        names = ("side", "target_parameters", "n_samples", "max_length", "batch_size", "domains", "reference_seed")
        settings = super().parameters()
        refresh = None if self.refresh == sys.maxsize else self.refresh
        return {"energy": self.energy, "refresh": refresh, **{name: settings[name] for name in names}}

    def _build_refresh(self, args: Any, model: torch.nn.Module, optimizer: Any) -> Refresh:
        if self._reduce is not None:
            raise ValueError("NullSpaceProjection does not hold on sharded parameters (FSDP2): train with DDP.")
        build = partial(ActivationRefresh, model, self._parameters, self._rows, None, self.n_rows, self.n_gradients)
        return build(self.batch_size, interval=int(self.refresh), energy=self.energy)

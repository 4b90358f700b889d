"""Restoring: a small step, outside the optimizer, that undoes the drift of reference losses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.geometry.fitting import Reduce
from workbench.geometry.subspace import Subspace

ROUNDING = 1e-5  # nats, by which two passes over the same rows in float32 may differ: no violation


@dataclass(frozen=True)
class Restore:
    """How strongly drift is undone after each optimizer step.

    A domain is violated where its loss L_k lies above its value before alignment on the same rows. With its gradient
    R_k and v = Σ R_k over violated domains, the step δ becomes δ − ρ‖δ‖ v/‖v‖: fixed size. With a `tolerance` τ, the
    violations viol_k = max(0, L_k − L_k(θ₀)) scale it, ρ min(1, mean_k viol_k/τ), and v is divided by the root of its
    own running second moment. Nothing enters the optimizer's moments, and where nothing is violated no step is taken.

    Attributes:
        strength: ρ, the restoring step's length in those of the optimizer's.
        tolerance: τ in nats; None is fixed size, without the division.
        decay: Of the running second moment.
        floor: The least divisor, in root mean squares of all.
    """

    strength: float
    tolerance: float | None = None
    decay: float = 0.95
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive = self.floor > 0 and (self.tolerance is None or self.tolerance > 0)
        if self.strength < 0 or not 0 < self.decay < 1 or not positive:
            raise ValueError(
                "restore needs a strength of at least 0, a decay in (0, 1), a floor above 0 and a tolerance above 0 or "
                f"None, got {self}."
            )

    def size(self, violations: Tensor) -> float:
        """ρ_t for the violation of every domain; 0 where nothing is violated."""
        if not (violations > ROUNDING).any():
            return 0.0
        scale = 1.0 if self.tolerance is None else min(1.0, violations.clamp(min=0).mean().item() / self.tolerance)
        return self.strength * scale


class Restoring:
    """The running second moment of one training, and the step."""

    def __init__(self, settings: Restore, reduce: Reduce | None) -> None:
        """Start with an empty moment."""
        self.settings, self.reduce = settings, reduce
        self.moments: dict[str, Tensor] = {}
        self.n_steps = 0

    def step_(
        self, parameters: Mapping[str, Tensor], subspace: Subspace, violations: Tensor, step_length: float
    ) -> float:
        """Move the parameters in place.

        Args:
            parameters: By name, the local shards.
            subspace: Fitted from the gradients R_k, which lie in it.
            violations: L_k − L_k(θ₀) of each of the subspace's domains, in nats.
            step_length: ‖δ‖.

        Returns:
            ρ_t.
        """
        size = self.settings.size(violations)
        if not size or not step_length or not subspace.rank:
            return 0.0
        weights = subspace.mixture((violations > ROUNDING).double())
        length = torch.einsum("bi,bij,bj->", weights, subspace.grams, weights).sqrt().item()
        if not length:
            return 0.0  # the losses are higher, but flat here
        if self.settings.tolerance is None:
            subspace.subtract_(parameters, weights * (size * step_length / length))
            return size
        self._preconditioned_(parameters, subspace, weights, size * step_length)
        return size

    def _preconditioned_(
        self, parameters: Mapping[str, Tensor], subspace: Subspace, weights: Tensor, length: float
    ) -> None:
        chosen = {name: parameters[name] for name in subspace.layout.sizes}
        pull = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in chosen.items()}
        subspace.subtract_(pull, -weights)
        if not self.moments:
            self.moments = {n: torch.zeros_like(v) for n, v in pull.items()}
        self.n_steps += 1
        v, moments = list(pull.values()), list(self.moments.values())
        torch._foreach_mul_(moments, self.settings.decay)
        torch._foreach_addcmul_(moments, v, v, 1 - self.settings.decay)
        correction = 1 - self.settings.decay**self.n_steps
        mean = self._sum([m.sum() for m in moments]) / correction / subspace.n_params
        for pulled, moment in zip(v, moments, strict=True):
            pulled.div_((moment / correction).sqrt_().clamp_min_(self.settings.floor * mean**0.5))
        norm = self._sum([n.square() for n in torch._foreach_norm(v)]) ** 0.5
        torch._foreach_add_(list(chosen.values()), v, alpha=-length / norm)

    def _sum(self, parts: list[Tensor]) -> float:
        total = torch.stack(parts).sum(dtype=torch.float64)
        return (self.reduce(total) if self.reduce else total).item()

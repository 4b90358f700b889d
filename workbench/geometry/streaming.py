"""Summaries of a stream of gradients in bounded memory, from which a subspace can be fitted at any time."""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from workbench.geometry.gradients import ReferenceGradients, wide
from workbench.geometry.subspace import Scope, group_parameters

# Columns rotated at a time: the working memory of a shrink is `size` rows of so many.
_CHUNK = 1 << 18


class SlidingWindow:
    """The latest `size` gradients of a stream.

    Memory is `size` times that of the gradient in fp32 (or wider, if it is), taken at the first update.

    Args:
        size: How many gradients are kept.

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, size: int) -> None:
        """Nothing is allocated yet."""
        self.size = _positive(size)
        self._seen = 0
        self._domains: list[str] = []
        self._rows: dict[str, Tensor] = {}

    def update(self, gradient: Mapping[str, Tensor], domain: str = "stream") -> None:
        """Keep a copy of a gradient, in the place of the oldest once there are `size`.

        Args:
            gradient: By parameter name.
            domain: Its domain, which `gradients` hands on.

        Raises:
            ValueError: Names or shapes differ from those seen before, or there is no parameter.
            FloatingPointError: The gradient holds NaN or infinity. The window is then as it was.
        """
        self._rows = _fitting_rows(self._rows, gradient, self.size)
        place = self._seen % self.size
        for name, rows in self._rows.items():
            rows[place].copy_(gradient[name])
        self._domains[place : place + 1] = [domain]
        self._seen += 1

    def gradients(self) -> ReferenceGradients:
        """What is kept, as views that the next update changes; a gradient stays in its row, so rows are in no order.

        Raises:
            ValueError: There was no gradient yet.
        """
        return _views(self._rows, tuple(self._domains))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and the rows by parameter name, not copied: with it a resumed run goes on bit for bit."""
        return {"size": self.size, "seen": self._seen, "domains": list(self._domains), "rows": dict(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, from a copy of its rows.

        Raises:
            ValueError: It is the state of a window of another size.
        """
        _require_settings(state, size=self.size)
        self._seen, self._domains = state["seen"], list(state["domains"])
        self._rows = {name: rows.clone() for name, rows in state["rows"].items()}


class FrequentDirections:
    """A sketch S of all gradients G of a stream: `size` rows that hold what is frequent among them.

    Frequent Directions (Liberty 2013, 1206.0594; Ghashami et al. 2016, 1501.01711), block by block: rows are added
    while there is room; then S is rotated onto its singular directions, all σᵢ² are lowered by the smallest, σ_ℓ², and
    so at least one row is free again. With ℓ = `size`, for every k < ℓ,

        0 ⪯ GᵀG − SᵀS ⪯ ‖G − G_k‖²_F / (ℓ − k) · I,

    G_k being the best approximation of G of rank k: what most gradients share stays, what few have goes. Up to ℓ
    gradients are kept as they are.

    The lengths of rows carry the weights of directions, so a subspace must be fitted to them without scaling: its
    basis is then that of the leading right singular vectors of S. Scaling, which is meant to let no gradient count more
    because its loss is larger, belongs before the sketch: that is `normalise`.

    Memory is ℓ times that of the gradient in fp32 (or wider, if it is), taken at the first update, besides ℓ × 2¹⁸
    numbers while a block shrinks, which takes 2ℓ² multiplications per parameter, at nearly every gradient after ℓ.

    Args:
        size: Rows per block, ℓ.
        scope: What a block is, as in `Subspace`.
        normalise: Scale each gradient to unit length in each block.

    Attributes:
        lost: Σ σ_ℓ² over all shrinks, by block: no direction of unit length lost more of ‖Gx‖² than this.

    Raises:
        ValueError: `size` is below 1, or `scope` unknown.
    """

    def __init__(self, size: int, scope: Scope = "tensor", normalise: bool = True) -> None:
        """Nothing is allocated yet."""
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {get_args(Scope)}, got {scope!r}.")
        self.size, self.scope, self.normalise = _positive(size), scope, normalise
        self.lost: dict[str, float] = {}
        self._filled: dict[str, int] = {}
        self._rows: dict[str, Tensor] = {}

    def update(self, gradient: Mapping[str, Tensor], domain: str = "stream") -> None:
        """Add a gradient to the sketch; where a block of it is zero, that block stays as it is.

        Args:
            gradient: By parameter name.
            domain: Taken so that a sketch can stand in for a window; directions mix the domains, so it is not kept.

        Raises:
            ValueError: Names or shapes differ from those seen before, or there is no parameter.
            FloatingPointError: The gradient holds NaN or infinity. The sketch is then as it was.
        """
        self._rows = _fitting_rows(self._rows, gradient, self.size)
        for block, names in group_parameters(self._rows, self.scope).items():
            filled, length = self._filled.get(block, 0), _length([gradient[name] for name in names])
            if length == 0:
                continue
            if filled == self.size:
                filled, cut = _shrink_([self._rows[name].view(self.size, -1) for name in names])
                self.lost[block] = self.lost.get(block, 0.0) + cut
            for name in names:
                self._rows[name][filled].copy_(gradient[name]).div_(length if self.normalise else 1.0)
            self._filled[block] = filled + 1

    def gradients(self) -> ReferenceGradients:
        """The rows of S, as views that the next update changes; a block with fewer rows than others ends in zeros.

        Raises:
            ValueError: There was no gradient yet but zeros.
        """
        return _views(self._rows, ("stream",) * max(self._filled.values(), default=0))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and the rows by parameter name, not copied: with it a resumed run goes on bit for bit."""
        settings = {"size": self.size, "scope": self.scope, "normalise": self.normalise}
        return settings | {"lost": dict(self.lost), "filled": dict(self._filled), "rows": dict(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, from a copy of its rows.

        Raises:
            ValueError: It is the state of a sketch of other settings.
        """
        _require_settings(state, size=self.size, scope=self.scope, normalise=self.normalise)
        self.lost, self._filled = dict(state["lost"]), dict(state["filled"])
        self._rows = {name: rows.clone() for name, rows in state["rows"].items()}


def _shrink_(pieces: list[Tensor]) -> tuple[int, float]:
    """Rotate and shorten the ℓ rows of a block in place.

    Args:
        pieces: (ℓ, numel) of each parameter.

    Returns:
        How many rows are left, at most ℓ − 1, the others being zero; and σ_ℓ², which every direction was cut by.
    """
    chunks = [chunk for piece in pieces for chunk in piece.split(_CHUNK, dim=1)]
    gram = torch.stack([(chunk @ chunk.T).double() for chunk in chunks]).sum(0)
    energies, directions = torch.linalg.eigh(gram)
    energies, directions = energies.clamp(min=0).flip(0), directions.flip(1)
    kept = energies > energies[-1]
    rotation = (directions * torch.where(kept, (1 - energies[-1] / energies).sqrt(), 0.0)).T
    for chunk in chunks:
        chunk.copy_(rotation.to(chunk) @ chunk)
    return int(kept.sum()), energies[-1].item()


def _length(tensors: list[Tensor]) -> float:
    lengths = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return torch.stack(lengths).norm().item()


def _positive(size: int) -> int:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    return size


def _fitting_rows(rows: dict[str, Tensor], gradient: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The rows, new ones of zeros if there are none yet, once the gradient is known to fit."""
    given = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
    expected = {name: tuple(tensor.shape[1:]) for name, tensor in rows.items()} or given
    if given != expected or not given:
        unlike = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
        raise ValueError(
            f"A gradient must have at least one parameter, and the names and shapes of those before it; unlike: "
            f"{[(name, expected.get(name), given.get(name)) for name in unlike[:3]]} (name, expected, got)."
        )
    for name, tensor in gradient.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"The gradient of {name} holds NaN or infinity.")
    return rows or {name: g.new_zeros(size, *g.shape, dtype=wide(g)) for name, g in gradient.items()}


def _views(rows: Mapping[str, Tensor], domains: tuple[str, ...]) -> ReferenceGradients:
    if not domains:
        raise ValueError("No gradient but zeros has been seen: call update first.")
    return ReferenceGradients(domains, {name: tensor[: len(domains)] for name, tensor in rows.items()})


def _require_settings(state: Mapping[str, Any], **settings: Any) -> None:
    saved = {name: state[name] for name in settings}
    if saved != settings:
        raise ValueError(f"The state was saved with {saved}, but this summary has {settings}: make it the same.")

"""Low-rank subspaces of parameter space, block by block: what lies inside them, and how a vector is kept out."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from workbench.geometry.cone import nonnegative_qp
from workbench.geometry.fitting import (
    Rank,
    Reduce,
    check_rank,
    combinations,
    inverse,
    orthonormalise,
    reduced,
    singular_values,
)
from workbench.geometry.gradients import ReferenceGradients, wide
from workbench.geometry.kernels import Vector, cross_gram
from workbench.geometry.layout import Layout, Metric, Store

Scope = Literal["tensor", "layer", "global"]
When = Literal["always", "conflict"]
_LAYER = re.compile(r"^(.*?\.(?:layers?|h|blocks?)\.\d+)\.")


@dataclass(frozen=True)
class Block:
    """A basis of one block of parameters, stored by parameter.

    Attributes:
        parts: (R, numel) by parameter name. The first r rows, over all parts, span the block's subspace and are
            orthonormal up to the rounding of their type, unless they were fitted `as_they_are`; the others are zero,
            so that R is the same for all blocks.
        gram: U Uᵀ of the rows as they are stored, in float64; (R, R).
        generators: A with R_k = Uᵀ A_k: the mean reference gradient of each domain in its true length; (R, n_domains).
        singular_values: Of all the block's reference gradients, each scaled to unit length, descending; (m,).
        n_params: The number of parameters in the block, d_b, over all shards.
    """

    parts: Mapping[str, Tensor]
    gram: Tensor
    generators: Tensor
    singular_values: Tensor
    n_params: int

    @property
    def rank(self) -> int:
        """The number of basis directions, r."""
        return int((self.gram.diagonal() > 0).sum())

    @property
    def parameters(self) -> dict[str, int]:
        """Names of the block's parameters and their numbers of elements here, in order."""
        return {name: part.shape[1] for name, part in self.parts.items()}

    @property
    def basis(self) -> Tensor:
        """(r, d_b) orthonormal rows over all parameters in order, in float32 or wider; a copy, to look at."""
        rows = torch.cat(list(self.parts.values()), dim=1)[: self.rank]
        return _whitener(self).to(rows.device, wide(rows)) @ rows.to(wide(rows))


@dataclass(frozen=True)
class Energy:
    """Squared lengths of a vector, block by block.

    Attributes:
        inside: ‖Uᵀx‖² of each block; (n_blocks,).
        total: ‖x‖² of each block; (n_blocks,).
    """

    inside: Tensor
    total: Tensor

    @property
    def share(self) -> float:
        """‖Uᵀx‖²/‖x‖² over all blocks together, in [0, 1]; 0 for a zero vector."""
        total = self.total.sum().item()
        return self.inside.sum().item() / total if total else 0.0

    @property
    def shares(self) -> Tensor:
        """The same of each block; (n_blocks,)."""
        return torch.where(self.total > 0, self.inside / self.total, 0.0)


@dataclass(frozen=True)
class Reading:
    """What one pass over a vector tells; all that a projection has to know of it. Float64, on the CPU.

    Attributes:
        dots: U x of each block, with the basis rows as they are stored; (n_blocks, R).
        total: ‖x‖² of each block; (n_blocks,).
        grams: U D Uᵀ in the metric that was asked for, or U Uᵀ; (n_blocks, R, R).
        energy: ‖Uᵀx‖² and ‖x‖².
    """

    dots: Tensor
    total: Tensor
    grams: Tensor
    energy: Energy


@dataclass(frozen=True)
class Subspace:
    """The span of reference gradients in every block of the trained parameters.

    Attributes:
        scope: What a block is: each parameter ``"tensor"`` (the official OGPSA code), each transformer ``"layer"``
            (what lies outside the layers stays a block per parameter), or all together, ``"global"`` (the paper's
            theory).
        layout: Where the parameters lie in `store`.
        store: The basis rows.
        grams: U Uᵀ of every block's rows as they are stored; (n_blocks, R, R) in float64 on the CPU, as are the next.
        generators: As in `Block`; (n_blocks, R, n_domains).
        singular_values: As in `Block`; (n_blocks, m).
        sizes: The number of parameters in every block, over all shards; (n_blocks,).
        domains: Of the generators.
        provenance: Where it came from, for the file.
        reduce: Sums a tensor over the processes that share the parameters' shards; None where nothing is sharded.
    """

    scope: Scope
    layout: Layout
    store: Store
    grams: Tensor
    generators: Tensor
    singular_values: Tensor
    sizes: Tensor
    domains: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reduce: Reduce | None = None

    @classmethod
    def fit(
        cls,
        gradients: ReferenceGradients,
        rank: Rank = None,
        scope: Scope = "tensor",
        *,
        scale: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        inplace: bool = False,
        as_they_are: bool = False,
        reduce: Reduce | None = None,
    ) -> "Subspace":
        """The subspace that protects what the gradients stand for.

        With ``rank=None`` every gradient is kept unless it is redundant, by Gram–Schmidt (OGPSA, 2602.07892: one mean
        gradient per domain). Otherwise leading left singular vectors of G = [g₁ … g_m] are taken, each gᵢ scaled to
        unit length first, so that no domain counts more because its loss is larger. Everything is decided on the
        m × m Gram matrices; G is never densified beyond its m columns.

        Args:
            gradients: m gradients.
            rank: Directions per block (a block smaller than that is spanned whole; 0 gives empty bases); or the share
                of energy in (0, 1) that they hold at least; or ``"floor"``, those above what random gradients show.
            scope: What a block is.
            scale: Whether each gradient is scaled to unit length; not if their lengths mean something, as in
                `FrequentDirections`.
            dtype: Of the stored basis; None keeps that of the gradients. Dots are taken in float32 at least.
            device: Where the basis lies; None keeps that of the gradients.
            inplace: Whether the basis may overwrite the gradients, which saves a copy where it has as many rows.
            as_they_are: Whether gradients that are far from dependent, and are all kept, may stay as they are instead
                of being made orthonormal: the subspace is the same, and two passes over them are saved.
            reduce: As in the attribute.

        Raises:
            ValueError: `rank` is out of range, `scope` is unknown, or a gradient holds NaN or infinity.
        """
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {get_args(Scope)}, got {scope!r}.")
        check_rank(rank, len(gradients))
        layout = Layout(gradients.tensors, group_parameters(gradients.tensors, scope))
        store = layout.store(gradients.tensors)
        local = [sum(layout.sizes[name] for name in names) for names in layout.groups.values()]
        sizes = reduced(torch.tensor(local, dtype=torch.float64), reduce)
        grams = reduced(layout.grams(store), reduce)
        if broken := [n for n, good in zip(layout.groups, grams.isfinite().flatten(1).all(1), strict=True) if not good]:
            raise ValueError(f"The reference gradients of {', '.join(broken[:3])} hold NaN or infinity, or overflow.")
        matrices = combinations(grams, sizes, rank, scale)
        options = (dtype, device, inplace, as_they_are, reduce)
        store, stored, matrices = orthonormalise(layout, store, grams, matrices, *options)
        domains = tuple(dict.fromkeys(gradients.domains))
        means = torch.tensor([[d == domain for domain in domains] for d in gradients.domains]).double()
        generators = inverse(stored) @ matrices @ grams @ (means / means.sum(0))
        provenance = {"domains": list(gradients.domains), "rank": rank}
        sigma = singular_values(grams)
        return cls(scope, layout, store, stored, generators, sigma, sizes, domains, provenance, reduce)

    # --- size -----------------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The basis of every block, by its name."""
        return {
            block: Block(
                {name: self.layout.part(self.store, name) for name in names},
                self.grams[i],
                self.generators[i],
                self.singular_values[i],
                int(self.sizes[i]),
            )
            for i, (block, names) in enumerate(self.layout.groups.items())
        }

    @property
    def names(self) -> list[str]:
        """Of the blocks."""
        return list(self.layout.groups)

    @cached_property
    def rank(self) -> int:
        """The number of directions over all blocks."""
        return int((self.grams.diagonal(dim1=1, dim2=2) > 0).sum())

    @cached_property
    def n_params(self) -> int:
        """The number of parameters over all blocks, d."""
        return int(self.sizes.sum())

    @property
    def random_floor(self) -> float:
        """The leakage √(r/d) that a random direction of parameter space is expected to have, all blocks together."""
        return math.sqrt(self.rank / self.n_params)

    # --- looking --------------------------------------------------------------------------------------------------

    def read(self, *vectors: Mapping[str, Vector], metric: Metric | None = None) -> tuple[Reading, ...]:
        """One pass over each vector, and one sum over processes for all of them together.

        Args:
            vectors: Each by parameter name, in the parameters' shapes.
            metric: The diagonal of D, in which the readings' `grams` are taken; None is Euclidean.
        """
        sums = [self.layout.dots(self.store, vector) for vector in vectors]
        if metric:
            sums.append(self.layout.weighted_grams(self.store, metric).flatten(1))
        tables = list(reduced(torch.cat(sums, dim=1), self.reduce).split([s.shape[1] for s in sums], dim=1))
        grams = tables.pop().reshape(self.grams.shape) if metric else self.grams
        return tuple(self._reading(table[:, :-1], table[:, -1], grams) for table in tables)

    def energy(self, vectors: Mapping[str, Vector]) -> Energy:
        """The squared length of a vector inside the subspace and in all, block by block.

        Args:
            vectors: By parameter name, in the parameters' shapes.
        """
        return self.read(vectors)[0].energy

    def coefficients(self, vectors: Mapping[str, Vector]) -> dict[str, Tensor]:
        """Uᵀx of every block, in an orthonormal basis; each (r,), in float64."""
        dots = self.read(vectors)[0].dots
        blocks = zip(self.blocks.items(), dots, strict=True)
        return {name: _whitener(block) @ row[: block.rank] for (name, block), row in blocks}

    def slopes(self, reading: Reading) -> Tensor:
        """Rᵀx of every domain's mean gradient R; (n_blocks, n_domains)."""
        return (self.generators.mT @ reading.dots[..., None]).squeeze(2)

    def conflicts(self, reading: Reading, direction: Literal[-1, 1]) -> Tensor:
        """Which domains' losses rise to first order, block by block; (n_blocks, n_domains), boolean.

        Args:
            reading: Of a step, or of a gradient.
            direction: 1 if the vector is a step; -1 if it is a gradient, against which the step will go.
        """
        return direction * self.slopes(reading) > 0

    def principal_angles(self, other: "Subspace") -> dict[str, Tensor]:
        """Cosines of the principal angles between two subspaces, block by block, in descending order.

        cos θᵢ = σᵢ(UᵀV) (Björck & Golub 1973); (min(r, s),) each, in float64.
        """
        return {name: torch.linalg.svdvals(cross).clamp(0, 1) for name, cross in self.cross(other).items()}

    def cross(self, other: "Subspace") -> dict[str, Tensor]:
        """UᵀV of every block, in orthonormal bases of which the first k vectors span the first k rows; (r, s), float64.

        Raises:
            ValueError: The blocks differ.
        """
        if {k: b.parameters for k, b in self.blocks.items()} != {k: b.parameters for k, b in other.blocks.items()}:
            raise ValueError("Both subspaces must have the same blocks of the same parameters: fit them in one scope.")
        return {name: _cross(block, other.blocks[name], self.reduce) for name, block in self.blocks.items()}

    def inner(self, one: Reading, other: Reading) -> Tensor:
        """⟨Uᵀx, Uᵀy⟩ of what two vectors have inside, block by block; (n_blocks,)."""
        return self._inner(one.dots, other.dots)

    # --- keeping out ----------------------------------------------------------------------------------------------

    def project_out_(self, vectors: Mapping[str, Tensor]) -> Energy:
        """Remove the part inside the subspace, x ← x − U Uᵀx, in place.

        Args:
            vectors: By parameter name, in the parameters' shapes.

        Returns:
            The energies before the removal.
        """
        (reading,) = self.read(vectors)
        self.subtract_(vectors, self.removal(reading))
        return reading.energy

    def project_onto(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part inside the subspace, U Uᵀx, by parameter name."""
        inside = {name: torch.zeros_like(vectors[name]) for name in self.layout.sizes}
        self.subtract_(inside, -self.removal(self.read(vectors)[0]))
        return inside

    def removal(self, reading: Reading, when: When = "always", direction: Literal[-1, 1] = 1) -> Tensor:
        """The weights y of the basis rows with x − D Uᵀy the nearest vector that keeps the constraint, in its metric.

        - ``"always"``, Uᵀx = 0: y = (U D Uᵀ)⁻¹ U x.
        - ``"conflict"``, no domain's loss rises to first order: A-GEM (1812.00420) for one domain, the quadratic
          program of GEM (1706.08840) for several. Rᵀx ≤ 0 for a step x; for a gradient, which is walked downhill,
          Rᵀx ≥ 0.

        Args:
            reading: Of x.
            when: The constraint.
            direction: 1 if x is a step, -1 if it is a gradient.

        Returns:
            (n_blocks, R).
        """
        if when == "always":
            return (inverse(reading.grams) @ reading.dots[..., None]).squeeze(2)
        slopes = direction * self.slopes(reading)
        if not slopes.isfinite().all():
            return torch.zeros_like(reading.dots)  # a float16 gradient that overflowed: its step will be skipped
        grams = self.generators.mT @ reading.grams @ self.generators
        return direction * (self.generators @ nonnegative_qp(grams, slopes)[..., None]).squeeze(2)

    def subtract_(self, vectors: Mapping[str, Tensor], weights: Tensor, metric: Metric | None = None) -> None:
        """x ← x − D Uᵀy in place.

        Args:
            vectors: By parameter name, in the parameters' shapes.
            weights: y of every block; (n_blocks, R).
            metric: As in `read`.
        """
        if self.rank and weights.any():  # what touches nothing trains bit for bit like no projection
            self.layout.subtract_(vectors, self.store, weights, metric)

    def mixture(self, weights: Tensor) -> Tensor:
        """Basis weights of Σ_k w_k R_k, a sum over the domains' mean gradients; (n_domains,) → (n_blocks, R)."""
        return self.generators @ weights.double()

    # --- keeping --------------------------------------------------------------------------------------------------

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Subspace":
        """The same directions stored in another type or place; a type of fewer bits tilts them by its rounding."""
        store = [rows.to(device or rows.device, dtype or rows.dtype) for rows in self.store]
        return replace(self, store=store, grams=reduced(self.layout.grams(store), self.reduce))

    def on_disk(self) -> "Subspace":
        """The same with large tensors in a temporary file, mapped into memory; it goes with the last one to use it."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:  # where the system allows it, a mapped file outlives its name
            return type(self).load(self.save(Path(folder) / "basis.safetensors"), reduce=self.reduce)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all; shapes, scope and provenance go into its header."""
        from safetensors.torch import save_file

        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        tensors = {f"basis/{name}": self.layout.part(self.store, name).contiguous() for name in self.layout.sizes}
        tensors |= {name: getattr(self, name).contiguous() for name in _SMALL}
        header = {
            "scope": self.scope,
            "blocks": self.layout.groups,
            "domains": self.domains,
            "provenance": dict(self.provenance),
        }
        save_file(tensors, partial, metadata={"subspace": json.dumps(header)})
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", reduce: Reduce | None = None) -> "Subspace":
        """Read what `save` wrote. On the CPU large tensors stay in the file, mapped into memory, till they are used."""
        from safetensors import safe_open

        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            if "subspace" not in metadata:
                raise ValueError(f"{path} is a safetensors file without a subspace; pass one that Subspace.save wrote.")
            header = json.loads(metadata["subspace"])
            rows = {n: file.get_tensor(f"basis/{n}") for names in header["blocks"].values() for n in names}
            small = {name: file.get_tensor(name).cpu() for name in _SMALL}
        layout = Layout(rows, header["blocks"])
        own = {"domains": tuple(header["domains"]), "provenance": header["provenance"], "reduce": reduce}
        return cls(header["scope"], layout, layout.store(rows), **small, **own)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _reading(self, dots: Tensor, total: Tensor, grams: Tensor) -> Reading:
        return Reading(dots, total, grams, Energy(self._inner(dots, dots), total))

    def _inner(self, one: Tensor, other: Tensor) -> Tensor:
        return (one[:, None] @ self._inverse_grams @ other[..., None]).flatten()

    @cached_property
    def _inverse_grams(self) -> Tensor:
        return inverse(self.grams)


_SMALL = ("grams", "generators", "singular_values", "sizes")


def group_parameters(names: Iterable[str], scope: Scope) -> dict[str, list[str]]:
    """The parameters of each block, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = _LAYER.match(name) if scope == "layer" else None
        block = "all" if scope == "global" else layer[1] if layer else name
        groups.setdefault(block, []).append(name)
    return groups


def _cross(one: Block, other: Block, reduce: Reduce | None) -> Tensor:
    cross = torch.stack([cross_gram(part, other.parts[name]) for name, part in one.parts.items()]).sum(0)
    cross = (reduce(cross) if reduce else cross).cpu()[: one.rank, : other.rank]
    return _whitener(one) @ cross @ _whitener(other).T


def _whitener(block: Block) -> Tensor:
    """W with W U orthonormal to float64, which the stored rows U are only up to their rounding."""
    gram = block.gram[: block.rank, : block.rank]
    return torch.linalg.inv(torch.linalg.cholesky(gram)) if block.rank else gram

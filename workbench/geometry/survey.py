"""Everything there is to see of some domains' gradient subspaces, as plain arrays: a few kilobytes for any model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.spectrum import effective_rank
from workbench.geometry.subspace import Scope, Subspace


@dataclass(frozen=True)
class Survey:
    """Spectra, angles and energies of every block at every rank.

    Attributes:
        blocks: Their names, in the order of the model.
        sizes: Parameters of each; (n_blocks,).
        singular_values: By domain, of its gradients, each scaled to unit length, descending; (n_blocks, m).
        floors: The same with random signs: what gradients of these sizes show without a shared direction.
        ranks: By domain, how many directions its gradients have; (n_blocks,).
        crosses: UᵀV of two domains' bases, by the pair of their names, once for a pair; (n_blocks, r, s).
        inside: By domain, the share of a probe's energy along each direction; (n_blocks, r). Empty without a probe.
    """

    blocks: tuple[str, ...]
    sizes: np.ndarray
    singular_values: Mapping[str, np.ndarray]
    floors: Mapping[str, np.ndarray] = field(default_factory=dict)
    ranks: Mapping[str, np.ndarray] = field(default_factory=dict)
    crosses: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    inside: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def domains(self) -> list[str]:
        """Their names, in the order given."""
        return list(self.singular_values)

    @property
    def largest_rank(self) -> int:
        """The most directions that any domain's gradients have."""
        return max(values.shape[1] for values in self.singular_values.values())

    def kept(self, domain: str, rank: int, floor: bool = False) -> np.ndarray:
        """The share of the gradients' energy, or of the floor's, in the first directions, Σ_{i≤rank} σᵢ²/Σσ²."""
        energy = np.square((self.floors if floor else self.singular_values)[domain])
        total = energy.sum(1)
        return np.divide(energy[:, :rank].sum(1), total, out=np.zeros(len(energy)), where=total > 0)

    def effective_rank(self, domain: str) -> np.ndarray:
        """How many directions carry each block's spectrum: see `workbench.geometry.spectrum.effective_rank`."""
        rows = torch.from_numpy(self.singular_values[domain])
        return np.array([effective_rank(row) if row.any() else 0.0 for row in rows])

    def cosines(self, one: str, other: str, rank: int) -> np.ndarray:
        """Of the principal angles between the first directions of two domains; NaN where a block has fewer.

        Returns:
            (n_blocks, rank), descending.
        """
        found = np.ones((len(self.blocks), min(rank, self.singular_values[one].shape[1])))
        if one != other:
            pair = (one, other) in self.crosses
            cross = self.crosses[one, other] if pair else self.crosses[other, one].swapaxes(1, 2)
            found = np.linalg.svd(cross[:, :rank, :rank], compute_uv=False).clip(0, 1)
        have = np.minimum(self.ranks[one], self.ranks[other])[:, None] > np.arange(found.shape[1])
        cosines = np.full((len(self.blocks), rank), np.nan)
        cosines[:, : found.shape[1]] = np.where(have, found, np.nan)
        return cosines

    def removed(self, domain: str, rank: int) -> np.ndarray:
        """The share of the probe's energy that the first directions would remove, ‖Uᵀg‖²/‖g‖²; (n_blocks,)."""
        return self.inside[domain][:, :rank].sum(1)


def survey(
    gradients: Mapping[str, ReferenceGradients],
    scope: Scope = "tensor",
    probe: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Survey:
    """Look at the subspaces that some sets of gradients span, at all ranks at once.

    Bases of all sets are held at the same time, and a copy of the largest set's gradients.

    Args:
        gradients: Name of a domain → gradients of it, such as those of its mini-batches.
        scope: What a block is.
        probe: A vector by parameter name, such as the safety gradient, whose energy inside is asked for.
        seed: Of the random floors' signs.

    Raises:
        ValueError: There are no gradients, or they are of different parameters.
    """
    if not gradients:
        raise ValueError("expected gradients of at least one domain, got none: pass name → reference_gradients(...).")
    generator = torch.Generator().manual_seed(seed)
    fits = {name: Subspace.fit(some, len(some), scope) for name, some in gradients.items()}
    floors = {name: Subspace.fit(_scrambled(g, generator), 0, scope).singular_values for name, g in gradients.items()}
    crosses = {(a, b): _stacked(fits[a].cross(fits[b])) for a, b in combinations(fits, 2)}
    first = next(iter(fits.values()))
    return Survey(
        tuple(first.names),
        first.sizes.numpy(),
        {name: fit.singular_values.numpy() for name, fit in fits.items()},
        {name: values.numpy() for name, values in floors.items()},
        {name: np.array([block.rank for block in fit.blocks.values()]) for name, fit in fits.items()},
        crosses,
        {name: _shares(fit, probe) for name, fit in fits.items()} if probe else {},
    )


def _scrambled(gradients: ReferenceGradients, generator: torch.Generator) -> ReferenceGradients:
    """The same with random signs: sizes stay where they are, shared directions go."""
    signs = {n: torch.randint(2, t.shape, generator=generator) * 2 - 1 for n, t in gradients.tensors.items()}
    return replace(gradients, tensors={n: t * signs[n].to(t) for n, t in gradients.tensors.items()})


def _shares(subspace: Subspace, probe: Mapping[str, Tensor]) -> np.ndarray:
    total = subspace.energy(probe).total.clamp(min=torch.finfo(torch.float64).tiny)
    coefficients = [c.square() / t for c, t in zip(subspace.coefficients(probe).values(), total, strict=True)]
    return _padded([c[None].cpu().numpy() for c in coefficients])[:, 0]


def _stacked(matrices: Mapping[str, Tensor]) -> np.ndarray:
    return _padded([matrix.numpy() for matrix in matrices.values()])


def _padded(matrices: list[np.ndarray]) -> np.ndarray:
    """One array of all, with zeros where some are smaller."""
    rows, columns = (max(matrix.shape[axis] for matrix in matrices) for axis in (0, 1))
    whole = np.zeros((len(matrices), rows, columns))
    for target, matrix in zip(whole, matrices, strict=True):
        target[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole

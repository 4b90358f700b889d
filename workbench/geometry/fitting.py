"""How a basis is chosen: from the inner products of the gradients alone, block by block, without densifying anything.

Reference gradients are few and long. All decisions are therefore made on their small Gram matrices, in float64 on the
CPU and for all blocks at once; the gradients themselves are read twice and written once. With sharded parameters, the
Gram matrices are the only thing that has to be summed over processes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from workbench.geometry.layout import Layout, Store

Rank = int | float | Literal["floor"] | None
Reduce = Callable[[Tensor], Tensor]

# A direction is redundant when less than this share of its length is new (the threshold δ of OGPSA, 2602.07892, whose
# value is not published). Gram matrices of float32 gradients resolve shares of 2·10⁻⁴.
REDUNDANT = 1e-3
# Rows whose inner products are farther than this from orthonormal are made so once more.
_POLISH = {torch.float32: 1e-6, torch.float64: 1e-14}
_TAME = 8.0  # Σ|T| of a row of unit gradients, up to which T R is as orthonormal as its type can tell


def check_rank(rank: Rank, m: int) -> None:
    """Refuse a rank that m gradients cannot have.

    Raises:
        ValueError: The number exceeds m, the energy is not in (0, 1), or the word is unknown.
    """
    if rank is None or rank == "floor" or (isinstance(rank, float) and 0 < rank < 1):
        return
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise ValueError(
            f'rank must be a number of directions, an energy between 0 and 1, "floor" or None, got {rank!r}.'
        )
    if not 0 <= rank <= m:
        raise ValueError(
            f"rank must lie between 0 and the number of reference gradients, {m}, got {rank}. Give more domains or "
            "more gradients per domain, or lower the rank."
        )


def singular_values(grams: Tensor, scale: bool = True) -> Tensor:
    """Of the gradients, scaled to unit length unless told otherwise, in descending order; (n_blocks, m)."""
    return torch.linalg.eigvalsh(_scaled(grams, scale)[0]).clamp(min=0).sqrt().flip(-1)


def combinations(grams: Tensor, n_params: Tensor, rank: Rank, scale: bool = True) -> Tensor:
    """T with orthonormal rows T R for the gradients R of every block; unused rows come last and are zero.

    Args:
        grams: R Rᵀ of every block; (n_blocks, m, m).
        n_params: Parameters of every block, which bound its rank; (n_blocks,).
        rank: None keeps every gradient that is not redundant, in their order (Gram–Schmidt); a number takes as many
            leading singular vectors; a share of energy takes the fewest that hold it; ``"floor"`` takes those that
            stand out of what as many random directions would show, σ² > (1 + √(m/d))² (Marchenko & Pastur 1967).
        scale: Whether each gradient counts alike, whatever its length.

    Returns:
        (n_blocks, r, m), r the largest rank of any block.
    """
    unit, lengths = _scaled(grams, scale)
    rows, kept = _gram_schmidt(unit) if rank is None else _leading(unit, n_params, rank)
    kept &= kept.cumsum(1) <= n_params[:, None]
    order = torch.argsort(~kept, dim=1, stable=True)[:, : int(kept.sum(1).max())]
    rows = (rows * kept[..., None]).gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
    return rows * torch.where(lengths > 0, 1 / lengths, 0)[:, None]


def orthonormalise(
    layout: Layout,
    store: Store,
    grams: Tensor,
    matrices: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    inplace: bool,
    as_they_are: bool,
    reduce: Reduce | None,
) -> tuple[Store, Tensor, Tensor]:
    """The rows T R of every block, their Gram matrices as stored, and the T that made them.

    Rounding, first of T R and then to `dtype`, leaves rows only nearly orthonormal. The first is mended by a second
    pass where it shows (Cholesky QR done twice, Yamamoto et al. 2015), of which there is no danger while T hardly
    magnifies its terms; the second is what the Gram matrices are for. They also serve rows that are not orthonormal at
    all: where T is tame and keeps every direction, the gradients may stay as they are, which saves two passes.
    """
    lengths = grams.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    tame = not (matrices.abs() @ lengths[..., None] > _TAME).any()
    if as_they_are and tame and dtype is device is None and matrices.any(2).all() and matrices.shape == grams.shape:
        return store, grams, torch.eye(grams.shape[1]).to(grams).expand_as(grams)
    store = layout.transform(store, matrices, dtype, device, inplace)
    tolerance = _POLISH.get(store[0].dtype)
    if tolerance and tame:
        return store, matrices @ grams @ matrices.mT, matrices  # inner products as they would be without rounding
    stored, live = reduced(layout.grams(store), reduce), matrices.any(2)
    if tolerance and live.any() and (stored - torch.diag_embed(live.double())).abs().max() > tolerance:
        mends = _inverse_roots(stored, live)
        store, matrices = layout.transform(store, mends, inplace=True), mends @ matrices
        stored = reduced(layout.grams(store), reduce)
    return store, stored, matrices


def reduced(tensor: Tensor, reduce: Reduce | None) -> Tensor:
    """Summed over processes if need be, on the CPU."""
    return (reduce(tensor) if reduce else tensor).cpu()


def inverse(grams: Tensor) -> Tensor:
    """The inverse of each positive definite matrix, whose unused last rows and columns are zero, as they stay."""
    diagonal = grams.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1).rsqrt()  # lengths may differ by orders of magnitude
    scale = scale[:, :, None] * scale[:, None, :]
    unused = torch.diag_embed((diagonal <= 0).double())
    return (torch.linalg.inv(grams * scale + unused) - unused) * scale


def _scaled(grams: Tensor, scale: bool) -> tuple[Tensor, Tensor]:
    """Gram matrices of gradients of unit length, or, unscaled, of which the longest has it; and the divisors."""
    lengths = grams.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    if not scale:
        lengths = lengths.amax(1, keepdim=True).expand_as(lengths)
    divisor = torch.where(lengths > 0, lengths, 1)
    return grams / divisor[:, :, None] / divisor[:, None, :], lengths


def _gram_schmidt(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Rows T with T R orthonormal, each its gradient less the earlier ones; and which are not redundant."""
    n_blocks, m, _ = unit.shape
    lengths = unit.diagonal(dim1=1, dim2=2).sqrt()
    factors, failed = torch.linalg.cholesky_ex(unit)
    if not failed.any() and (factors.diagonal(dim1=1, dim2=2) > REDUNDANT * lengths).all():
        # With nothing redundant, Gram–Schmidt is the inverse of the Cholesky factor, whose diagonal holds what is new.
        rows = torch.linalg.solve_triangular(factors, torch.eye(m).to(factors), upper=False)
        return rows, torch.ones(n_blocks, m, dtype=torch.bool)
    rows = torch.zeros_like(unit)
    kept = torch.zeros(n_blocks, m, dtype=torch.bool)
    for i in range(m):
        row = -((rows[:, :i] @ unit[:, :, i, None]).mT @ rows[:, :i]).squeeze(1)
        row[:, i] += 1
        rest = torch.einsum("bi,bij,bj->b", row, unit, row).clamp(min=0).sqrt()
        kept[:, i] = rest > REDUNDANT * lengths[:, i]
        rows[:, i] = torch.where(kept[:, i], 1 / rest, 0)[:, None] * row
    return rows, kept


def _leading(unit: Tensor, n_params: Tensor, rank: Rank) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors, from the eigenvectors of the Gram matrix; and which are wanted."""
    values, vectors = torch.linalg.eigh(unit)
    values, vectors = values.flip(1).clamp(min=0), vectors.flip(2)
    m = unit.shape[1]
    if rank == "floor":
        kept = values > (1 + (m / n_params[:, None]).sqrt()) ** 2
    elif isinstance(rank, float):
        total = values.sum(1, keepdim=True)
        kept = values.cumsum(1) - values < rank * total
    else:
        assert rank is not None
        kept = (torch.arange(m) < rank).expand(len(unit), -1).clone()
    kept &= values > REDUNDANT**2 * values[:, :1]
    return torch.where(kept, values.rsqrt(), 0)[..., None] * vectors.mT, kept


def _inverse_roots(grams: Tensor, live: Tensor) -> Tensor:
    """L⁻¹ of each L Lᵀ, with unused rows zero."""
    used = torch.diag_embed(live.double())
    factors = torch.linalg.cholesky(grams + torch.diag_embed((~live).double()))
    return torch.linalg.solve_triangular(factors, used, upper=False)

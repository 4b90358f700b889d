"""Gradients that point apart: GEM's quadratic program, its one-reference form by tensor, and PCGrad's sums."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.geometry.gradients import local_shard
from workbench.geometry.sharding import shard_reducer

# About m steps are taken; the bound is for references so nearly opposed that rounding makes faces take turns.
_STEPS_PER_WEIGHT = 5


def nonnegative_qp(gram: Tensor, target: Tensor) -> Tensor:
    """argmin_{v ≥ 0} ½ vᵀHv − bᵀv of every block, exactly.

    This is the dual of GEM (Lopez-Paz & Ranzato 2017, 1706.08840, section 3). With references R = [r₁ … r_m], H = RᵀR
    and b = Rᵀx, the vector nearest to x with Rᵀx′ ≤ 0 is x′ = x − Rv; where Rᵀx′ ≥ 0 is wanted, b = −Rᵀx and
    x′ = x + Rv. Nearest in the metric D⁻¹, H = RᵀDR and x′ = x − DRv. For one reference, v = max(b, 0)/H (A-GEM,
    Chaudhry et al. 2019, 1812.00420).

    The active-set method of Lawson & Hanson (1974, chapter 23), all blocks in step. References are scaled to unit
    length first, so that their lengths do not matter. Repeated, parallel and zero references are welcome: v is then
    one of several minimisers. Where b is not Rᵀx, references may contradict each other, so that there is none: those
    found last are then left unmet. So are references that are opposed up to the rounding of the type of `gram`, whose
    weights would be noise over noise. Sum H and b in float64 and pass them so: weights of nearly opposed references
    are large and cancel in Rv, so that in blocks of fewer parameters than references, dots in fp32 leave errors of 1 %
    in Rᵀx′ where those in float64 leave 10⁻⁸.

    Args:
        gram: H, positive semi-definite; (B, m, m), on any device, of any floating type.
        target: b, positive where a constraint is violated; (B, m).

    Returns:
        v; (B, m), in float64 on the CPU.

    Raises:
        ValueError: The shapes do not match, a number is NaN or infinite, or the diagonal of H is negative somewhere.
    """
    _require_program(gram, target)
    h, b = gram.detach().cpu().double(), target.detach().cpu().double()
    lengths = h.diagonal(dim1=1, dim2=2).sqrt()
    unit = torch.where(lengths > 0, 1 / lengths, 0.0)
    h, b = h * unit[:, :, None] * unit[:, None, :], b * unit
    v = torch.zeros_like(b)
    violated = (b > 0).any(1)
    if violated.any():  # elsewhere v = 0 is the answer
        v[violated] = _active_set(h[violated], b[violated], torch.finfo(gram.dtype).eps)
    return v * unit


def _require_program(gram: Tensor, target: Tensor) -> None:
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2] or target.shape != gram.shape[:2]:
        raise ValueError(
            f"gram must be (B, m, m) and target (B, m), got {tuple(gram.shape)} and {tuple(target.shape)}."
        )
    if not (torch.isfinite(gram).all() and torch.isfinite(target).all()):
        raise ValueError("gram or target holds NaN or infinity.")
    if (gram.diagonal(dim1=1, dim2=2) < 0).any():
        raise ValueError("gram must be positive semi-definite, but its diagonal is negative somewhere.")


def _active_set(h: Tensor, b: Tensor, precision: float) -> Tensor:
    """The minimisers v, (B, m), for an H whose diagonal is 1, or 0 where a reference is zero.

    The weights in the `face` are positive, and their references independent. In each step, a block either lets the
    weight that promises most enter, moving along the direction that keeps the face optimal, or, where a weight fell to
    zero on the way and left, moves to the optimum of the face that remains. Every step lowers the objective.
    """
    n_blocks, m = b.shape
    rounding = 8 * m * torch.finfo(h.dtype).eps
    v, face, unmet = torch.zeros_like(b), torch.zeros_like(b, dtype=torch.bool), torch.zeros_like(b, dtype=torch.bool)
    for _ in range(_STEPS_PER_WEIGHT * m):
        slope = b - _apply(h, v)
        noise = rounding * (b.abs() + _apply(h.abs(), v)).amax(1)
        halfway = (face & (slope.abs() > noise[:, None])).any(1)
        promise, best = slope.masked_fill(face | unmet, -torch.inf).max(1)
        entering = ~halfway & (promise > noise)
        if not (entering | halfway).any():
            break

        entrant = torch.nn.functional.one_hot(best, m).bool() & entering[:, None]
        pull = torch.where(entering[:, None], -h[torch.arange(n_blocks), best], slope)
        direction = _solve_face(h, face, pull) + entrant
        curvature = (direction * _apply(h, direction)).sum(1)
        extent = direction.abs().sum(1).square()
        optimum = torch.where(curvature > rounding * extent, promise / curvature, torch.inf)
        optimum = torch.where(entering, optimum, halfway.double())
        falling = face & (direction < -rounding * direction.abs().amax(1, keepdim=True))
        room = torch.where(falling, v / -direction, torch.inf)
        step = torch.minimum(optimum, room.amin(1))[:, None]

        # A flat direction that nothing bounds: the entrant contradicts the face.
        hopeless = entering & room.isinf().all(1) & (curvature <= max(rounding, precision) * extent)
        unmet |= entrant & hopeless[:, None]
        step[hopeless] = 0.0
        v = (v + step * direction).masked_fill(room <= step, 0.0).clamp(min=0)
        face = (face | entrant) & (v > 0)
    return v


def _apply(h: Tensor, v: Tensor) -> Tensor:
    return (h @ v[:, :, None]).squeeze(2)


def _solve_face(h: Tensor, face: Tensor, pull: Tensor) -> Tensor:
    """H_FF⁻¹ pull_F on the weights F of the face, zero elsewhere."""
    identity = torch.eye(face.shape[1], dtype=h.dtype)
    matrix = torch.where(face[:, :, None] & face[:, None, :], h, identity)
    return torch.linalg.solve_ex(matrix, pull * face).result * face


def deconflicted_sum(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Weights w of Σᵢ gᵢ′ = Σⱼ wⱼgⱼ, where each gᵢ′ is gᵢ freed of its parts against others, one after the other.

    PCGrad (Yu et al. 2020, 2001.06782, algorithm 1): gᵢ′ ← gᵢ′ − min(0, gᵢ′ᵀgⱼ)/‖gⱼ‖² gⱼ, with gⱼ as it came. All of it
    is known from the inner products.

    Args:
        gram: gᵢᵀgⱼ; (n, n).
        orders: For each gradient, those that it is freed of, in their order; itself and zero gradients do nothing.

    Returns:
        w; (n,), in float64 on the CPU.
    """
    products = gram.detach().cpu().double()
    freed = torch.eye(len(products), dtype=torch.float64)  # each gᵢ′ in terms of all g
    for i, others in enumerate(orders):
        for j in others:
            against = freed[i] @ products[:, j]
            if j != i and against < 0:
                freed[i, j] -= against / products[j, j]
    return freed.sum(0)


def without_conflict(gradients: Mapping[str, Tensor], against: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Each tensor without its part along −a, where it has one: g − min(0, gᵀa / aᵀa)·a.

    The one-sided form of PCGrad (Yu et al. 2020, 2001.06782, algorithm 1) and A-GEM for one reference (1812.00420): a
    step along the result raises, to first order, nothing that a step along `against` lowers. Dots are summed in float64
    over all processes among which the tensors are sharded.

    Args:
        gradients: g by name.
        against: a by name; a name that is missing, or a tensor that is zero, leaves g as it is.

    Returns:
        New tensors where something was removed and the given ones elsewhere; and the share of the tensors with both
        gradients in which they point apart (PCGrad's conflict rate), 0 if there is none.
    """
    names = [name for name in gradients if name in against]
    if not names:
        return dict(gradients), 0.0
    sums = torch.stack([_products(local_shard(gradients[name]), local_shard(against[name])) for name in names])
    reduce = shard_reducer([gradients[name] for name in names])
    found = zip(names, (reduce(sums) if reduce else sums).tolist(), strict=True)
    apart = {name: dot / square for name, (dot, square) in found if dot < 0}
    return {n: g - apart[n] * against[n] if n in apart else g for n, g in gradients.items()}, len(apart) / len(names)


def _products(g: Tensor, a: Tensor) -> Tensor:
    """gᵀa and aᵀa in float64, tensor by tensor, so that one copy is held at a time."""
    a = a.double()
    return torch.stack([(g.double() * a).sum(), a.square().sum()])

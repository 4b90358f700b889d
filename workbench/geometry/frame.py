"""Where a step lies, seen from the gradient that it answers: the frame of one block's subspace."""

from typing import Any

import torch
from torch import Tensor


def frame_coordinates(subspace: Any, gradient: Any, x: Any) -> tuple[Tensor, Tensor]:
    """The two coordinates inside the subspace of x at unit length, in the frame of a gradient g; block by block.

    u₁ = −Uᵀg/‖Uᵀg‖ is where the descent −g has its shadow, u₂ the direction of all else that x has inside, so that its
    coordinate is a length. The third axis of the frame stands for all that lies outside, of length √(1 − u₁² − u₂²).
    −g itself lies at (√e, 0, √(1 − e)), e being its share of energy inside. Only inner products of readings are
    taken: a training that has read gradient and step has the frame for nothing.

    Args:
        subspace: A `Subspace` or an `ActivationSubspace`.
        gradient: Its reading of g.
        x: Its reading of a step, or of any vector.

    Returns:
        (u₁, u₂), each (n_blocks,) in float64; NaN where x has no length, and u₁ = 0 where g has nothing inside.
    """
    length, shadow = x.energy.total.sqrt(), gradient.energy.inside.clamp(min=0).sqrt()
    along = torch.where(shadow > 0, -subspace.inner(gradient, x) / shadow, 0.0)
    across = (x.energy.inside - along.square()).clamp(min=0).sqrt()
    return along / length, across / length

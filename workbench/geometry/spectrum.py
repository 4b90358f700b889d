"""Numbers that describe a subspace: how many directions carry a spectrum, and how far two subspaces lie apart."""

import math

from torch import Tensor

from workbench.geometry.subspace import Subspace


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of σᵢ/Σσ (Roy & Vetterli 2007): how many directions carry the spectrum."""
    p = singular_values.double() / singular_values.double().sum()
    p = p[p > 0]
    return math.exp(-(p * p.log()).sum().item())


def participation_ratio(singular_values: Tensor) -> float:
    """(Σσ²)²/Σσ⁴: how many directions carry the energy; less swayed by a long tail than `effective_rank`."""
    energy = singular_values.double().square()
    return (energy.sum().square() / energy.square().sum()).item()


def overlap(one: Subspace, other: Subspace) -> dict[str, float]:
    """Mean cos² of the principal angles, block by block: 1 if one lies in the other, about max(r, s)/d by chance.

    NaN for a block in which either is empty.
    """
    return {
        name: cosines.square().mean().item() if len(cosines) else math.nan
        for name, cosines in one.principal_angles(other).items()
    }


def drift(old: Subspace, new: Subspace) -> float:
    """1 − mean cos² of all principal angles of all blocks: 0 if nothing turned, 1 if nothing is left."""
    cosines = [c for block in old.principal_angles(new).values() for c in block.square().tolist()]
    return 1 - sum(cosines) / len(cosines) if cosines else math.nan

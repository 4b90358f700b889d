"""The time of one projection over the time that memory needs to move the bytes it cannot do without.

A projection x ← x − U Uᵀx has to read U and x before the first product is known, to read both again to subtract, and to
write x: 2 r d numbers of U, 3 d of x. On the update side x = after − before is never stored, so 2 d more are read. To
fit a basis in place, as many gradients are read for their inner products, read again, and overwritten; where they are
far from dependent and may stay as they are, reading them once will do. The floor is those bytes over the speed of a
large copy, which takes its turns between the projections.
"""

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from benchmarks.measuring import Row, Settings, copying, does_not_fit, fill_, filled, numel, shortest
from benchmarks.shapes import parameter_shapes
from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.kernels import Difference, Vector
from workbench.geometry.subspace import Subspace

Shapes = Mapping[str, tuple[int, ...]]

_COPIED = 2**30  # bytes of each of the copy's two tensors


def run(settings: Settings) -> Iterator[Row]:
    """One row for each size, type of the basis and rank."""
    halves = {settings.dtype, torch.float32} if settings.device.type != "cpu" else {settings.dtype}
    for size in settings.sizes:
        shapes = parameter_shapes(size)
        for basis_dtype in sorted(halves, key=str):
            for rank in settings.ranks:
                row = {"size": size, "basis": str(basis_dtype).removeprefix("torch."), "rank": rank}
                needed = numel(shapes) * (rank * basis_dtype.itemsize + 2 * settings.dtype.itemsize) + 2 * _COPIED
                reason = does_not_fit(needed * 1.05, settings.device)
                yield row | ({"skipped": reason} if reason else _measure(shapes, basis_dtype, rank, settings))


def references(shapes: Shapes, rank: int, dtype: torch.dtype, device: torch.device) -> ReferenceGradients:
    """As many gradients as directions; as in a model, they resemble each other."""
    tensors = {name: torch.empty(rank, *shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    resemble_(tensors)
    return ReferenceGradients(tuple(f"domain {i}" for i in range(rank)), tensors)


def resemble_(tensors: Mapping[str, Tensor]) -> None:
    """Fill reference gradients anew, the later ones each with the first one added: cosines of 0.5 and 0.7."""
    for rows in tensors.values():
        fill_(rows)
        rows[1:] += rows[:1]


def project_(subspace: Subspace, target: Mapping[str, Tensor], vector: Mapping[str, Vector] | None = None) -> None:
    """What the callback does to the gradients, or to the parameters with the step as the vector."""
    (reading,) = subspace.read(target if vector is None else vector)
    subspace.subtract_(target, subspace.removal(reading))


def _measure(shapes: Shapes, basis_dtype: torch.dtype, rank: int, settings: Settings) -> Row:
    device, x_size, d = settings.device, settings.dtype.itemsize, numel(shapes)
    gradients = references(shapes, rank, basis_dtype, device)
    subspace = Subspace.fit(gradients, inplace=True)
    after, before = ({n: filled(s, settings.dtype, device) for n, s in shapes.items()} for _ in range(2))
    step = {name: Difference(after[name], before[name]) for name in shapes}
    basis, x = rank * d * basis_dtype.itemsize, d * x_size
    moved = {"gradient": 2 * basis + 3 * x, "update": 2 * basis + 5 * x, "fit": 3 * basis, "fit as is": basis}
    with copying(device, _COPIED) as (copy, moved["copy"]):
        arms = {
            "copy": copy,
            "fit as is": lambda: Subspace.fit(gradients, inplace=True, as_they_are=True),
            "fit": lambda: Subspace.fit(gradients, inplace=True),  # the last to write over what the basis is made of
            "gradient": lambda: project_(subspace, after),
            "update": lambda: project_(subspace, after, step),
        }
        prepare = {"gradient": lambda: [fill_(x) for x in after.values()], "fit": lambda: resemble_(gradients.tensors)}
        prepare["fit as is"] = prepare["fit"]
        seconds = shortest(arms, settings.repeats, device, prepare)
    speed = moved["copy"] / seconds["copy"]
    return {
        "parameters": d,
        "tensors": len(shapes),
        "largest": max(prod(shape) for shape in shapes.values()),
        "copy, GB/s": speed / 1e9,
        **{f"{arm} / floor": seconds[arm] / (moved[arm] / speed) for arm in ("gradient", "update", "fit", "fit as is")},
        "seconds": seconds,
        "bytes": moved,
    }

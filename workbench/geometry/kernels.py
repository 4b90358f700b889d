"""The sums that everything in this room is made of: accurate to float64, at the speed of memory, without hidden copies.

A float32 dot product over ten million numbers is off by up to 10⁻⁴ of the lengths on a CPU. Here partial sums run over
short chunks, in the tensors' own precision (float32 at least), and are added in float64. Chunks also bound what a
conversion from 16 bits, or a transfer from the host, holds at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.geometry.gradients import wide

_GRAM_CHUNK = 8192  # m rows of it stay in a core's cache, and a partial sum is exact to 10⁻⁸
_CHUNK = 2**17  # of one sweep on a CPU
_ACCELERATOR_CHUNK = 2**24  # few launches; 64 MiB a row where a chunk has to be converted or fetched


@dataclass(frozen=True)
class Difference:
    """after − before, never formed as a whole: the step that an optimizer took.

    Attributes:
        after: Any tensor.
        before: Of the same shape.
    """

    after: Tensor
    before: Tensor


Vector = Tensor | Difference
Chunks = Callable[[int, int], Tensor]  # (start, stop) → those elements of something that is never formed as a whole


def gram(rows: Tensor) -> Tensor:
    """Inner products of all pairs of rows; (m, n) → (m, m) in float64."""
    m, n = rows.shape
    if rows.itemsize < 4:
        return sum((gram(rows[:, a:z].float()) for a, z in _spans(n, rows.device)), _zeros(rows, m, m))
    if rows.dtype == torch.float64 or n < 2 * _GRAM_CHUNK:
        rows = rows.double()
        return rows @ rows.T
    whole = n - n % _GRAM_CHUNK
    chunks = rows[:, :whole].unflatten(1, (-1, _GRAM_CHUNK)).transpose(0, 1)
    return torch.bmm(chunks, chunks.transpose(1, 2)).sum(0, dtype=torch.float64) + gram(rows[:, whole:])


def cross_gram(rows: Tensor, others: Tensor) -> Tensor:
    """Inner products of two sets of rows; (r, n), (s, n) → (r, s) in float64."""
    pairs = ((rows[:, a:z].double(), others[:, a:z]) for a, z in _spans(rows.shape[1], rows.device))
    return sum((x @ y.to(x).T for x, y in pairs), _zeros(rows, len(rows), len(others)))


def weighted_gram(rows: Tensor, weights: Chunks) -> Tensor:
    """Σⱼ wⱼ rowsᵢⱼ rowsₖⱼ; (r, n) → (r, r) in float64, computed where the weights are."""
    total = None
    for start, stop in _spans(rows.shape[1], rows.device):
        w = weights(start, stop)
        part = rows[:, start:stop].to(w)
        product = ((part * w) @ part.T).double()
        total = product if total is None else total + product
    return _zeros(rows, len(rows), len(rows)) if total is None else total


def dots(rows: Tensor, vector: Vector) -> tuple[list[Tensor], list[Tensor]]:
    """Partial sums, to be added in float64, of rows @ vector, each (r,), and of ‖vector‖², each a scalar."""
    whole = vector.after if isinstance(vector, Difference) else vector
    inner, squares = [], []
    for start, stop in _spans(whole.numel(), whole.device):
        x = chunk(vector, start, stop)
        squares.append(_dot(x))
        inner.append(_matvec(rows[:, start:stop].to(x), x))
    return inner, squares


def subtract_rows_(target: Tensor, rows: Tensor, weights: Tensor, scale: Chunks | None = None) -> None:
    """target ← target − scale ∘ Σᵢ weightsᵢ rowsᵢ, in place.

    Args:
        target: n elements in any shape.
        rows: (r, n).
        weights: (r,).
        scale: The diagonal of a metric, n elements; None for ones.
    """
    whole = target.detach().reshape(-1)  # a view, unless the target is not contiguous
    for start, stop in _spans(whole.numel(), whole.device):
        x = chunk(whole, start, stop)
        part, y = rows[:, start:stop].to(x), weights.to(x)
        if scale is None and x.dtype == whole.dtype:
            x.addmv_(part.T, y, alpha=-1)
        else:
            removed = y @ part
            whole[start:stop] = x - (removed if scale is None else removed * scale(start, stop))
    if whole.data_ptr() != target.data_ptr():
        target.detach().copy_(whole.view_as(target))


def transform(rows: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
    """out ← matrix @ rows, where `out` may be the first of the rows themselves.

    Args:
        rows: (m, n).
        matrix: (r, m).
        out: (r, n), of any dtype and device.
    """
    matrix = matrix.to(rows.device, wide(rows))
    for start, stop in _spans(rows.shape[1], rows.device):
        out[:, start:stop] = matrix @ rows[:, start:stop].to(matrix.dtype)
    return out


def chunk(vector: Vector, start: int, stop: int) -> Tensor:
    """Elements start…stop of a vector of any shape, in float32 or wider; a view where it can be."""
    if isinstance(vector, Difference):
        return chunk(vector.after, start, stop) - chunk(vector.before, start, stop)
    part = vector.detach().reshape(-1)[start:stop]
    return part.to(wide(part))


def flat(vector: Vector) -> Tensor:
    """All elements in float32 or wider, (n,); a view where it can be."""
    if isinstance(vector, Difference):
        return flat(vector.after) - flat(vector.before)
    whole = vector.detach().reshape(-1)
    return whole.float() if whole.itemsize < 4 else whole


def formed(vector: Vector) -> Tensor:
    """The whole of a vector in its shape, in float32 or wider."""
    return flat(vector).view((vector.after if isinstance(vector, Difference) else vector).shape)


def _spans(n: int, device: torch.device) -> Iterator[tuple[int, int]]:
    size = _CHUNK if device.type == "cpu" else _ACCELERATOR_CHUNK
    return ((start, min(start + size, n)) for start in range(0, n, size))


def _dot(x: Tensor) -> Tensor:
    return torch.dot(x, x) if x.device.type == "cpu" else torch.linalg.vector_norm(x).square()


def _matvec(rows: Tensor, x: Tensor) -> Tensor:
    """rows @ x; so few rows would not fill an accelerator, so there chunks of all of them are multiplied as a batch."""
    whole = x.numel() - x.numel() % _GRAM_CHUNK
    if x.device.type == "cpu" or not whole:
        return torch.mv(rows, x)
    chunks = rows[:, :whole].unflatten(1, (-1, _GRAM_CHUNK)).transpose(0, 1)
    inner = torch.bmm(chunks, x[:whole].view(-1, _GRAM_CHUNK, 1)).sum((0, 2), dtype=torch.float64)
    return inner + torch.mv(rows[:, whole:], x[whole:])


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64, device=like.device)

"""How rows over all parameters lie in memory, so that few operations serve many small tensors and none copies a large.

A large tensor is taken as it is. Small ones, of which a model has hundreds, are laid side by side in a `Pack`, each
padded to whole chunks; every operation then treats all of them at once, as a batch of chunks.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from workbench.geometry.gradients import wide
from workbench.geometry.kernels import (
    Chunks,
    Difference,
    Vector,
    dots,
    flat,
    gram,
    subtract_rows_,
    transform,
    weighted_gram,
)

Metric = Callable[[str], Chunks]  # parameter name → the diagonal of D, chunk by chunk
Rows = Mapping[str, Tensor]  # (m, *shape) by parameter name
Store = list[Tensor]  # rows as a layout keeps them: the chunks of each pack, then each large tensor's (m, numel)

_SMALL = 2**15  # elements up to which a tensor is packed
_CHUNK = 256  # elements of a pack that are multiplied together


class Layout:
    """The places of parameters in a store, and of what block each is part of.

    Args:
        tensors: By name, any with the parameters' (local) shapes after a first dimension.
        groups: The names of each block.
    """

    def __init__(self, tensors: Rows, groups: Mapping[str, Sequence[str]]) -> None:
        """Sort the parameters into packs and large ones."""
        self.groups = {block: list(names) for block, names in groups.items()}
        self.sizes = {name: tensors[name][0].numel() for names in self.groups.values() for name in names}
        self.block_of = {name: i for i, names in enumerate(self.groups.values()) for name in names}
        alike: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name in self.sizes:
            if self.sizes[name] <= _SMALL:
                alike.setdefault((tensors[name].device, tensors[name].dtype), []).append(name)
        self.packs = [Pack(self, names, device) for (device, _), names in alike.items()]
        packed = {name for pack in self.packs for name in pack.names}
        self.large = [name for name in self.sizes if name not in packed]

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.groups)

    def store(self, rows: Rows) -> Store:
        """Rows as the layout keeps them: a copy of small ones, a view of large."""
        return [pack.chunks(pack.lay([_matrix(rows[name]) for name in pack.names])) for pack in self.packs] + [
            _matrix(rows[name]) for name in self.large
        ]

    def part(self, store: Store, name: str) -> Tensor:
        """The rows of one parameter, (R, numel); a view of large ones."""
        for pack, chunks in zip(self.packs, store, strict=False):
            if name in pack.spans:
                return chunks[pack.spans[name]].transpose(0, 1).flatten(1)[:, : self.sizes[name]]
        return store[len(self.packs) + self.large.index(name)]

    def grams(self, store: Store) -> Tensor:
        """Inner products of the rows in every block; (n_blocks, m, m) in float64."""
        total = self._zeros(store)
        for pack, chunks in self._packed(store):
            chunks = chunks.to(wide(chunks))
            pack.add(total, torch.bmm(chunks, chunks.transpose(1, 2)))
        for name, rows in self._large(store):
            total[self.block_of[name]] += gram(rows).to(total.device)
        return total

    def weighted_grams(self, store: Store, metric: Metric) -> Tensor:
        """The same in a metric."""
        total = self._zeros(store)
        for pack, chunks in self._packed(store):
            weights = pack.chunks(pack.lay([metric(name)(0, self.sizes[name]) for name in pack.names])[None])
            chunks = chunks.to(weights)
            pack.add(total, torch.bmm(chunks * weights, chunks.transpose(1, 2)))
        for name, rows in self._large(store):
            total[self.block_of[name]] += weighted_gram(rows, metric(name)).to(total.device)
        return total

    def dots(self, store: Store, vector: Mapping[str, Vector]) -> Tensor:
        """rows @ vector and ‖vector‖² of every block; (n_blocks, R + 1) in float64."""
        tables, owners = [], []
        for pack, chunks in self._packed(store):
            x = pack.chunks(pack.lay_vector(vector)[None])
            both = [torch.bmm(rows, x.transpose(1, 2)) for rows in (chunks.to(x), x)]
            tables.append(torch.cat(both, dim=1).squeeze(2).double())
            owners.append(pack.owners)
        for name, rows in self._large(store):
            inner, squares = dots(rows, vector[name])
            tables.append(torch.cat([torch.stack(inner).double(), torch.stack(squares).double()[:, None]], dim=1))
            owners.append(torch.full((len(squares),), self.block_of[name], device=tables[-1].device))
        device = tables[0].device
        total = torch.zeros(self.n_blocks, tables[0].shape[1], dtype=torch.float64, device=device)
        return total.index_add_(0, torch.cat([o.to(device) for o in owners]), torch.cat([t.to(device) for t in tables]))

    def transform(
        self,
        store: Store,
        matrices: Tensor,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        inplace: bool = False,
    ) -> Store:
        """matrix @ rows in every block.

        Args:
            store: m rows.
            matrices: (n_blocks, R, m).
            dtype: Of the result; None is that of the rows.
            device: Of the result; None is that of the rows.
            inplace: Whether large tensors may be overwritten, where the result has as many rows.
        """
        found = []
        for pack, chunks in self._packed(store):
            found.append(pack.combine(chunks, matrices).to(device or chunks.device, dtype or chunks.dtype))
        for name, rows in self._large(store):
            matrix = matrices[self.block_of[name]]
            place = (dtype or rows.dtype, torch.device(device or rows.device))
            if inplace and place == (rows.dtype, rows.device) and len(matrix) == len(rows):
                out = rows  # with fewer rows, what is left over would live as long as the basis
            else:
                out = torch.empty(len(matrix), rows.shape[1], dtype=place[0], device=place[1])
            found.append(transform(rows, matrix, out))
        return found

    def subtract_(
        self, vectors: Mapping[str, Tensor], store: Store, weights: Tensor, metric: Metric | None = None
    ) -> None:
        """x ← x − D Σᵢ weightsᵢ rowsᵢ in place, with the weights of every block; (n_blocks, R)."""
        for pack, chunks in self._packed(store):
            chunks = chunks.to(vectors[pack.names[0]].device)
            removed = pack.combine(chunks, weights[:, None]).flatten()
            if metric:
                removed *= pack.lay([metric(name)(0, self.sizes[name]) for name in pack.names])
            pieces = pack.pieces(removed)
            targets = [vectors[name].detach() for name in pack.names]
            torch._foreach_sub_(targets, [p.view(t.shape) for p, t in zip(pieces, targets, strict=True)])
        for name, rows in self._large(store):
            subtract_rows_(vectors[name], rows, weights[self.block_of[name]], metric and metric(name))

    def _zeros(self, store: Store) -> Tensor:
        m = store[0].shape[1 if self.packs else 0]
        return torch.zeros(self.n_blocks, m, m, dtype=torch.float64, device=store[0].device)

    def _packed(self, store: Store) -> "list[tuple[Pack, Tensor]]":
        return list(zip(self.packs, store, strict=False))

    def _large(self, store: Store) -> list[tuple[str, Tensor]]:
        return list(zip(self.large, store[len(self.packs) :], strict=True))


class Pack:
    """Small tensors side by side, each in whole chunks.

    Attributes:
        names: Of the parameters.
        spans: The chunks of each.
        owners: The number of the block that each chunk is part of; (n_chunks,).
    """

    def __init__(self, layout: Layout, names: list[str], device: torch.device) -> None:
        """Give each its place."""
        sizes = [layout.sizes[name] for name in names]
        self.names = names
        n_chunks = [-(-size // _CHUNK) for size in sizes]
        ends = list(accumulate(n_chunks))
        self.spans = {name: slice(end - n, end) for name, n, end in zip(names, n_chunks, ends, strict=True)}
        self._widths = [w for size, n in zip(sizes, n_chunks, strict=True) for w in (size, n * _CHUNK - size)]
        counts, blocks = torch.tensor(n_chunks), torch.tensor([layout.block_of[name] for name in names])
        self.owners = blocks.repeat_interleave(counts).to(device)

    def lay(self, parts: Sequence[Tensor]) -> Tensor:
        """(…, size) of every parameter → (…, n), with zeros in between."""
        if not any(self._widths[1::2]):
            return torch.cat(list(parts), dim=-1)
        gaps = (part.new_zeros(*part.shape[:-1], w) for part, w in zip(parts, self._widths[1::2], strict=True))
        return torch.cat([tensor for pair in zip(parts, gaps, strict=True) for tensor in pair], dim=-1)

    def lay_vector(self, vectors: Mapping[str, Vector]) -> Tensor:
        """A vector over all parameters → (n,), in float32 or wider."""
        chosen = [vectors[name] for name in self.names]
        after = self.lay([flat(v.after if isinstance(v, Difference) else v) for v in chosen])
        before = [flat(v.before) for v in chosen if isinstance(v, Difference)]
        return after - self.lay(before) if before else after

    def pieces(self, laid: Tensor) -> Sequence[Tensor]:
        """(n,) → what belongs to each parameter, (size,)."""
        return laid.split_with_sizes(self._widths)[::2]

    def chunks(self, laid: Tensor) -> Tensor:
        """(m, n) → (n_chunks, m, chunk), as a pack's rows are kept; a view."""
        return laid.view(len(laid), len(self.owners), _CHUNK).transpose(0, 1)

    def add(self, total: Tensor, products: Tensor) -> None:
        """Add what each chunk gives to its block's; (n_blocks, r, s)."""
        total.index_add_(0, self.owners.to(total.device), products.to(total))

    def combine(self, chunks: Tensor, matrices: Tensor) -> Tensor:
        """matrix @ rows in every block, in float32 or wider; (n_chunks, m, chunk) → (n_chunks, R, chunk)."""
        matrices = matrices.to(chunks.device, wide(chunks))[self.owners.to(chunks.device)]
        return torch.bmm(matrices, chunks.to(matrices.dtype))


def _matrix(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1)

"""The directions of weight space that reference inputs can see: the null space of activations."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.geometry.gradients import Batch, undisturbed, wide
from workbench.geometry.kernels import Vector, formed
from workbench.geometry.layout import Metric
from workbench.geometry.subspace import Energy


@dataclass(frozen=True)
class ActivationBlock:
    """The principal directions of the inputs of one weight matrix.

    Attributes:
        basis: P, (k, in_features) orthonormal rows.
        eigenvalues: Of the mean of xxᵀ over reference tokens, in descending order; (in_features,), float64.
        shape: Of the weight.
        inputs_first: The weight is (in_features, out_features), as in GPT-2's Conv1D.
    """

    basis: Tensor
    eigenvalues: Tensor
    shape: tuple[int, int]
    inputs_first: bool = False

    @property
    def rank(self) -> int:
        """Directions of weight space: k for each output."""
        return len(self.basis) * self.shape[1 if self.inputs_first else 0]

    @property
    def n_params(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    def by_inputs(self, matrix: Tensor) -> Tensor:
        """A matrix in the weight's shape as a view (out_features, in_features)."""
        return matrix.T if self.inputs_first else matrix


@dataclass(frozen=True)
class ActivationReading:
    """What one pass over a vector tells, as `Reading` does of a span of gradients.

    Attributes:
        coefficients: δW Pᵀ of each block; (out_features, k).
        total: ‖δW‖² of each block; (n_blocks,).
        energy: What lies inside, and in all.
    """

    coefficients: tuple[Tensor, ...]
    total: Tensor
    energy: Energy


@dataclass(frozen=True)
class ActivationSubspace:
    """What a change of weights must avoid so that linear layers answer reference inputs as before.

    A layer y = Wx changes by δW·x, which is zero for all inputs in the span of P if δW ← δW(I − PᵀP) (GPM, Saha et al.
    2021, 2103.09762; NSPO, 2512.11391): exactly for the layer by itself, to first order for the model, as the inputs of
    later layers move where earlier ones change.

    Only weights of linear layers are constrained. Embeddings, norms and biases, and weights that are also an
    embedding's (a tied head), are not in `blocks`, and are never touched or counted. A tied weight is left out since
    it is looked up as well: what its head's inputs do not see still moves the embedding of every token.

    Attributes:
        blocks: By parameter name.
        provenance: Where it came from, for the file.
    """

    scope: ClassVar[str] = "activations"
    blocks: Mapping[str, ActivationBlock]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        model: torch.nn.Module,
        batches: Sequence[Batch],
        parameters: Mapping[str, torch.nn.Parameter] | None = None,
        energy: float = 0.95,
    ) -> "ActivationSubspace":
        """The smallest bases that hold a share of the inputs' energy: Σ_{i≤k} λᵢ ≥ energy·Σ λᵢ in every layer.

        λ are the eigenvalues of the uncentred covariance of the layer's inputs at real tokens, those that the batch's
        ``attention_mask`` (B, T) names; without a mask all are. Covariances take in_features² float64 numbers per
        layer. The model runs in evaluation mode, on batches without their ``labels``, and is left as it was. A layer
        that no token reached, or whose weight is used without calling it, has an empty basis.

        Args:
            model: A module that takes a batch as keyword arguments.
            batches: Reference inputs.
            parameters: Of which those that a linear layer holds are constrained, by name; None takes all that require
                gradients.
            energy: In (0, 1]. With 1, all inputs lie in the span; what is below 10⁻⁷ of their length counts as
                rounding, which is what float64 leaves of a square root.

        Raises:
            ValueError: `energy` is out of range, there is no batch, no linear layer holds one of the parameters, or the
                positions of a layer's inputs are not those of the mask.
            FloatingPointError: The inputs of a layer hold NaN or infinity.
        """
        if not 0 < energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {energy}.")
        if not batches:
            raise ValueError("There is no reference batch: expected at least one.")
        if parameters is None:
            parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        layers = _linear_layers(model, parameters)
        if not layers:
            raise ValueError("No linear layer holds one of the parameters, so there is nothing that inputs could span.")
        blocks = {
            name: _fit_block(covariance, parameters[name], _inputs_first(layers[name][0]), energy)
            for name, covariance in _covariances(model, batches, parameters, layers).items()
        }
        return cls(blocks, {"energy": energy})

    @property
    def names(self) -> list[str]:
        """Of the blocks, each a parameter's."""
        return list(self.blocks)

    @property
    def rank(self) -> int:
        """The number of directions of parameter space over all blocks, Σ k·out_features."""
        return sum(block.rank for block in self.blocks.values())

    @property
    def n_params(self) -> int:
        """The number of constrained parameters, d."""
        return sum(block.n_params for block in self.blocks.values())

    @property
    def random_floor(self) -> float:
        """The leakage √(r/d) that a random direction of the constrained parameters is expected to have."""
        return math.sqrt(self.rank / self.n_params)

    def read(self, *vectors: Mapping[str, Vector], metric: Metric | None = None) -> tuple[ActivationReading, ...]:
        """One pass over each vector, as `Subspace.read`; names without a block are not looked at.

        Raises:
            ValueError: A metric is given.
        """
        if metric is not None:
            raise ValueError('A null space of activations is kept in the Euclidean metric alone: take side="update".')
        return tuple(self._reading(vector) for vector in vectors)

    def inner(self, one: ActivationReading, other: ActivationReading) -> Tensor:
        """The inner product of what two vectors have inside, block by block; (n_blocks,)."""
        pairs = zip(one.coefficients, other.coefficients, strict=True)
        return torch.stack([(x * y).sum(dtype=torch.float64) for x, y in pairs]).cpu()

    def energy(self, vectors: Mapping[str, Vector]) -> Energy:
        """The squared length of a vector inside the subspace and in all, block by block."""
        return self.read(vectors)[0].energy

    def removal(self, reading: ActivationReading, when: str = "always", direction: int = 1) -> tuple[Tensor, ...]:
        """What `subtract_` takes so that nothing is left inside: δW Pᵀ of every block.

        Raises:
            ValueError: The removal is to depend on a conflict, of which activations know nothing.
        """
        if when != "always":
            raise ValueError(f'A null space of activations knows no conflict: take when="always", got {when!r}.')
        return reading.coefficients

    def subtract_(self, vectors: Mapping[str, Tensor], weights: Sequence[Tensor], metric: Metric | None = None) -> None:
        """δW ← δW − C P in place, C being the `weights` of every block; names without a block stay as they are."""
        for (name, block), coefficients in zip(self.blocks.items(), weights, strict=True):
            if block.rank:
                matrix = block.by_inputs(vectors[name])
                matrix.sub_((coefficients @ block.basis.to(coefficients)).to(matrix.dtype))

    def conflicts(self, reading: ActivationReading, direction: int) -> Tensor:
        """None, as there are no losses here that could rise; (n_blocks, 0)."""
        return torch.zeros(len(self.blocks), 0, dtype=torch.bool)

    def project_out_(self, vectors: Mapping[str, Tensor]) -> Energy:
        """Remove what reference inputs would see, δW ← δW(I − PᵀP), in place.

        Args:
            vectors: By parameter name, in the parameters' shapes; names without a block stay as they are.

        Returns:
            The energies before the removal.
        """
        (reading,) = self.read(vectors)
        self.subtract_(vectors, self.removal(reading))
        return reading.energy

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all; shapes and provenance go into its header."""
        from safetensors.torch import save_file

        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        tensors = {f"{name}/basis": block.basis.contiguous() for name, block in self.blocks.items()}
        tensors |= {f"{name}/eigenvalues": block.eigenvalues for name, block in self.blocks.items()}
        blocks = {n: {"shape": list(b.shape), "inputs_first": b.inputs_first} for n, b in self.blocks.items()}
        header = {"blocks": blocks, "provenance": dict(self.provenance)}
        save_file(tensors, partial, metadata={self.scope: json.dumps(header)})
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "ActivationSubspace":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            if cls.scope not in metadata:
                raise ValueError(
                    f"{path} holds no subspace of activations; pass one that ActivationSubspace.save wrote."
                )
            header = json.loads(metadata[cls.scope])
            blocks = {
                name: ActivationBlock(
                    file.get_tensor(f"{name}/basis"),
                    file.get_tensor(f"{name}/eigenvalues"),
                    tuple(block["shape"]),
                    block["inputs_first"],
                )
                for name, block in header["blocks"].items()
            }
        return cls(blocks, header["provenance"])

    def _reading(self, vectors: Mapping[str, Vector]) -> ActivationReading:
        coefficients, inside, total = [], [], []
        for name, block in self.blocks.items():
            matrix = block.by_inputs(formed(vectors[name]))
            coefficients.append(matrix @ block.basis.to(matrix).T)
            inside.append(coefficients[-1].square().sum(dtype=torch.float64))
            total.append(matrix.square().sum(dtype=torch.float64))
        energy = Energy(torch.stack(inside).cpu(), torch.stack(total).cpu())
        return ActivationReading(tuple(coefficients), energy.total, energy)


def _linear_layers(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, list[torch.nn.Module]]:
    """The linear layers that hold each parameter as their weight, by its name; several may share one."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) or _inputs_first(module)]
    matrices = {name: p for name, p in parameters.items() if p.ndim == 2 and id(p) not in looked_up}
    held = {name: [m for m in linear if getattr(m, "weight", None) is p] for name, p in matrices.items()}
    return {name: layers for name, layers in held.items() if layers}


def _inputs_first(module: torch.nn.Module) -> bool:
    """GPT-2's linear layer has its weight transposed; it is known by its name, as transformers is not imported here."""
    return type(module).__name__ == "Conv1D"


def _covariances(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    parameters: Mapping[str, torch.nn.Parameter],
    layers: Mapping[str, Sequence[torch.nn.Module]],
) -> dict[str, Tensor]:
    """The mean of xxᵀ over the real tokens that reach a layer, by parameter name; (in_features, in_features)."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    real: Tensor | None = None  # of the batch that is running

    def add(name: str, layer: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        rows = _real_rows((*args, *kwargs.values())[0], real, name).double()
        sums[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    with undisturbed(model), torch.no_grad(), ExitStack() as hooks:
        for name, held in layers.items():
            n_inputs = parameters[name].shape[0 if _inputs_first(held[0]) else 1]
            sums[name] = parameters[name].new_zeros(n_inputs, n_inputs, dtype=torch.float64)
            for layer in held:
                hooks.callback(layer.register_forward_pre_hook(partial(add, name), with_kwargs=True).remove)
        for batch in batches:
            real = batch.get("attention_mask")
            model(**{key: value for key, value in batch.items() if key != "labels"})
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise FloatingPointError(f"The inputs of {name} hold NaN or infinity on the reference batches.")
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _real_rows(inputs: Tensor, real: Tensor | None, name: str) -> Tensor:
    """The inputs of a layer at tokens that are no padding; (n, in_features)."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    if real is None or real.all():
        return rows
    if len(rows) != real.numel():
        raise ValueError(
            f"The inputs of {name} are {tuple(inputs.shape)}, so that the padding which the attention_mask "
            f"{tuple(real.shape)} names cannot be found among them. Give batches without padding."
        )
    return rows[real.reshape(-1).bool()]


def _fit_block(covariance: Tensor, weight: Tensor, inputs_first: bool, energy: float) -> ActivationBlock:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    rounding = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    eigenvalues = torch.where(eigenvalues > rounding * eigenvalues[0], eigenvalues, 0.0)
    held = eigenvalues.cumsum(0)
    k = int((held < energy * held[-1]).sum()) + 1 if held[-1] > 0 else 0
    basis = vectors[:, :k].T.to(wide(weight)).contiguous()
    n_rows, n_columns = weight.shape
    return ActivationBlock(basis, eigenvalues, (n_rows, n_columns), inputs_first)

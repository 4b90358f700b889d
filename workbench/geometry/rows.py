"""Modules whose backward keeps the rows of a batch apart: training's gradient goes its way, each group's to a slot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from workbench.geometry.gradients import wide

Groups = Tensor | Sequence[Tensor]  # (m, n, …) where all groups are of one size, or else (n, …) of each
Rule = Callable[..., Any]


@dataclass(frozen=True)
class Rows:
    """Whose the rows of a batch are: training's first, then those of each group.

    Attributes:
        training: How many are training's.
        groups: How many are each group's.
        width: The tokens of a row.
    """

    training: int
    groups: tuple[int, ...]
    width: int

    @cached_property
    def total(self) -> int:
        """All rows."""
        return self.training + self.riding

    @cached_property
    def riding(self) -> int:
        """The rows of all groups."""
        return sum(self.groups)

    @cached_property
    def _even(self) -> bool:
        return len(set(self.groups)) == 1

    def parts(self, tensor: Tensor) -> tuple[Tensor, Groups]:
        """What belongs to training and to each group in (n, …), where every row has as many of these n."""
        n = tensor.shape[0] // self.total
        if not self._even:
            own, *groups = tensor.split_with_sizes([n * self.training, *(n * k for k in self.groups)])
            return own, groups
        own, rest = tensor.split_with_sizes((n * self.training, n * self.riding))
        return own, rest.view(len(self.groups), n * self.groups[0], *tensor.shape[1:])

    def require(self, module: nn.Module, shape: Sequence[int]) -> None:
        """Refuse an input that is neither (rows, …, size) nor (rows · tokens, size)."""
        if shape[0] != self.total * (self.width if len(shape) == 2 else 1):
            raise RuntimeError(
                f"{type(module).__name__} got an input of shape {tuple(shape)}, in which {self.total} rows of "
                f"{self.width} tokens cannot be told apart."
            )


class Slot:
    """The gradient of every group for one parameter: a backward writes it, later ones add to it.

    Attributes:
        sums: (m, *shape), in fp32 or wider.
    """

    def __init__(self, parameter: Parameter, n_groups: int) -> None:
        """Room for `n_groups` gradients."""
        shape = (n_groups, *parameter.shape)
        self.sums = torch.zeros(shape, dtype=wide(parameter), device=parameter.device)
        self._fresh = True

    def add_sums(self, groups: Groups) -> None:
        """The sum of each group over its first dimension, (n, *shape)."""
        sums = groups.sum(1) if isinstance(groups, Tensor) else torch.stack([part.sum(0) for part in groups])
        (self.sums.copy_ if self._fresh else self.sums.add_)(sums)
        self._fresh = False

    def add_products(self, lefts: Groups, rights: Groups) -> None:
        """leftᵀ · right of each group, (n, rows of the parameter) and (n, columns of it)."""
        beta = 0 if self._fresh else 1
        if isinstance(lefts, Tensor) and isinstance(rights, Tensor) and lefts.dtype == self.sums.dtype:
            self.sums.baddbmm_(lefts.mT, rights, beta=beta)
        else:
            for total, left, right in zip(self.sums, lefts, rights, strict=True):
                if left.dtype == total.dtype:
                    total.addmm_(left.t(), right, beta=beta)
                else:
                    (total.copy_ if self._fresh else total.add_)(left.t() @ right)
        self._fresh = False

    def add_rows(self, indices: Groups, values: Groups, skipped: int | None) -> None:
        """The (n, columns) values of each group, to the rows of the parameter at its (n,) indices but one."""
        if self._fresh:
            self.sums.zero_()
        kept = None if skipped is None else self.sums[:, skipped].clone()
        for total, index, value in zip(self.sums, indices, values, strict=True):
            total.index_add_(0, index, value.to(total.dtype))
        if kept is not None:
            self.sums[:, skipped] = kept
        self._fresh = False

    def close(self, factor: float) -> None:
        """Scale the sums, zero if no backward has reached the parameter; the next backward starts anew."""
        if self._fresh:
            self.sums.zero_()
        elif factor != 1:
            self.sums.mul_(factor)
        self._fresh = True


Slots = Mapping[str, Slot | None]  # of a module's own parameters


class RowwiseModules:
    """Modules that keep rows apart for as long as `rows` says whose they are.

    Attributes:
        rows: None leaves the modules to themselves.
    """

    def __init__(self, modules: Iterable[nn.Module], slot_of: Mapping[Parameter, Slot]) -> None:
        """Patch modules that have a `rule_of`; parameters without a slot get training's gradient only."""
        self.rows: Rows | None = None
        self._modules = list(modules)
        for module in self._modules:
            slots = {name: slot_of.get(p) for name, p in module._parameters.items() if p is not None}
            # A bound method, so that a copy of the module calls it with the copy.
            module.forward = MethodType(partial(self._forward, rule_of(module), slots), module)

    def restore(self) -> None:
        """Give the modules their own forward back."""
        for module in self._modules:
            vars(module).pop("forward", None)

    def _forward(self, rule: Any, slots: Slots, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.rows is None:
            return type(module).forward(module, *args, **kwargs)
        return rule(module, self.rows, slots, *args, **kwargs)


def rule_of(module: Any) -> Rule | None:
    """How a module that holds parameters itself keeps rows apart, None if that is not known."""
    forward = type(module).forward
    if "forward" in vars(module):
        return None
    if forward is nn.Linear.forward or type(module).__name__ == "Conv1D":
        return partial(_affine, _Linear.apply)
    if isinstance(module, nn.Embedding):
        return None if module.sparse or module.scale_grad_by_freq or module.max_norm else _embedding
    if forward is nn.LayerNorm.forward:
        return partial(_affine, partial(_Normalise.apply, module.eps, 0)) if len(module.normalized_shape) == 1 else None
    if "Norm" not in type(module).__name__:
        return None
    offset = _rms_offset(module)
    if offset is not None:
        return partial(_affine, partial(_Normalise.apply, _eps_of(module), offset))
    return _elementwise if _is_elementwise(module) else None


def _affine(function: Callable[..., Tensor], module: Any, rows: Rows, slots: Slots, x: Tensor) -> Tensor:
    rows.require(module, x.shape)
    return function(x, module.weight, module._parameters.get("bias"), module, rows, slots)


class _Linear(Function):
    """`nn.Linear`, or GPT-2's Conv1D, whose weight is transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: Any, rows: Rows, slots: Slots) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.slots, ctx.transposed = rows, slots, not isinstance(module, nn.Linear)
        return type(module).forward(module, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        x, weight = x.to(grad.dtype), weight.to(grad.dtype)  # as autocast did in the forward
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        to_x = grad @ (weight.t() if ctx.transposed else weight) if of_x else None
        to_weight = to_bias = None
        left, right = grad.flatten(0, -2), x.flatten(0, -2)
        if of_bias:
            to_bias = _sums(ctx.rows, left, ctx.slots["bias"])
        if of_weight:
            left, right = (right, left) if ctx.transposed else (left, right)
            to_weight = _products(ctx.rows, left, right, ctx.slots["weight"])
        return to_x, to_weight, to_bias, None, None, None


class _Normalise(Function):
    """`nn.LayerNorm`, or an RMS norm, over the last dimension, of a weight that counts from an offset."""

    @staticmethod
    def forward(ctx: Any, eps: float, offset: int, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        module, ctx.rows, ctx.slots = rest
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset, ctx.centred = eps, offset, isinstance(module, nn.LayerNorm)
        return type(module).forward(module, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        x = x.to(wide(x))
        if ctx.centred:
            x = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps)
        normal = x * scale
        inner = grad * (weight.to(x.dtype) + ctx.offset)
        to_x = inner - normal * (inner * normal).mean(-1, keepdim=True)
        if ctx.centred:
            to_x -= inner.mean(-1, keepdim=True)
        to_weight = to_bias = None
        if ctx.needs_input_grad[3]:
            to_weight = _sums(ctx.rows, (grad * normal).flatten(0, -2), ctx.slots["weight"])
        if ctx.needs_input_grad[4]:
            to_bias = _sums(ctx.rows, grad.flatten(0, -2), ctx.slots["bias"])
        return None, None, to_x * scale, to_weight, to_bias, None, None, None


def _embedding(module: Any, rows: Rows, slots: Slots, *args: Any, **kwargs: Any) -> Any:
    with _Lookup(module, rows, slots) as lookup:
        output = type(module).forward(module, *args, **kwargs)
    if not lookup.seen:
        raise RuntimeError(f"{type(module).__name__} does not read its weight through F.embedding.")
    return output


class _Lookup(TorchFunctionMode):
    """Within an embedding's own forward, whatever else that does, `F.embedding` keeps rows apart."""

    def __init__(self, module: nn.Embedding, rows: Rows, slots: Slots) -> None:
        super().__init__()
        self._module, self._rows, self._slots, self.seen = module, rows, slots, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.embedding:
            return func(*args, **(kwargs or {}))
        ids, self.seen = args[0], True
        if ids.numel() == self._rows.width:  # the positions of one row, which stand for all
            ids = ids.expand(self._rows.total, -1)
        self._rows.require(self._module, (*ids.shape, 1))
        return _Embedding.apply(self._module.weight, ids, self._module.padding_idx, self._rows, self._slots["weight"])


class _Embedding(Function):
    """A dense `F.embedding`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None, rows: Rows, slot: Slot | None) -> Any:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.slot, ctx.padding_idx, ctx.shape = rows, slot, padding_idx, weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        own_ids, indices = ctx.rows.parts(ids.flatten())
        own, values = ctx.rows.parts(grad.flatten(0, -2))
        if ctx.slot is not None:
            ctx.slot.add_rows(indices, values, ctx.padding_idx)
        if not ctx.rows.training:
            return None, None, None, None, None
        to_weight = grad.new_zeros(ctx.shape).index_add_(0, own_ids, own)
        if ctx.padding_idx is not None:
            to_weight[ctx.padding_idx] = 0
        return to_weight, None, None, None, None


def _elementwise(module: Any, rows: Rows, slots: Slots, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    rows.require(module, x.shape)
    copies = {
        name: _Spread.apply(p, (len(x), *[1] * (x.ndim - 1 - p.ndim), *p.shape), rows, slots[name])
        for name, p in module._parameters.items()
        if p is not None and p.requires_grad
    }
    return _call(module, copies, x, *args, **kwargs)


class _Spread(Function):
    """A copy of a parameter for every row, (rows, 1, …, *shape), so that its gradient arrives row by row."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, shape: Sequence[int], rows: Rows, slot: Slot | None) -> Tensor:
        ctx.rows, ctx.slot, ctx.shape = rows, slot, parameter.shape
        return parameter.expand(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _sums(ctx.rows, grad.reshape(-1, *ctx.shape), ctx.slot), None, None, None


def _call(module: Any, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """The module's own forward with other tensors for its parameters, as `functional_call`, which takes far longer."""
    own = {name: module._parameters[name] for name in parameters}
    module._parameters.update(parameters)
    try:
        return type(module).forward(module, *args, **kwargs)
    finally:
        module._parameters.update(own)


def _eps_of(module: Any) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


def _rms_offset(module: Any) -> int | None:
    """The o for which a module computes (o + weight) · x/√(mean x² + ε), 0 or 1; None if it does something else."""
    try:
        with torch.no_grad():
            weight = torch.linspace(-1, 1, len(module.weight), device=module.weight.device)
            x = 0.01 * torch.stack([weight, weight.cos(), weight.exp()])  # small, so that ε shows
            found = _call(module, {"weight": weight}, x[None])[0]
            normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _eps_of(module))
    except Exception:  # whatever it says, it is of another kind
        return None
    return next((o for o in (0, 1) if torch.allclose(found, (o + weight) * normal, atol=1e-5)), None)


def _is_elementwise(module: nn.Module) -> bool:
    """Whether copies of a module's parameters, one a row, do to each row what they do to it alone."""
    own = {name: p.detach() for name, p in module.named_parameters(recurse=False)}
    first = next(iter(own.values()))
    x = torch.linspace(-1, 1, 6 * first.shape[-1], device=first.device).to(first.dtype).view(2, 3, -1)
    copies = {name: torch.stack([p + 1, 2 - p]) for name, p in own.items()}
    try:
        with torch.no_grad():
            together = _call(module, {name: copy[:, None] for name, copy in copies.items()}, x)
            alone = [_call(module, {name: copy[i] for name, copy in copies.items()}, x[i : i + 1]) for i in range(2)]
            return torch.equal(together, torch.cat(alone))
    except Exception:  # whatever it says, it cannot be called like this
        return False


def _sums(rows: Rows, values: Tensor, slot: Slot | None) -> Tensor | None:
    """Sums over the first dimension: the groups' go to the slot; training's is returned, None if it has no rows."""
    own, groups = rows.parts(values)
    if slot is not None:
        slot.add_sums(groups)
    return own.sum(0) if rows.training else None


def _products(rows: Rows, left: Tensor, right: Tensor, slot: Slot | None) -> Tensor | None:
    """leftᵀ · right: the groups' go to the slot; training's is returned, None if it has no rows."""
    (own_left, lefts), (own_right, rights) = rows.parts(left), rows.parts(right)
    if slot is not None:
        slot.add_products(lefts, rights)
    return own_left.t() @ own_right if rows.training else None

"""Reference gradients out of training's own backward: reference rows ride in the batch, their gradients split off."""

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import Parameter

from workbench.geometry.gradients import Batch, ReferenceGradients, undisturbed, wide
from workbench.geometry.rows import Rows, RowwiseModules, Slot, rule_of

IGNORED = -100  # the label that counts for nothing, as in transformers and torch
_MIXERS = nn.modules.batchnorm._BatchNorm  # of all kinds


class GradientSplit:
    """The gradient of each group of reference rows, exactly, from the one forward and backward of a training step.

    The rows of a batch do not see each other in a causal language model, so reference rows can ride along: they are
    appended to training's where those enter the model's backbone and cut off where they leave it. Loss, logits and
    metrics are then those of training alone, whatever they are made of. The reference loss of group k, the mean
    cross-entropy L_k per label in nats, is taken from the riders' own hidden states, and the backward of training's
    loss carries ∂L_k/∂θ along, whatever that loss is scaled by. There, every module with trained parameters keeps the
    rows apart (a linear map computes dYₖᵀXₖ over the tokens of group k): ``.grad`` gets the gradient of training, a
    buffer that of each group. The work is that of a plain step on as many rows of the longest one's width, and some
    0.1 ms of Python for every module with trained parameters.

    It goes with accumulation, gradient checkpointing, autocast, tied embeddings and adapters; `unsplittable` names what
    it does not go with. Under data parallelism the buffers hold the gradients of one process.

    Example:
        ::

            with GradientSplit(model, trained_parameters(model), n_groups=2) as split:
                split.ride([facts, addition])
                model(**batch).loss.backward()  # .grad is that of the batch alone
                gradients, losses = split.collect()

    Args:
        model: A Hugging Face causal language model, or its PEFT wrapper.
        parameters: By name, those whose reference gradients are wanted; a frozen one has none. The buffers take
            `n_groups` times their memory, in fp32 at least.
        n_groups: The number m of groups.

    Raises:
        ValueError: The model is `unsplittable`, or there is no group.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Parameter], n_groups: int) -> None:
        """Check and patch the model, whose results stay the same until rows ride."""
        if n_groups < 1:
            raise ValueError(f"n_groups must be at least 1, got {n_groups}.")
        if reasons := unsplittable(model, parameters):
            raise ValueError(f"The gradients of single rows cannot be split for {'; '.join(reasons)}.")
        backbone, self._head = _anatomy(model)
        self._slots = {name: Slot(p, n_groups) for name, p in parameters.items() if p.requires_grad}
        slot_of = {parameters[name]: slot for name, slot in self._slots.items()}
        self._modules = RowwiseModules(_holders(backbone, self._head), slot_of)
        self._hooks = [
            backbone.register_forward_pre_hook(self._board, with_kwargs=True),
            backbone.register_forward_hook(self._alight),
        ]
        self._arguments = tuple(inspect.signature(backbone.forward).parameters)
        self._device = next(backbone.parameters()).device
        self._n_groups = n_groups
        self._scale = 1.0
        self._waiting: _Riders | None = None
        self._aboard: tuple[_Riders, Rows, int] | None = None
        self._losses: list[Tensor] = []  # of each forward since the last collect
        self._n_backwards = 0

    def ride(self, groups: Sequence[Batch], loss_scale: float = 1.0) -> None:
        """Let reference rows ride in the next forward in training mode with gradients, and in that one only.

        Args:
            groups: One batch a group: ``input_ids``, ``labels`` and perhaps ``attention_mask``, each (rows, tokens).
            loss_scale: Keeps fp16 gradients from underflowing; `collect` divides by it.

        Raises:
            ValueError: There are not `n_groups` groups, one has no label, or the scale changed since the last collect.
        """
        if len(groups) != self._n_groups:
            raise ValueError(f"Expected {self._n_groups} groups, a batch each, got {len(groups)}.")
        if self._losses and loss_scale != self._scale:
            raise ValueError(f"loss_scale must stay {self._scale} until the next collect(), got {loss_scale}.")
        self._scale = loss_scale
        self._waiting = _Riders.of(groups, self._device)

    def collect(self) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients and losses of the groups, each the mean over the micro-batches since the last call.

        Returns:
            (m, *shape) by parameter name, the buffers themselves, which the next backward overwrites; and the m losses.

        Raises:
            RuntimeError: Nothing rode since the last call, or what rode never went through a backward.
        """
        losses, n_backwards = self._losses, self._n_backwards
        self._losses, self._n_backwards, self._modules.rows = [], 0, None
        for slot in self._slots.values():
            slot.close(1 / (max(n_backwards, 1) * self._scale))
        if not losses:
            raise RuntimeError("No reference rows rode since the last collect(). Call ride() before the forward.")
        if n_backwards < len(losses):
            raise RuntimeError(
                f"Reference rows rode in {len(losses)} forwards, of which {n_backwards} went through a backward. Call "
                "collect() after the backward of a loss that depends on the last hidden states."
            )
        return {name: slot.sums for name, slot in self._slots.items()}, torch.stack(losses).mean(0)

    def remove(self) -> None:
        """Leave the model as it was before."""
        self._modules.restore()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "GradientSplit":
        """The split itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it."""
        self.remove()

    def _board(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Append the riders to the rows that enter the backbone."""
        self._modules.rows = self._aboard = None
        if self._waiting is None or not (backbone.training and torch.is_grad_enabled()):
            return None
        kwargs = dict(zip(self._arguments, args, strict=False)) | kwargs
        ids, mask = _plain_rows(kwargs)
        riders, self._waiting = self._waiting, None
        width = max(ids.shape[1], riders.ids.shape[1])
        kwargs["input_ids"] = torch.cat([_widened(ids, width), _widened(riders.ids, width)])
        kwargs["attention_mask"] = torch.cat([_widened(mask, width), _widened(riders.mask, width).to(mask.dtype)])
        if "use_cache" in self._arguments:
            kwargs["use_cache"] = False  # a cache would hold the riders, too
        rows = Rows(len(ids), riders.sizes, width)
        self._modules.rows, self._aboard = rows, (riders, rows, ids.shape[1])
        return (), kwargs

    def _alight(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        """Cut the riders off what leaves the backbone, and hang their loss on the backward of the rest."""
        self._modules.rows = None
        hidden = output[0]
        if self._aboard is None:
            if backbone.training and hidden.requires_grad:
                # One backward may go through several forwards, and what it recomputes in this one has no riders.
                hidden.register_hook(lambda _: self._go_back(None))
            return None
        (riders, rows, width), self._aboard = self._aboard, None
        loss = self._reference_loss(hidden, riders, rows)
        own = _Join.apply(hidden[: rows.training, :width], loss, partial(self._depart, rows))
        return _mapped(output, lambda tensor: own if tensor is hidden else _own_rows(tensor, rows, width))

    def _reference_loss(self, hidden: Tensor, riders: "_Riders", rows: Rows) -> Tensor:
        """The sum of the groups' mean cross-entropies, from the (rows, tokens, size) states of all rows."""
        places = (rows.training + riders.row) * rows.width + riders.column
        predicting = hidden.flatten(0, 1).index_select(0, places)
        self._modules.rows = Rows(0, riders.counts, 1)
        logits = self._head(predicting)
        self._modules.rows = None
        each = F.cross_entropy(logits.to(wide(logits)), riders.targets, reduction="none")
        self._losses.append(torch.stack([part.mean() for part in each.detach().split(riders.counts)]))
        return (each * riders.weights.to(each)).sum()

    def _depart(self, rows: Rows) -> float:
        """A backward begins to carry the riders: the gradient it starts their loss with."""
        self._n_backwards += 1
        self._go_back(rows)
        return self._scale

    def _go_back(self, rows: Rows | None) -> None:
        """A backward enters a forward with these rows, whose checkpointed layers it recomputes."""
        self._modules.rows = rows


def split_gradients(
    model: nn.Module, groups: Mapping[str, Sequence[Batch]], parameters: Mapping[str, Parameter] | None = None
) -> ReferenceGradients:
    """What `reference_gradients` returns, from one forward and backward; of each example, if the batches are rows.

    The model's mode, random state and gradients stay as they were.

    Args:
        model: As in `GradientSplit`.
        groups: The batches of each domain.
        parameters: By name; None takes all that require gradients.

    Raises:
        ValueError: There is no batch, or the model is `unsplittable`.
    """
    domains = tuple(domain for domain, batches in groups.items() for _ in batches)
    if not domains:
        raise ValueError("There is no reference batch: expected a mapping from domain to at least one batch.")
    batches = [batch for part in groups.values() for batch in part]
    parameters = dict(model.named_parameters()) if parameters is None else parameters
    with undisturbed(model), torch.enable_grad(), GradientSplit(model, parameters, len(domains)) as split:
        model.train()  # whatever would differ from eval mode is unsplittable
        split.ride(batches)
        model(input_ids=batches[0]["input_ids"][:0]).logits.sum().backward()  # a training batch of no rows
        return ReferenceGradients(domains, *split.collect())


def unsplittable(model: nn.Module, parameters: Mapping[str, Parameter]) -> list[str]:
    """The parts and settings of a model that `GradientSplit` cannot go with, each by what and where it is.

    Six tokens go through the model, in eval mode and without gradients; its state stays as it was.

    Args:
        model: As in `GradientSplit`.
        parameters: Those whose reference gradients are wanted, by name.
    """
    try:
        backbone, head = _anatomy(model)
    except ValueError as error:
        return [str(error)]
    names = {module: f"{type(module).__name__} ({name})" for name, module in model.named_modules()}
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    reached = {p for part in (backbone, head) for p in part.parameters()}
    found = [
        *(f"{names[module]}, which mixes rows" for module in backbone.modules() if isinstance(module, _MIXERS)),
        *(f"{names[module]}, which draws dropout" for module in backbone.modules() if _draws_dropout(module)),
        *(f"{option} in the configuration" for option in _dropouts(model.config)),
        *(f"{name}, which is sharded" for name, p in model.named_parameters() if hasattr(p, "device_mesh")),
        *(f"{name}, which is outside of backbone and head" for name, p in trained.items() if p not in reached),
        *(names[module] for module in _holders(backbone, head) if rule_of(module) is None),
    ]
    return found or _trial(model, backbone, head)


def _trial(model: nn.Module, backbone: nn.Module, head: nn.Module) -> list[str]:
    """Whether rows stay in order on their way through, and whether the head alone makes the model's logits."""
    modules = RowwiseModules(_holders(backbone, head), {})
    logits = []

    def enlarge(_: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] * (300 / head(output[0]).abs().max())  # a soft cap shows on large logits only
        logits.append(head(hidden))
        return _mapped(output, lambda tensor: hidden if tensor is output[0] else tensor)

    hook = backbone.register_forward_hook(enlarge)
    try:
        with undisturbed(model), torch.no_grad():
            model.eval()
            modules.rows = Rows(1, (1,), 3)
            ids = torch.tensor([[0, 1, 0], [1, 0, 1]], device=next(backbone.parameters()).device)
            error = (model(input_ids=ids).logits.float() - logits[0].float()).abs().max().item()
    except Exception as failure:  # whatever a model says to rows being kept apart is what does not go
        return [f"{type(model).__name__}, as a trial fails: {failure}"]
    finally:
        hook.remove()
        modules.restore()
    return [] if error < 3 else ["logits that are not those of the output head alone"]


@dataclass(frozen=True)
class _Riders:
    """The rows of all groups, one after the other, padded on the right.

    Attributes:
        sizes, counts: The numbers of rows and of labels of each group.
        weights: What each label counts in the sum of the groups' mean losses, (labels,), group after group.
        ids, mask: (rows, tokens).
        row, column: Of the states that predict the labels, (labels,) each.
        targets: The labels, (labels,).
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    weights: Tensor
    ids: Tensor
    mask: Tensor
    row: Tensor
    column: Tensor
    targets: Tensor

    @staticmethod
    def of(groups: Sequence[Batch], device: torch.device) -> "_Riders":
        """From a batch of each group."""
        width = max(group["input_ids"].shape[1] for group in groups)
        ids = torch.cat([_widened(group["input_ids"], width) for group in groups])
        mask = torch.cat([_widened(_mask_of(group), width) for group in groups])
        labels = torch.cat([_widened(group["labels"], width, IGNORED) for group in groups])[:, 1:]
        counted = labels != IGNORED
        each = iter(counted.sum(1).tolist())
        sizes = tuple(len(group["input_ids"]) for group in groups)
        counts = tuple(sum(islice(each, size)) for size in sizes)
        if 0 in counts:
            raise ValueError(f"Group {counts.index(0)} has no label, so it has no loss.")
        weights = torch.tensor([1 / count for count in counts for _ in range(count)], dtype=torch.float64)
        tensors = [ids, mask, *counted.nonzero(as_tuple=True), labels[counted]]
        return _Riders(sizes, counts, weights, *[tensor.to(device) for tensor in tensors])


class _Join(Function):
    """Training's hidden states as they are; their backward starts that of the riders' loss."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, depart: Callable[[], float]) -> Tensor:
        ctx.depart = depart
        return hidden.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad.new_full((), ctx.depart(), dtype=torch.float32), None


def _anatomy(model: Any) -> tuple[nn.Module, nn.Module]:
    """The backbone and the output head of a Hugging Face causal language model, adapters or not."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not (hasattr(inner, "get_decoder") and hasattr(inner, "get_output_embeddings")):
        raise ValueError(f"{type(inner).__name__}, which is no language model of transformers")
    backbone, head = inner.get_decoder(), inner.get_output_embeddings()
    if backbone is inner or head is None:
        raise ValueError(f"{type(inner).__name__}, which has no output head over a backbone")
    return backbone, head


def _holders(backbone: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The modules that hold trained parameters themselves."""
    modules = dict.fromkeys([*backbone.modules(), *head.modules()])
    return [module for module in modules if any(p.requires_grad for p in module.parameters(recurse=False))]


def _draws_dropout(module: nn.Module) -> bool:
    """Whether a module drops something out in training: by its own nature, or through a function it calls."""
    return bool(_dropouts(module)) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)


def _dropouts(holder: Any) -> list[str]:
    """The attributes that set a dropout, but for those of heads that classify or sum up, which are not used here."""
    return [
        f"{name}={value}"
        for name, value in vars(holder).items()
        if "drop" in name and not name.startswith(("classifier", "summary")) and isinstance(value, float) and value > 0
    ]


def _plain_rows(kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (rows, tokens), of a forward that has nothing else for each row.

    Raises:
        RuntimeError: It is given more, which reference rows do not have.
    """
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    rest = {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}
    more = [name for name, value in rest.items() if isinstance(value, Tensor) and value.ndim]
    more += ["past_key_values"] if rest.get("past_key_values") is not None else []
    if ids is None or more or (mask is not None and mask.shape != ids.shape):
        raise RuntimeError(
            "Reference rows can ride with input_ids and an attention_mask of the same shape only, not with packed or "
            f"embedded rows; the backbone was given {', '.join(name for name, v in kwargs.items() if v is not None)}."
        )
    return ids, _mask_of(kwargs)


def _mask_of(batch: Mapping[str, Any]) -> Tensor:
    """The attention mask of a batch, which is to attend to everything if it has none."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def _widened(tensor: Tensor, width: int, filler: int = 0) -> Tensor:
    """(rows, tokens) padded on the right."""
    missing = width - tensor.shape[1]
    return F.pad(tensor, (0, missing), value=filler) if missing else tensor


def _own_rows(tensor: Tensor, rows: Rows, width: int) -> Tensor:
    """What training has in (rows, tokens, size) states that the backbone returns beside the last ones."""
    if tensor.ndim != 3 or len(tensor) != rows.total:
        raise RuntimeError(f"Reference rows cannot be cut off an output of shape {tuple(tensor.shape)}.")
    return tensor[: rows.training, :width]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A model's output with every tensor in it changed; what else it holds stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, MutableMapping):
        for name, part in list(value.items()):
            value[name] = _mapped(part, change)
    elif isinstance(value, (tuple, list)):
        return tuple(_mapped(part, change) for part in value)
    return value

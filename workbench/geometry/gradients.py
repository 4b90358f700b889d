"""Reference gradients: what a model's parameters would change to learn a little general-capability data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]
Loss = Callable[[torch.nn.Module, Batch], Tensor]
# One batch; several that count as one, by their numbers of labels; or several with the weight of each.
Batches = Batch | Sequence[Batch] | Sequence[tuple[Batch, float]]

NOT_FINITE = (
    "The reference gradient of {} holds NaN or infinity. Look for rows without an answer token, or compute reference "
    "gradients in float32 or bfloat16 rather than float16."
)


@dataclass(frozen=True)
class ReferenceGradients:
    """Gradients on reference data, kept apart by parameter.

    Attributes:
        domains: The domain of each of the m gradients.
        tensors: (m, *shape) by parameter name, in fp32 or wider.
        losses: (m,), in nats, at the parameters where the gradients were taken.
    """

    domains: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    losses: Tensor | None = None

    def mean(self, domain: str) -> dict[str, Tensor]:
        """The mean gradient of one domain, by parameter name."""
        if domain not in self.domains:
            raise ValueError(f"domain must be one of {sorted(set(self.domains))}, got {domain!r}.")
        chosen = [i for i, d in enumerate(self.domains) if d == domain]
        return {name: tensor[chosen].mean(0) for name, tensor in self.tensors.items()}

    def __len__(self) -> int:
        """The number of gradients, m."""
        return len(self.domains)


def model_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The loss that a Hugging Face model computes from its labels: mean cross-entropy per answer token, in nats."""
    return model(**batch, use_cache=False).loss


def gradient(
    model: torch.nn.Module,
    batch: Batches,
    parameters: Mapping[str, torch.nn.Parameter] | None = None,
    loss: Loss = model_loss,
) -> dict[str, Tensor]:
    """The gradient of the loss on one batch, by parameter name; see `reference_gradients`."""
    return {name: rows[0] for name, rows in reference_gradients(model, {"": [batch]}, parameters, loss).tensors.items()}


def reference_gradients(
    model: torch.nn.Module,
    batches: Mapping[str, Sequence[Batches]],
    parameters: Mapping[str, torch.nn.Parameter] | None = None,
    loss: Loss = model_loss,
    loss_scale: float = 1.0,
    require_finite: bool = True,
) -> ReferenceGradients:
    """One gradient per batch of each domain (OGPSA, 2602.07892: one batch, hence the mean gradient, per domain).

    The model is left as it was: dropout is off meanwhile, gradient checkpointing stays on, and the mode, the random
    state and gradients that wait for an optimizer step are put back. It goes through ``backward()``, since
    `torch.autograd.grad` fails under reentrant checkpointing and on sharded parameters, of which the gradients here
    are those of the local shard.

    Args:
        model: Any module that `loss` understands.
        batches: The batches of each domain, each what `loss` reads; or a list of such, to save memory, whose rows are
            taken together as if they were one: they count by their numbers of ``labels``, over which `model_loss` is a
            mean, or by the weights that are given with them.
        parameters: By name; None takes all that require gradients.
        loss: (model, batch) → scalar.
        loss_scale: The loss is multiplied by it and the gradient divided, so that float16 does not underflow.
        require_finite: Whether NaN and infinity are refused, or left to the caller.

    Raises:
        ValueError: No parameter requires a gradient, or there is no batch.
        FloatingPointError: The gradient of a parameter holds NaN or infinity.
    """
    domains = tuple(domain for domain, parts in batches.items() for _ in parts)
    if not domains:
        raise ValueError("There is no reference batch: expected a mapping from domain to at least one batch.")
    if parameters is None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("No parameter requires a gradient: nothing is trained, so there is no gradient to take.")
    local = {name: local_shard(p) for name, p in parameters.items()}
    tensors = {n: torch.empty(len(domains), *p.shape, dtype=wide(p), device=p.device) for n, p in local.items()}
    losses = []
    with undisturbed(model), torch.enable_grad():
        for i, batch in enumerate(batch for parts in batches.values() for batch in parts):
            losses.append(_backward(model, batch, loss, loss_scale))
            for name, p in parameters.items():
                tensors[name][i] = 0.0 if p.grad is None else local_shard(p.grad)
                p.grad = None
    for name, rows in tensors.items():
        if loss_scale != 1:
            rows /= loss_scale
        if require_finite and not rows.sum().isfinite():
            raise FloatingPointError(NOT_FINITE.format(name))
    return ReferenceGradients(domains, tensors, torch.stack(losses))


def wide(tensor: Tensor) -> torch.dtype:
    """Dots in half precision lose three digits, so gradients are kept in fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def local_shard(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def add_gradients_(parameters: Mapping[str, torch.nn.Parameter], gradients: Mapping[str, Tensor]) -> None:
    """Add gradients, of what this process holds, to the ``.grad`` of the parameters of these names."""
    for name, gradient in gradients.items():
        p = parameters[name]
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        local_shard(p.grad).add_(gradient)


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Mode, random state and every ``.grad`` as before, whatever happens inside, where dropout is off.

    Modules that checkpoint their activations ask for training mode to do so, and keep it; their children do not, and
    their own rates of dropout, of which OPT's layers have one, are 0 meanwhile.
    """
    modes = {module: module.training for module in model.modules()}
    checkpointing = [m for m, training in modes.items() if training and getattr(m, "gradient_checkpointing", False)]
    rates = [(m, n, v) for m in checkpointing for n, v in vars(m).items() if "drop" in n and isinstance(v, float)]
    waiting = {p: p.grad for p in model.parameters()}
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            for module in modes:
                module.training = module in checkpointing
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            for p in waiting:
                p.grad = None
            yield
        finally:
            for p, grad in waiting.items():
                p.grad = grad
            for module, name, rate in rates:
                setattr(module, name, rate)
            for module, training in modes.items():
                module.training = training
                # FSDP2 shows whole parameters after a forward without a backward.
                getattr(module, "reshard", lambda: None)()


def _backward(model: torch.nn.Module, batches: Batches, loss: Loss, loss_scale: float) -> Tensor:
    total = torch.tensor(0.0)
    for batch, share in _shares([batches] if isinstance(batches, Mapping) else batches):
        value = share * loss(model, batch)
        (loss_scale * value).backward()
        total = total.to(value.device) + value.detach()
    return total


def _shares(parts: Any) -> Iterator[tuple[Batch, float]]:
    """Each batch with its share of all labels that count; a model never predicts the first token of a row."""
    if len(parts) == 1 and isinstance(parts[0], Mapping):
        yield parts[0], 1.0
    elif isinstance(parts[0], Mapping):
        counts = [(part["labels"][:, 1:] != -100).sum().item() for part in parts]
        yield from ((part, count / sum(counts)) for part, count in zip(parts, counts, strict=True))
    else:
        yield from parts

"""One projection a step against backward hooks, the style of the official code of OGPSA (2602.07892).

There, a hook on every parameter tensor fetches the tensor's reference gradients from the host's memory, makes them
orthonormal, and takes away the gradient's part along them, all in the gradient's own type and once per micro-batch. It
is written anew here from its description, with no temporary that is not in it. A lean hook shows what the style alone
costs: directions that are orthonormal already, fetched, and for each a product and a subtraction in place.

A ratio is what hooks add to a micro-batch over what one projection of the step's gradients adds to it. The hooks are
called one after the other on gradients that lie ready, and in a real backward, as what that takes longer with them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce

import torch
from torch import Tensor

from benchmarks.measuring import Row, Settings, does_not_fit, fill_, numel, shortest
from benchmarks.projection_pass import project_, references
from benchmarks.shapes import parameter_shapes, random_model
from workbench.geometry.subspace import Subspace
from workbench.models import trained_parameters

ACCUMULATIONS = (4, 16)  # micro-batches per step of the official SFT and DPO; other columns are for one
TOKENS = 32  # of the one row whose backward the hooks sit in

Hook = Callable[[Tensor, Tensor], None]  # (gradient, (r, *shape) reference gradients on the host)


def run(settings: Settings) -> Iterator[Row]:
    """One row for each size and rank; the official code has ranks 1 and 2."""
    for size in settings.sizes:
        d = numel(parameter_shapes(size))
        for rank in (r for r in settings.ranks if r <= 4):
            row = {"size": size, "rank": rank}
            copies = {"device": 6 + rank, "host": rank + 1}  # of the model, with temporaries of the hooks
            if settings.device.type == "cpu":
                copies = {"host": copies["device"] + copies["host"]}
            places = {"device": settings.device, "host": torch.device("cpu")}
            needed = d * settings.dtype.itemsize
            reasons = [why for where, n in copies.items() if (why := does_not_fit(n * needed, places[where]))]
            yield row | ({"skipped": reasons[0]} if reasons else _measure(size, rank, settings))


def published_hook(gradient: Tensor, on_host: Tensor) -> None:
    """As described: one direction by its squared length; several by Gram–Schmidt, then the sum of their projections."""
    if len(on_host) == 1:
        (u,) = _fetched(on_host, gradient)
        gradient.sub_((gradient * u).sum() / ((u * u).sum() + 1e-8) * u)
        return
    directions: list[Tensor] = []
    for row in _fetched(on_host, gradient):
        for u in directions:
            row = row - (row * u).sum() * u
        length = row.norm() + 1e-8
        directions.append(torch.zeros_like(row) if directions and length < 1e-6 else row / length)
    gradient.copy_(gradient - reduce(torch.add, ((gradient * u).sum() * u for u in directions)))


def lean_hook(gradient: Tensor, on_host: Tensor) -> None:
    """The least that a hook in this style can do."""
    flat = gradient.view(-1)
    for row in _fetched(on_host, gradient):
        u = row.view(-1)
        flat.addcmul_(u, torch.dot(flat, u), value=-1)


def _fetched(on_host: Tensor, like: Tensor) -> list[Tensor]:
    return [row.to(like.device, like.dtype) for row in on_host]


def _measure(size: str, rank: int, settings: Settings) -> Row:
    """The hooks called on every tensor one after the other, and the published ones within a backward."""
    model, _ = random_model(size, settings.device, settings.dtype)
    parameters = trained_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    on_host = references(shapes, rank, settings.dtype, torch.device("cpu"))
    subspace = Subspace.fit(references(shapes, rank, settings.dtype, settings.device), inplace=True)
    gradients = {name: torch.empty_like(p.detach()) for name, p in parameters.items()}
    ids = torch.arange(TOKENS, device=settings.device)[None]
    hooking = _Hooking(parameters, on_host.tensors)

    def call(hook: Hook) -> None:
        for name, gradient in gradients.items():
            hook(gradient, on_host.tensors[name])

    def backward(active: bool) -> None:
        hooking.active = active
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    arms: dict[str, Callable[[], object]] = {
        "projection": lambda: project_(subspace, gradients),
        "hooks": lambda: call(published_hook),
        "lean hooks": lambda: call(lean_hook),
        "plain backward": lambda: backward(False),
        "hooked backward": lambda: backward(True),
    }
    fresh = dict.fromkeys(list(arms)[:3], lambda: [fill_(g) for g in gradients.values()])
    seconds = shortest(arms, settings.repeats, settings.device, fresh)
    seconds["hooks in a backward"] = seconds["hooked backward"] - seconds["plain backward"]
    ratios = {arm: seconds[arm] / seconds["projection"] for arm in ("lean hooks", "hooks", "hooks in a backward")}
    return {
        "parameters": numel(shapes),
        "projection, ms": 1e3 * seconds["projection"],
        **ratios,
        **{f"… accumulation {n}": n * ratios["hooks in a backward"] for n in ACCUMULATIONS},
        "seconds": seconds,
    }


class _Hooking:
    """The published hook on every parameter, which acts while `active`."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], on_host: Mapping[str, Tensor]) -> None:
        self.active = False
        for name, p in parameters.items():
            p.register_hook(partial(self._call, on_host[name]))

    def _call(self, rows: Tensor, gradient: Tensor) -> Tensor:
        if self.active:
            published_hook(gradient, rows)
        return gradient

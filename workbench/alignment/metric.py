"""What an optimizer tells: its metric, the diagonal D by which it scales a gradient, and the scale of the loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.geometry.gradients import local_shard, wide
from workbench.geometry.kernels import Chunks, chunk
from workbench.geometry.layout import Metric


def loss_scale_of(optimizer: Any) -> Callable[[], float]:
    """What a float16 training multiplies its loss by at present, which accelerate's optimizer knows; 1 in any other."""
    scaler = getattr(optimizer, "scaler", None)
    return scaler.get_scale if scaler is not None else lambda: 1.0


def optimizer_metric(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> Metric:
    """D = diag(1/(√v̂ + ε)) of Adam and its kin, 1/√v of Adafactor and RMSprop, 1 of SGD.

    A parameter without a state yet, as before the first step, has D = 1.

    Args:
        optimizer: Of torch, or Adafactor of transformers.
        parameters: By name, as the optimizer has them.

    Raises:
        ValueError: The optimizer keeps a state that is none of these.
    """
    options = {p: group for group in optimizer.param_groups for p in group["params"]}
    scales = {name: _scale(optimizer.state.get(p, {}), options[p], p, optimizer) for name, p in parameters.items()}
    return scales.__getitem__


def _scale(state: Mapping[str, Any], options: Mapping[str, Any], parameter: Tensor, optimizer: Any) -> Chunks:
    p = local_shard(parameter)
    if "exp_avg_sq" in state:
        moment = local_shard(state.get("max_exp_avg_sq", state["exp_avg_sq"]))
        beta, eps = options.get("betas", (None, None))[1], options["eps"]
        if beta is None:  # Adafactor on a vector: not corrected for its start
            return lambda start, stop: chunk(moment, start, stop).rsqrt()
        correction = 1 - beta ** float(state["step"])
        return lambda start, stop: 1 / ((chunk(moment, start, stop) / correction).sqrt() + eps)
    if "exp_avg_sq_row" in state:
        return _factored(state["exp_avg_sq_row"], state["exp_avg_sq_col"])
    if "square_avg" in state:
        moment = local_shard(state["square_avg"])
        return lambda start, stop: 1 / (chunk(moment, start, stop).sqrt() + options["eps"])
    if set(state) <= {"momentum_buffer", "step"}:
        return lambda start, stop: torch.ones(stop - start, dtype=wide(p), device=p.device)
    raise ValueError(
        f'side="metric" knows the metric of Adam, AdamW, Adafactor, RMSprop and SGD, got {type(optimizer).__name__} '
        f'with the state {sorted(state)}. Take side="update", which holds for any optimizer.'
    )


def _factored(row: Tensor, column: Tensor) -> Chunks:
    """Adafactor's (Shazeer & Stern 2018, 1804.04235): v ≈ row columnᵀ / mean(row), over the last two dimensions."""
    down, across = (row / row.mean(-1, keepdim=True)).rsqrt(), column.rsqrt()
    if row.ndim > 1:  # a stack of matrices
        whole = (down[..., None] * across[..., None, :]).reshape(-1)
        return lambda start, stop: whole[start:stop]

    def chunks(start: int, stop: int) -> Tensor:
        index = torch.arange(start, stop, device=row.device)
        return down[index // len(across)] * across[index % len(across)]

    return chunks

"""Where the constraint holds, and where it would silently not: what is chosen, refused and warned of."""

import os
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch

from workbench.geometry.fitting import Rank
from workbench.geometry.split import unsplittable

# Optimizers that step inside the backward, before a callback is called.
_STEP_IN_BACKWARD = ("layerwise", "lomo")


def choose_parameters(
    trained: Mapping[str, torch.nn.Parameter], patterns: Sequence[str] | None
) -> dict[str, torch.nn.Parameter]:
    """The parameters whose names match one of the patterns, or all.

    Raises:
        ValueError: None does.
    """
    chosen = {n: p for n, p in trained.items() if any(fnmatch(n, pattern) for pattern in patterns or ["*"])}
    if not chosen:
        raise ValueError(
            f"target_parameters={patterns} matches none of the {len(trained)} trained parameters, such as "
            f"{list(trained)[:3]}. Patterns are those of a shell: * stands for anything."
        )
    return chosen


def require_rank(rank: Rank, n_gradients: int, n_rows: Mapping[str, int], every_domain: bool) -> None:
    """Refuse a rank for which there are too few reference gradients, or that loses one that is needed.

    Args:
        rank: Directions per block.
        n_gradients: Reference gradients of each domain.
        n_rows: Reference rows of each domain.
        every_domain: Whether every domain's mean gradient must lie in the basis.

    Raises:
        ValueError: The reason, and the way out.
    """
    n_domains = len(n_rows)
    if every_domain and rank is not None and rank != n_domains * n_gradients:
        raise ValueError(
            'when="conflict" and restore= need every domain\'s mean gradient in the basis: leave rank out, or make '
            f"it the number of reference gradients, {n_domains * n_gradients}; got {rank!r}."
        )
    short = {domain: n for domain, n in n_rows.items() if n < n_gradients}
    if short:
        raise ValueError(
            f"rank {rank} over {n_domains} domains needs {n_gradients} reference gradients of each, but "
            f"so few rows are drawn: {short}. Lower the rank (or gradients_per_domain), draw more rows (n_samples, "
            "or references_in_batch) or give more references."
        )


def under_deepspeed(args: Any) -> bool:
    """Whether DeepSpeed trains, asked for by the trainer's arguments or by accelerate's."""
    return bool(getattr(args, "deepspeed", None)) or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def refuse_unsupported(args: Any, parameters: Mapping[str, torch.nn.Parameter], side: str) -> None:
    """Refuse at once where the constraint would not hold.

    Raises:
        ValueError: The reason, and the way out.
    """
    if under_deepspeed(args):
        raise ValueError(
            "GradientProjection does not hold under DeepSpeed, which steps inside its backward, before the callback is "
            "called. Train without the deepspeed argument; FSDP2 shards the model as ZeRO-3 does."
        )
    if any(word in str(args.optim) for word in _STEP_IN_BACKWARD):
        raise ValueError(
            f"GradientProjection needs an optimizer that steps after the backward, but {args.optim} steps inside it, "
            'parameter by parameter. Take another, such as optim="adamw_torch".'
        )
    if side in ("update", "metric") and "schedule_free" in str(args.optim):
        raise ValueError(
            f"{args.optim} keeps a second copy of the weights, out of reach of side={side!r}, from which it makes the "
            'next ones. Take another optimizer, or side="gradient".'
        )
    if any(getattr(p, "_is_flat_param", False) for p in parameters.values()):
        raise ValueError(
            "GradientProjection does not hold under FSDP1, whose flat parameters have lost the tensors' borders. Shard "
            "with FSDP2: from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...))."
        )


def warn_of_rounding(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Warn if the weights are too coarse for a step to stay where it was put."""
    if any(p.itemsize < 4 for p in parameters.values()):
        warnings.warn(
            "The trained weights have 16 bits, whose rounding brings part of each step back into the subspace: see "
            'leakage. Load the model with dtype="float32" and let the trainer autocast (bf16=True).',
            stacklevel=3,
        )


def why_not_in_batch(
    args: Any, model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], rows: tuple[int, int]
) -> list[str]:
    """What keeps reference rows from riding in the training batch; a warning names it, and separate passes follow.

    Raises:
        ValueError: The trainer's batch size is not the one that `rows` says.
    """
    if args.per_device_train_batch_size != rows[0]:
        raise ValueError(
            f"references_in_batch={rows} means {rows[0]} training rows in a batch, but the trainer's "
            f"per_device_train_batch_size is {args.per_device_train_batch_size}. Make them equal."
        )
    reasons = unsplittable(model, parameters)
    reasons += [f"{name}=True" for name in ("packing", "padding_free") if getattr(args, name, False)]
    reasons += ["a contrastive loss of several forwards"] if hasattr(args, "contrast") else []
    reasons += ["NEFTune's noise"] if getattr(args, "neftune_noise_alpha", None) else []
    reasons += ["nn.DataParallel over several devices"] if args.n_gpu > 1 else []
    if reasons:
        warnings.warn(
            f"references_in_batch cannot split the gradient of {', '.join(reasons)}: reference gradients come from a "
            "second backward instead, which takes longer.",
            stacklevel=3,
        )
    return reasons

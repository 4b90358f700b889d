"""Parameters that several processes share: what has to be summed, and over whom."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.geometry.fitting import Reduce

_BUCKET = 2**24  # elements summed in one call; small tensors travel together


def shard_reducer(parameters: Iterable[Tensor]) -> Reduce | None:
    """The sum over the processes among which parameters are sharded (FSDP2); None if none is.

    Raises:
        ValueError: Parameters are sharded over more than one dimension of the device mesh.
    """
    groups = {id(group): group for p in parameters for group in _shard_groups(p)}
    if len(groups) > 1:
        raise ValueError(
            "The parameters are sharded over several dimensions of the device mesh (tensor and data parallelism "
            "together); subspaces can be taken over one. Train with FSDP2 or DDP alone."
        )
    for group in groups.values():
        device = next(p.device for p in parameters)

        def reduce(tensor: Tensor, group: Any = group, device: torch.device = device) -> Tensor:
            tensor = tensor.to(device, copy=True)
            dist.all_reduce(tensor, group=group)
            return tensor

        return reduce
    return None


def world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_processes_(tensors: Iterable[Tensor]) -> None:
    """Sum tensors of one type over all processes in place; the small ones in one call."""
    if world()[1] == 1:
        return
    bucket: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() >= _BUCKET and tensor.is_contiguous():
            dist.all_reduce(tensor)
            continue
        if sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            _sum_bucket_(bucket)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _sum_bucket_(bucket)


def sum_gradients_(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Sum reference gradients, by parameter name, over processes in place.

    The backward of sharded parameters has taken the mean over processes already; all others see their own rows alone.
    """
    sum_over_processes_(t for name, t in tensors.items() if not _shard_groups(parameters[name]))
    for name, tensor in tensors.items():
        if _shard_groups(parameters[name]):
            tensor *= world()[1]


def _sum_bucket_(bucket: list[Tensor]) -> None:
    flat = torch.cat([t.flatten() for t in bucket])
    dist.all_reduce(flat)
    for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _shard_groups(tensor: Any) -> list[Any]:
    """The groups of processes over which a DTensor is sharded; none for any other tensor."""
    placements = getattr(tensor, "placements", ())
    return [tensor.device_mesh.get_group(i) for i, placement in enumerate(placements) if placement.is_shard()]

"""The processes that train one model together, as `accelerate launch` or `torchrun` start them; one is a team, too."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from workbench.models import is_sharded, reshard
from workbench.study.runs import Run

T = TypeVar("T")


class Team:
    """The processes, each with the same data and settings, and a copy (DDP) or a shard (FSDP2) of the model.

    The lead, rank 0, writes the record. What may fail in one process alone is done through `together`, so that the
    others learn of it: nobody waits for a process that has given up.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        sharded: Whether each holds a part of every parameter (FSDP2), so that a forward needs all of them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the others; where processes were launched and have not met yet, they meet here."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=next(model.parameters()).device.type == "cpu")
        reshard(model)
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.sharded = is_sharded(model)

    @property
    def is_lead(self) -> bool:
        """Whether this process writes the record."""
        return self.rank == 0

    @property
    def parallel(self) -> str:
        """How the work is parted: ``"none"``, ``"ddp"`` or ``"fsdp2"``."""
        return "fsdp2" if self.sharded else "ddp" if self.size > 1 else "none"

    def environment(self, model: torch.nn.Module) -> dict[str, Any]:
        """For a record: how many processes, how the work is parted, and the device of each by its name."""
        device = next(model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"n_processes": self.size, "parallel": self.parallel, "process_devices": self.gather(name)}

    def together(self, act: Callable[[], T]) -> list[T]:
        """What each process's `act` returns, by rank; if it raises in one, it raises in all.

        Raises:
            RuntimeError: It raised in another process. Where it raised, that error comes itself.
        """
        if self.size == 1:
            return [act()]
        value: Any = None
        error: Exception | None = None
        try:
            value = act()
        except Exception as raised:  # any: the others would wait for ever
            error = raised
        said = self.gather((value, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, text) in enumerate(said):
            if text is not None:
                raise RuntimeError(f"Process {rank} of {self.size} failed: {text}")
        return [value for value, _ in said]

    def told(self, act: Callable[[], T]) -> T:
        """What the lead's `act` returns, in all processes; the others do nothing."""
        said: list[Any] = self.together(lambda: act() if self.is_lead else None)
        return said[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process says, by rank."""
        said = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(said, value, group=_talk(dist.group.WORLD))
        return said

    def require_same(self, value: str, what: str) -> None:
        """Refuse to begin with processes that are not about to do the same.

        Raises:
            ValueError: They differ.
        """
        if len(said := set(self.gather(value))) > 1:
            raise ValueError(
                f"The {self.size} processes differ in {what}: {sorted(said)}. Each must build the same data, settings "
                "and model: look for what is drawn without a seed, or read from a set or a clock."
            )

    def share_of(self, n_rows: int) -> int:
        """How many of a batch's rows one process takes.

        Raises:
            ValueError: They cannot be shared out evenly.
        """
        if n_rows % self.size:
            raise ValueError(
                f"batch_size counts the rows of a step over all processes: {n_rows} cannot be shared out evenly over "
                f"{self.size}. Take a multiple of {self.size}."
            )
        return n_rows // self.size

    @contextmanager
    def on_disk(self, data: Any, folder: Path) -> Iterator[Any]:
        """A dataset out of files that all processes read, if there are several; the files go afterwards.

        So the lead alone tokenizes it, and TRL can hand the others DPO's reference log-probabilities.
        """
        if self.size == 1:
            yield data
            return
        from datasets import load_from_disk

        self.told(lambda: _written(data, folder))
        try:
            yield load_from_disk(str(folder))
        finally:
            if self.is_lead:
                shutil.rmtree(folder, ignore_errors=True)


class FollowedRun(Run):
    """The run that the lead records, as the other processes see it: they write nothing."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        """Holds the lead's folder and record."""
        super().__init__(path, record, rows=[])

    def log(self, row: Any) -> None:
        """Leaves that to the lead."""

    def finish(self, *args: Any, **kwargs: Any) -> None:
        """Leaves that to the lead."""
        self._rows = None


def _written(data: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    data.save_to_disk(folder)


@cache
def _talk(world: Any) -> Any:
    """A group over which processes tell each other objects: over gloo, and patient, for an evaluation may take hours.

    A process that has died is noticed at once all the same, as its connection closes.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))

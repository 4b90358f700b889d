"""How cost is measured: everything that is compared runs in one process, in turns, and the shortest time counts."""

import gc
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]  # what a table shows, beside the raw figures that it leaves to the file

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_TILE = 2**22 - 3  # numbers; a prime, so that no row of a reference gradient repeats another


@dataclass(frozen=True)
class Settings:
    """What is measured, and where.

    Attributes:
        device: Of all tensors.
        dtype: Of gradients and weights; a bfloat16 training has float32 weights under autocast.
        sizes: Names of models, see `shapes`.
        ranks: Directions per block.
        repeats: Turns of every arm.
    """

    device: torch.device
    dtype: torch.dtype
    sizes: tuple[str, ...]
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    repeats: int = 5


@dataclass(frozen=True)
class Report:
    """What one run of a benchmark found.

    Attributes:
        name: Of the benchmark.
        environment: Where, when and with what it ran.
        rows: A dict for each line of the table; one with ``skipped`` says why there is nothing else in it.
    """

    name: str
    environment: Row
    rows: list[Row] = field(default_factory=list)

    def save(self, folder: Path) -> Path:
        """Write ``<device>-<benchmark>-<dtype>.json``, a row a line; sizes that are there already are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", self.environment["device"].lower().replace("(r)", "")).strip("-")
        path = folder / f"{device}-{self.name}-{self.environment['dtype']}.json"
        kept = json.loads(path.read_text()) if path.exists() else []
        kept = [row for row in kept if row["size"] not in {row["size"] for row in self.rows}]
        lines = [json.dumps(row) for row in [*kept, *(row | {"run": self.environment} for row in self.rows)]]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return path

    def table(self) -> str:
        """The rows in Markdown, without the raw figures."""
        shown = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in self.rows]
        columns = list(dict.fromkeys(key for row in shown for key in row))
        lines = [columns, ["---"] * len(columns), *([_text(row.get(c, "")) for c in columns] for row in shown)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shortest(
    arms: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Seconds of the shortest of `repeats` calls of each arm, the arms in turns after one call of each to warm up.

    Args:
        arms: What is timed, by name.
        repeats: Calls of each.
        device: It is waited for before and after each call.
        prepare: What is to be done before an arm, untimed.
    """
    best = dict.fromkeys(arms, float("inf"))
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            if prepare and name in prepare:
                prepare[name]()
            synchronize(device)
            started = time.perf_counter()
            arm()
            synchronize(device)
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what has been launched; the CPU never lags behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def copying(device: torch.device, n_bytes: int = 2**30) -> Iterator[tuple[Callable[[], object], int]]:
    """A copy that no cache holds, and the bytes that it moves: the measure of memory's speed."""
    source, target = (filled((n_bytes // 4,), torch.float32, device) for _ in range(2))
    yield lambda: target.copy_(source), 2 * n_bytes


def filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that look random: a tile of normal ones again and again, since drawing each would take minutes."""
    return fill_(torch.empty(shape, dtype=dtype, device=device))


def fill_(tensor: Tensor) -> Tensor:
    """The same, in place."""
    flat = tensor.view(-1)
    tile = torch.randn(min(_TILE, flat.numel()), device=tensor.device).to(tensor.dtype)
    for part in flat.split(_TILE):
        part.copy_(tile[: part.numel()])
    return tensor


def free_bytes(device: torch.device) -> int:
    """Memory that a benchmark may take: all that is free of an accelerator's, half of a machine's that others use."""
    gc.collect()
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def does_not_fit(needed: float, device: torch.device) -> str | None:
    """Why something is skipped, if it is."""
    free = free_bytes(device)
    return f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB may be taken" if needed > free else None


def numel(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of parameters."""
    return sum(prod(shape) for shape in shapes.values())


def environment(settings: Settings) -> Row:
    """Device, threads, versions, date, and how busy the machine was in the minute before."""
    return {
        "device": device_name(settings.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "dtype": str(settings.dtype).removeprefix("torch."),
        "repeats": settings.repeats,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """What the accelerator or the processor calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _read(file: str) -> str:
    return Path(file).read_text() if Path(file).exists() else ""


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""What came out of a run, apart from when, where and how fast it ran, so that two runs can be compared."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .runs import Run, flatten

VOLATILE = (
    "run_id",
    "started",
    "finished",
    "resumed",
    "environment",
    "wall_seconds",
    "peak_memory_bytes",
    "peak_cuda_bytes",
)
"""Fields of a record that two runs of the same parameters need not share: when, on what, how long, how much memory."""

_MEASURED = ("seconds", "bytes")  # ends of names, also of logged ones, that say how long something took and how much
_ABSENT = "nothing"


def outcome(run: Run) -> dict[str, Any]:
    """All that a run recorded but what is volatile: the record's fields, flat, and its history's columns as lists.

    Two runs of the same parameters on the same machine have the same outcome, bit for bit, on a CPU.
    """
    record = flatten({name: value for name, value in run.record.items() if name not in VOLATILE})
    history = run.history
    columns = {f"history.{name}": history[name].tolist() for name in history}
    return {name: value for name, value in (record | columns).items() if not name.endswith(_MEASURED)}


def differences(first: Run, second: Run, *, tolerance: float = 0.0) -> list[str]:
    """In what the outcomes of two runs differ, one line each; none if they are the same.

    Args:
        first: A run.
        second: Another.
        tolerance: By which numbers may differ, relative to the larger, or absolutely where they are near 0.
    """
    one, two = outcome(first), outcome(second)
    return [
        f"{name}: {one.get(name, _ABSENT)!r} and {two.get(name, _ABSENT)!r}"
        for name in dict.fromkeys([*one, *two])
        if not same(one.get(name, _ABSENT), two.get(name, _ABSENT), tolerance)
    ]


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two values of a record are the same: nan is nan, and numbers may differ by the tolerance."""
    a, b = (value.tolist() if isinstance(value, np.ndarray) else value for value in (a, b))  # lists, from parquet
    if isinstance(a, float | int) and isinstance(b, float | int):
        return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return a == b

"""One point of a sweep on disk: a folder with its state, its log, its executed notebooks, and what those wrote."""

import glob
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock

from .provenance import environment
from .runs import aside, flatten, now, write_json

STATE, LOCK = "point.json", ".lock"
FIXED_COLUMNS = (
    *("point", "path", "status", "error", "n_attempts", "started", "wall_seconds", "executed", "runs_dir", "git_sha"),
)


class Point:
    """A point's state, `point.json`: pending, running, completed, failed or interrupted, and every attempt at it.

    Only who holds the folder's lock writes it, and the lock ends with its process: two sweeps, or a sweep and what a
    killed one has left behind, cannot work on one point at the same time.

    Attributes:
        path: The folder.
        record: The content of `point.json`.
    """

    def __init__(self, path: Path, record: dict[str, Any]):
        """Holds what lies in a folder; come here through `Point.at`, `Point.load` or `Point.held`."""
        self.path, self.record = path, record

    @classmethod
    def at(cls, path: Path, given: Mapping[str, Any], parameters: Mapping[str, Any]) -> Self:
        """The point in a folder, or a pending one, not written yet, where there is none.

        Args:
            path: The folder; its name is the point's.
            given: The values that the notebook is given.
            parameters: All its parameters.
        """
        if (path / STATE).is_file():
            return cls.load(path)
        plain = json.loads(json.dumps(dict(parameters), default=repr))  # a default may be a set or bytes
        record = {"point": path.name, "status": "pending", "planned": now("microseconds"), "given": dict(given)}
        return cls(path, {**record, "parameters": plain, "attempts": []})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a point's folder.

        Raises:
            FileNotFoundError: It holds no point.
            ValueError: Its state is damaged.
        """
        if not (path / STATE).is_file():
            where = f"expected a point of a sweep, got {path} on {socket.gethostname()}"
            raise FileNotFoundError(f"{where}: all workers must see the folder of the sweep under one path.")
        try:
            return cls(path, json.loads((path / STATE).read_text(encoding="utf-8")))
        except ValueError as damage:
            raise ValueError(f"{path / STATE} is damaged ({damage}): delete it to run the point again.") from damage

    @classmethod
    @contextmanager
    def held(cls, path: Path) -> Iterator[Self]:
        """The point, as it is once no other process works on it, and for no other process until this one is done."""
        with FileLock(path / LOCK):
            yield cls.load(path)

    @property
    def status(self) -> str:
        """One of pending, running, completed, failed, interrupted."""
        return self.record["status"]

    @property
    def n_attempts(self) -> int:
        """How often it was begun, in this sweep and before."""
        return len(self.record["attempts"])

    @property
    def error(self) -> str | None:
        """What ended the last attempt, unless it completed."""
        return self.record["attempts"][-1]["error"] if self.n_attempts else None

    @property
    def output(self) -> Path:
        """The executed notebook of the last attempt, once that completes; each attempt has its own."""
        return self.path / f"{self.path.name.rpartition('-')[0]}-{self.n_attempts}.ipynb"

    def plan(self) -> None:
        """Writes a pending point, unless another sweep was quicker."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / STATE).is_file():  # so that nobody works on it and holds the lock for long
            with FileLock(self.path / LOCK):
                if not (self.path / STATE).is_file():
                    write_json(self.path / STATE, self.record)

    def begin(self) -> None:
        """Writes a new attempt down."""
        self.bury()
        attempt = {"status": "running", "error": None, "started": now(), "wall_seconds": None, "executed": None}
        place = {"host": socket.gethostname(), "pid": os.getpid()}
        place |= {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        self.record["attempts"].append({**attempt, **place, "environment": environment()})
        self._last["executed"] = self.output.with_suffix(".partial.ipynb").name
        self._write("running")

    def end(self, status: str, error: str | None = None) -> None:
        """Writes down how the last attempt ended."""
        started = datetime.fromisoformat(self._last["started"])
        self._last.update(status=status, error=error)
        self._last["wall_seconds"] = round((datetime.now(UTC) - started).total_seconds(), 3)
        if status == "completed":
            self._last["executed"] = self.output.name
        self._write(status)

    def bury(self) -> None:
        """Writes down that the last attempt, which never ended, was lost; who holds the lock knows that."""
        if self.status == "running":
            self.end("failed", f"its process {self._last['pid']} on {self._last['host']} was lost")

    def row(self) -> dict[str, Any]:
        """The point as a row of `load_sweep`."""
        last = self._last if self.n_attempts else {}
        executed = last.get("executed")
        fixed = {
            "point": self.record["point"],
            "path": str(self.path),
            "status": self.status,
            "error": self.error or "",
            "n_attempts": self.n_attempts,
            "started": last.get("started"),
            "wall_seconds": last.get("wall_seconds"),
            "executed": executed and str(self.path / executed),
            "runs_dir": self.record["given"].get("runs_dir", str(self.path)),
            "git_sha": last.get("environment", {}).get("git_sha"),
        }
        return fixed | aside(flatten(self.record["parameters"]), FIXED_COLUMNS, "parameter")

    @property
    def _last(self) -> dict[str, Any]:
        return self.record["attempts"][-1]

    def _write(self, status: str) -> None:
        self.record["status"] = status
        write_json(self.path / STATE, self.record)


def load_sweep(runs_dir: str | Path) -> pd.DataFrame:
    """One row per point of the sweeps below a folder, at any depth, in the order in which they were planned.

    Columns: `point`, `path`, `status` (pending, running, completed, failed, interrupted), `error` and `n_attempts`,
    `started`, `wall_seconds` and `executed` (the notebook, partial unless completed) of the last attempt, `runs_dir`
    (where the notebook's own records lie, for `load_runs`), `git_sha` (the commit of this package), and the
    notebook's parameters; one that has the name of another column becomes `parameter.<name>`. "running" is also what
    a machine leaves behind that died; sweep again and it is settled.

    Raises:
        FileNotFoundError: There is no point.
    """
    root = Path(runs_dir)
    points = [Point.load((root / name).parent) for name in glob.glob(f"**/{STATE}", root_dir=root, recursive=True)]
    if not points:
        raise FileNotFoundError(f"expected points of a sweep below {root.absolute()}, got none: check the path.")
    return pd.DataFrame(point.row() for point in sorted(points, key=lambda point: point.record["planned"]))

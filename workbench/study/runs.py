"""The record of a run: one folder with `record.json` and `history.parquet`, readable by pandas alone."""

import glob
import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout
from pandas.api.types import infer_dtype

from .provenance import environment, peak_memory

STATUSES = ("completed", "interrupted", "failed")
FIXED_COLUMNS = ("run_id", "path", "status", "started", "wall_seconds", "trajectory")


class Run:
    """One run on disk: what was asked, what was logged on the way, what came out.

    While it runs, its folder is `<run_id>.partial` and every logged row is a line of `history.jsonl`, so that
    a killed process loses at most the line it was writing. At the end the rows become `history.parquet` and
    the folder takes its name. As a context manager: leaving normally completes the run; an interrupt or an
    exception is written down and goes on.

    Who writes a run holds the lock `<run_id>.lock` beside the folder, which the system takes from a process
    that dies, however it dies: so a run that was killed is told from one that goes on.

    Attributes:
        path: The folder, renamed when the run finishes.
        record: The content of `record.json`; keys added here are written at the end.
    """

    def __init__(self, path: Path, record: dict[str, Any], rows: list[dict[str, Any]] | None = None):
        """Holds what lies in a folder; come here through `Run.start` or `Run.load`."""
        self.path, self.record = path, record
        self._rows = rows  # None unless this object writes the run
        self._begun = time.monotonic()
        self._lock: FileLock | None = None

    @classmethod
    def start(
        cls,
        runs_dir: str | Path,
        parameters: Mapping[str, Any],
        *,
        slug: str,
        data: Mapping[str, str] | None = None,
    ) -> Self:
        """Opens `runs_dir/<utc>-<slug>-<hash>.partial` and writes its record with status "running".

        Args:
            runs_dir: Where runs lie; made if absent.
            parameters: Everything that decides the outcome, the seed included; nested mappings are fine.
            slug: A few words for the folder's name.
            data: Name of each data set → its fingerprint.

        Raises:
            TypeError: A parameter cannot be written as JSON; the message names it.
        """
        recorded, digest = _plain(parameters, "parameters"), parameters_hash(parameters, data)
        words = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-") or "run"
        path = _claim_folder(Path(runs_dir), f"{words[:60]}-{digest[:8]}")
        record = {
            "run_id": path.stem,
            "parameters_hash": digest,
            "status": "running",
            "error": None,
            "parameters": recorded,
            "data": dict(data or {}),
            "environment": environment(),
            "started": now(),
            **dict.fromkeys(["finished", "wall_seconds", "peak_memory_bytes", "peak_cuda_bytes"]),
            "base_scores": {},
            "scores": {},
        }
        run = cls(path, record, rows=[])
        run._lock = _locked(path)
        run._write_record()
        return run

    @classmethod
    def take_over(cls, path: str | Path) -> Self | None:
        """The unfinished run in a folder, to go on with by `go_on`; None while anyone works on it.

        Its folder is `<run_id>.partial` again, if an interrupt or an error had given it its name.
        """
        path = Path(path)
        partial = path.with_name(path.name.removesuffix(".partial") + ".partial")
        with suppress(OSError):  # another process was quicker
            if path != partial:
                path.rename(partial)
            if lock := _locked(partial):
                run = cls.load(partial)  # as it lies there now that nobody else can change it
                run._lock = lock
                return run
        return None

    def go_on(self, history: Path, seconds: float) -> None:
        """Writes on, as the run was when a copy of its `history.jsonl` was taken.

        Args:
            history: The copy.
            seconds: What the run had taken by then.
        """
        rows = _lines(history)
        here = {"at": now(), "rows": len(rows), "environment": environment()}
        ended = {"status": "running", "error": None, "finished": None}
        self.record |= {**ended, "resumed": [*self.record.get("resumed", []), here]}
        self._rows, self._begun = rows, time.monotonic() - seconds
        shutil.copy(history, self.file("history.jsonl.tmp"))
        os.replace(self.file("history.jsonl.tmp"), self.file("history.jsonl"))
        self._write_record()
        self.file("history.parquet").unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a run folder, finished or partial.

        Raises:
            FileNotFoundError: The folder holds no record.
            ValueError: The record is damaged.
        """
        file = Path(path) / "record.json"
        if not file.is_file():
            raise FileNotFoundError(f"expected a run folder with its record.json, got {path}: see load_runs.")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if missing := {"run_id", "parameters", "parameters_hash", "status", "scores"}.difference(record):
                raise ValueError(f"it lacks {sorted(missing)}")
        except (ValueError, TypeError) as damage:
            raise ValueError(f"expected the record of a run, got a damaged {file}: {damage}.") from damage
        return cls(Path(path), record)

    @property
    def status(self) -> str:
        """One of running, completed, interrupted, failed."""
        return self.record["status"]

    @property
    def scores(self) -> dict[str, float]:
        """The final scores; nan where a score has no value."""
        return {name: math.nan if score is None else score for name, score in self.record["scores"].items()}

    @property
    def history(self) -> pd.DataFrame:
        """One row per logged step or evaluation; the column `evaluation` tells which."""
        if self._rows is not None:
            return _table(self._rows)
        if self.file("history.parquet").is_file():
            return pd.read_parquet(self.file("history.parquet"))
        return _table(_lines(self.file("history.jsonl")))

    @property
    def seconds(self) -> float:
        """Wall time that this run has taken so far, what it took before it was resumed included."""
        return time.monotonic() - self._begun

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row: `{"step": 3, "loss": 0.1}`, or scores with `"evaluation": True`.

        Nested mappings become dotted columns, nan and inf become missing values.
        """
        rows, flat = self._writable(), {"evaluation": False, **flatten(_plain(row, "row"))}
        if lists := [name for name, value in flat.items() if isinstance(value, list)]:
            raise TypeError(f"expected one value a column, got lists in {lists}: log their items apart.")
        # Opened for each line: closing hands it to the system, which outlives a killed process.
        with self.file("history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(flat) + "\n")
        rows.append(flat)

    def finish(
        self,
        status: str = "completed",
        scores: Mapping[str, float] | None = None,
        error: str | None = None,
        base_scores: Mapping[str, float] | None = None,
    ) -> None:
        """Writes history and record, each under a temporary name first, and gives the folder its name.

        Args:
            status: One of completed, interrupted, failed.
            scores: Final scores, name → number.
            error: What went wrong.
            base_scores: The same scores of the model before alignment.
        """
        rows = self._writable()
        if status not in STATUSES:
            raise ValueError(f"expected a status among {STATUSES}, got {status!r}.")
        ended = {
            "status": status,
            "error": error,
            "finished": now(),
            "wall_seconds": round(self.seconds, 3),
            **peak_memory(),
            "base_scores": _plain(base_scores or self.record["base_scores"], "base_scores", float),
            "scores": _plain(scores or {}, "scores", float),
        }
        _table(rows).to_parquet(self.file("history.parquet.tmp"))
        os.replace(self.file("history.parquet.tmp"), self.file("history.parquet"))
        self.record.update(ended)
        self._write_record()
        self.file("history.jsonl").unlink(missing_ok=True)
        self.path, self._rows = self.path.rename(self.path.with_name(self.record["run_id"])), None
        self.let_go()

    def let_go(self) -> None:
        """Gives up the lock: another process may take the run over."""
        if self._lock is not None:
            with suppress(OSError):  # Windows keeps what is open
                Path(self._lock.lock_file).unlink()  # before it is released, so that nobody waits for a file that goes
            self._lock.release()
            self._lock = None

    def file(self, name: str) -> Path:
        """Where an artifact lies in the folder as it is called now: `run.file("subspace.safetensors")`."""
        return self.path / name

    def __enter__(self) -> Self:
        """Returns the run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the run unless that is done; an exception goes on."""
        if self._rows is None:
            return
        if kind is None:
            self.finish()
        elif issubclass(kind, KeyboardInterrupt):
            self.finish("interrupted", error=str(raised) or None)
        else:
            self.finish("failed", error=f"{kind.__name__}: {raised}")

    def _writable(self) -> list[dict[str, Any]]:
        if self._rows is None:
            raise RuntimeError(f"expected a run in progress, got {self.path} ({self.status}): start another.")
        return self._rows

    def _write_record(self) -> None:
        write_json(self.file("record.json"), _plain(self.record, "record"))


def load_runs(runs_dir: str | Path, *, include_running: bool = False) -> pd.DataFrame:
    """One row per run below `runs_dir`, at any depth, in the order of their paths.

    Columns: `run_id`, `path`, `status`, `started`, `wall_seconds`, `trajectory` (the evaluations as a list of
    dicts), the parameters (`technique.rank`), the base model's scores as `base.<score>`, the final scores.
    Where names meet, these fixed columns keep theirs before scores, and scores before parameters; the other
    becomes `score.<name>` or `parameter.<name>` in every row. A damaged run is warned of and left out.

    Args:
        runs_dir: A folder of run folders.
        include_running: Whether to keep the runs that have not finished, killed ones among them.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    found = [(run, points) for run, points in _read(runs_dir) if include_running or run.status != "running"]
    if not found:
        got = "no finished run" if Path(runs_dir).is_dir() else "no such folder"
        mend = "check the path, run a notebook first, or pass include_running=True."
        raise FileNotFoundError(f"expected runs below {Path(runs_dir).absolute()}, got {got}: {mend}")
    scored = {name for run, _ in found for name in _all_scores(run)}
    return pd.DataFrame(
        {name: run.record.get(name) for name in FIXED_COLUMNS}
        | {"path": str(run.path), "trajectory": points}
        | aside(flatten(run.record["parameters"]), scored.union(FIXED_COLUMNS), "parameter")
        | aside(_all_scores(run), FIXED_COLUMNS, "score")
        for run, points in found
    )


def load_histories(table: pd.DataFrame) -> pd.DataFrame:
    """The histories of a table of `load_runs`, one below the other, each row with its `run_id`."""
    runs = [Run.load(path) for path in table["path"]]
    return pd.concat([run.history.assign(run_id=run.record["run_id"]) for run in runs], ignore_index=True)


def find_run(
    runs_dir: str | Path,
    parameters: Mapping[str, Any],
    data: Mapping[str, str] | None = None,
    status: str = "completed",
) -> Run | None:
    """The newest run of exactly these parameters and data, or None: what is finished need not run again."""
    return next((run for run in runs_of(runs_dir, parameters, data) if run.status == status), None)


def runs_of(runs_dir: str | Path, parameters: Mapping[str, Any], data: Mapping[str, str] | None = None) -> list[Run]:
    """All runs of exactly these parameters and data, whatever became of them, the newest first."""
    digest = parameters_hash(parameters, data)
    same = [run for run, _ in _read(runs_dir, f"*-{digest[:8]}*") if run.record["parameters_hash"] == digest]
    return sorted(same, key=lambda run: run.record["run_id"], reverse=True)


def parameters_hash(parameters: Mapping[str, Any], data: Mapping[str, str] | None = None) -> str:
    """sha256 of the canonical JSON of parameters and data fingerprints; the order of keys does not matter."""
    content = {"parameters": dict(parameters), "data": dict(data or {})}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=scalar)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"technique": {"rank": 4}}` → `{"technique.rank": 4}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = prefix + key
        flat |= flatten(value, name + ".") if isinstance(value, Mapping) and value else {name: value}
    return flat


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file under a temporary name first, so that no reader and no kill finds half of it."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def timestamp() -> str:
    """UTC to the millisecond, as names of runs begin: 20260131T235959123Z."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + "Z"


def now(precision: str = "milliseconds") -> str:
    """UTC in ISO 8601, as records hold it."""
    return datetime.now(UTC).isoformat(timespec=precision)


def _claim_folder(runs_dir: Path, name: str) -> Path:
    """Makes a folder whose name no other process holds: mkdir decides, and the clock moves on."""
    while True:
        run_id = f"{timestamp()}-{name}"
        with suppress(FileExistsError):
            if not (runs_dir / run_id).exists():
                (runs_dir / f"{run_id}.partial").mkdir(parents=True)
                return runs_dir / f"{run_id}.partial"


def _locked(path: Path) -> FileLock | None:
    """The lock of a run's folder, or None if another process, or another `Run` of this one, holds it."""
    lock = FileLock(path.with_name(path.name.removesuffix(".partial") + ".lock"), thread_local=False)
    with suppress(Timeout):
        lock.acquire(blocking=False)
        return lock
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a `history.jsonl`; none if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill can tear the last one


def _read(runs_dir: str | Path, folder: str = "*") -> Iterator[tuple[Run, list[dict[str, Any]]]]:
    """Runs with their trajectories. glob, unlike Path.rglob, bears folders that are renamed meanwhile."""
    for name in sorted(glob.glob(f"**/{folder}/record.json", root_dir=runs_dir, recursive=True)):
        path = Path(runs_dir, name).parent
        try:
            run = Run.load(path)
            yield run, _trajectory(run.history)
        except (ValueError, OSError) as damage:
            warnings.warn(f"the run {path} is damaged and left out: {damage}", stacklevel=3)


def _trajectory(history: pd.DataFrame) -> list[dict[Any, Any]]:
    if "evaluation" not in history:
        return []
    points = history[history["evaluation"]].drop(columns="evaluation")
    return points.dropna(axis="columns", how="all").to_dict("records")


def _all_scores(run: Run) -> dict[str, float]:
    base = {f"base.{name}": score for name, score in run.record.get("base_scores", {}).items()}
    return base | run.scores


def aside(values: Mapping[str, Any], taken: Iterable[str], prefix: str) -> dict[str, Any]:
    """The values, with `<prefix>.` before the names that are taken."""
    return {f"{prefix}.{name}" if name in taken else name: value for name, value in values.items()}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    mixed = [name for name in table if infer_dtype(table[name]).startswith("mixed")]  # parquet refuses these
    return table.astype(dict.fromkeys(mixed, "str"))


def _plain(values: Mapping[str, Any], what: str, convert: Callable = lambda value: value) -> dict[str, Any]:
    """The values as JSON gives them back: tuples as lists, scalars of any library as numbers, nan as None."""
    plain = {}
    for key, value in values.items():
        try:
            text = json.dumps(convert(value), default=scalar)
        except TypeError as refusal:
            raise TypeError(f"{what}[{key!r}]: {refusal}") from refusal
        plain[key] = json.loads(text, parse_constant=lambda constant: None)
    return plain


def scalar(value: Any) -> Any:
    """Scalars of numpy and torch as numbers, for json.dumps, which asks about what it does not know."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    mend = "numbers, strings, lists and dicts are fine, a path as str(path)."
    raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}: {mend}")

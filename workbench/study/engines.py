"""Who runs the points of a sweep: processes of this machine, or the workers of a dask cluster.

Either way an attempt is a child process of its own (`attempt.py`), begun and watched by `run_attempt`: in a thread
here, or in a task on a worker. So neither a kernel nor a child that is killed takes anything else with it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from .execute import require_known
from .points import Point

ENGINES = ("local", "dask")
GRACE = 30.0  # seconds that an interrupted notebook has to write its records
# Where they are not set, dask's nanny sets all three to 1, and PyTorch heeds MKL's before OpenMP's.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_children: dict[str, set[subprocess.Popen]] = defaultdict(set)  # by the crew that began them
_stopped: set[str] = set()
_guard = threading.Lock()


@dataclass(frozen=True)
class Task:
    """A point to be run.

    Attributes:
        point: Its folder.
        source: The notebook, as it was when the sweep began.
        folder: Where its kernel starts.
        limit: How many attempts there may be, those before this sweep included.
        timeout: Seconds that one attempt may take.
    """

    point: Path
    source: Path
    folder: Path
    limit: int
    timeout: float | None


class Crew(NamedTuple):
    """An engine at work: `submit` hands it a task, `stop` ends what runs, in order, and begins nothing more."""

    submit: Callable[[Task], "Future[None]"]
    stop: Callable[[], None]


@dataclass(frozen=True)
class Workforce:
    """How a sweep is run; what the engine has no use for is passed over, so that a study runs on either.

    Attributes:
        engine: "local" or "dask".
        scheduler: For dask: an address, a scheduler file (`.json`), or a Client or Cluster object.
        workers: For local: processes at a time; by default one per GPU, or else one per `threads` cores.
        threads: OMP_NUM_THREADS of each attempt, and MKL's and OpenBLAS's; by default the cores are shared out evenly
            among local workers, and what the environment says stays as it is: 1 where a nanny of dask's has said so.
        devices: For local: what workers are given as CUDA_VISIBLE_DEVICES, one each, in turn if there are more workers;
            by default the GPUs that this process may use.
        resources: For dask: what a worker must have free for a point, such as {"GPU": 1}.
        retries: How often a point that did not complete is tried again.
        timeout: Seconds that one attempt may take.
    """

    engine: str = "local"
    scheduler: Any = None
    workers: int | None = None
    threads: int | None = None
    devices: Sequence[str | int] | None = None
    resources: Mapping[str, float] | None = None
    retries: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and that a scheduler and dask come together."""
        require_known(self.engine, ENGINES, "engine")
        for name, least in {"workers": 1, "threads": 1, "retries": 0}.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}.")
        if self.timeout is not None and not (type(self.timeout) in (int, float) and self.timeout > 0):
            raise ValueError(f"timeout: expected seconds above 0, got {self.timeout!r}.")
        if self.engine == "local" and self.scheduler is not None:
            raise ValueError(f"engine 'local': expected no scheduler, got {self.scheduler!r}: say engine='dask'.")
        if self.engine == "dask" and self.scheduler is None:
            mend = "an address such as tcp://host:8786, a scheduler file, or a Client or Cluster object"
            raise ValueError(f"engine 'dask': expected a scheduler, got none: pass {mend}.")
        if self.engine == "dask" and not find_spec("distributed"):
            raise ValueError("engine 'dask': expected the package dask.distributed: pip install 'dask[distributed]'.")

    def crew(self) -> AbstractContextManager[Crew]:
        """The engine, as a context manager that gives a `Crew` and waits for what it began."""
        return _local_crew(self) if self.engine == "local" else _dask_crew(self)


def run_attempt(task: Task, crew: str, environment: Mapping[str, str]) -> None:
    """Makes one attempt in a child process and waits for it; the point's state says how it ended.

    The child writes the state. What it could not write, because it was killed or never got so far, is written here.

    Raises:
        FileNotFoundError: The point's folder cannot be seen from this machine.
    """
    n_before = Point.load(task.point).n_attempts
    arguments = [str(task.point), str(task.source), str(task.folder), str(task.limit)]
    with (task.point / "log.txt").open("ab") as log:
        n_logged, child = log.tell(), _begin(arguments, crew, environment, log)
        if child is None:
            return
        with child:
            late = _outlasts(child, task.timeout)
            if late:
                _end([child])
    with _guard:
        _children[crew].discard(child)
    with Point.held(task.point) as point:
        begun, stopped = point.n_attempts > n_before, crew in _stopped
        if point.status == "completed" or (not begun and (stopped or not child.returncode)):
            return
        if not begun:
            point.begin()
        if late:
            point.end("failed", f"did not end within {task.timeout:g} s")
        elif point.status == "running":
            point.end("interrupted" if stopped else "failed", _obituary(child.returncode, task.point, n_logged))


def stop_children(crew: str) -> None:
    """Ends the attempts that a crew has begun in this process: interrupted first, killed if they do not heed that."""
    with _guard:
        _stopped.add(crew)
        children = [*_children[crew]]
    _end(children)


@contextmanager
def _local_crew(force: Workforce) -> Iterator[Crew]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = [str(device) for device in (visible_gpus() if force.devices is None else force.devices)]
    n_workers = force.workers or len(devices) or max(1, cores // (force.threads or 1))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // n_workers))}
    threads |= _threads(force)
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for n in range(n_workers):
        free.put({"CUDA_VISIBLE_DEVICES": devices[n % len(devices)]} if devices else {})
    crew = uuid.uuid4().hex

    def work(task: Task) -> None:
        device = free.get()
        try:
            run_attempt(task, crew, threads | device)
        finally:
            free.put(device)

    def stop() -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_children(crew)

    with ThreadPoolExecutor(n_workers, "sweep") as pool:
        yield Crew(lambda task: pool.submit(work, task), stop)


@contextmanager
def _dask_crew(force: Workforce) -> Iterator[Crew]:
    from distributed import Client

    crew, scheduler, threads = uuid.uuid4().hex, force.scheduler, _threads(force)
    if isinstance(scheduler, Client):
        client = scheduler
    else:
        file = isinstance(scheduler, str | Path) and str(scheduler).endswith(".json")
        where = {"scheduler_file": str(scheduler)} if file else {"address": scheduler}
        client = Client(**where, set_as_default=False)
    pool = client.get_executor(pure=False, **({"resources": dict(force.resources)} if force.resources else {}))

    def stop() -> None:
        pool.shutdown(wait=False)  # what waits is dropped; what runs is told on its worker
        client.run(stop_children, crew, on_error="ignore")

    try:
        yield Crew(lambda task: pool.submit(run_attempt, task, crew, threads), stop)
    finally:
        if client is not scheduler:
            client.close()


def _threads(force: Workforce) -> dict[str, str]:
    return {} if force.threads is None else dict.fromkeys(THREADS, str(force.threads))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them; MIG instances each by itself."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not (command := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run([command, "-L"], capture_output=True, text=True).stdout
    found = re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)", listed)
    return [name for name in found if name.startswith("MIG")] or found


def _begin(arguments: Sequence[str], crew: str, environment: Mapping[str, str], log: Any) -> subprocess.Popen | None:
    """A child that ends when its standard input does; none once the crew was stopped."""
    with _guard:
        if crew in _stopped:
            return None
        child = subprocess.Popen(
            [sys.executable, "-m", "workbench.study.attempt", *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which ends its children in order
        )
        _children[crew].add(child)
        return child


def _outlasts(child: subprocess.Popen, timeout: float | None) -> bool:
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(children: Sequence[subprocess.Popen]) -> None:
    deadline = time.monotonic() + GRACE
    try:
        for child in children:
            if child.stdin:
                child.stdin.close()
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:  # a second Ctrl-C comes here at once
        for child in children:
            with suppress(ProcessLookupError):
                child.kill()


def _obituary(code: int, point: Path, n_logged: int) -> str:
    """How a child ended that could not say so itself, with the last line that it has left in the log."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    with (point / "log.txt").open("rb") as log:
        log.seek(n_logged)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return f"its process {how}" + (f": {lines[-1]}" if lines else "")

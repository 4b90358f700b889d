"""Sweeps: a notebook at every setting of a grid, in many processes; what is finished is not run again."""

from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from workbench.progress import progress_bar

from .engines import Crew, Task, Workforce
from .execute import require_known
from .grid import Setting, Study, read_study
from .points import Point

_STUDY, _FORCE = ([field.name for field in fields(kind)] for kind in (Study, Workforce))
KEYS = (*_STUDY, "runs_dir", *_FORCE)


def sweep(
    study: str | Path | Mapping[str, Any], *, dry_run: bool = False, progress: bool = True, **keys: Any
) -> pd.DataFrame:
    """Runs a notebook at every point of a study, each in a process of its own, and returns the table of points.

    A point that is completed is not run again. One that fails, is killed or takes too long is written down with its
    error and tried again as often as `retries` says, and the others go on. Ctrl-C ends what runs, which leaves its
    records, its partial notebook and its state; the same call goes on from there.

    Args:
        study: A YAML file, a notebook, or a mapping of the same keys as the file's.
        dry_run: Return the table of points and write nothing.
        progress: Whether to show a bar with the time left.
        keys: Keys that go before those of the study; None takes one back. What is run: ``notebook``, ``parameters``,
            ``grid``, ``zip``, ``runs``, ``version`` (see `Study`). Where records go, each point in a folder of its
            own: ``runs_dir``, by default ``runs/<name of the study>``. How: ``engine`` ("local" or "dask"),
            ``scheduler``, ``workers``, ``threads``, ``devices``, ``resources``, ``retries``, ``timeout`` (see
            `Workforce`).

    Returns:
        One row per point in the order of the study, with the columns of `load_sweep`.

    Raises:
        FileNotFoundError: There is no such study or notebook.
        ValueError: A key, parameter or value is not what it should be; nothing has run.
        TypeError: A value does not fit its parameter's annotation; nothing has run.
    """
    asked = {key: value for key, value in (read_study(study) | keys).items() if value is not None}
    for key in asked:
        require_known(key, KEYS, "a key of a study")
    if "notebook" not in asked:
        raise ValueError(f"expected the key notebook, got {sorted(asked)}: say which notebook is run.")
    what = Study(**{key: asked[key] for key in _STUDY if key in asked})
    force = Workforce(**{key: asked[key] for key in _FORCE if key in asked})
    runs_dir = Path(asked.get("runs_dir", Path("runs", what.stem))).resolve()
    settings = what.settings()
    if not dry_run:
        _run(what, _points(settings, runs_dir), force, runs_dir, progress)
    return pd.DataFrame(point.row() for point in _points(settings, runs_dir))


def _points(settings: Iterable[Setting], runs_dir: Path) -> list[Point]:
    return [Point.at(runs_dir / name, given, parameters) for name, given, parameters in settings]


def _run(what: Study, points: list[Point], force: Workforce, runs_dir: Path, progress: bool) -> None:
    open_points = [point for point in points if point.status != "completed"]
    if not open_points:
        return
    for point in open_points:
        point.plan()
    notebook, n = Path(what.notebook).resolve(), len(points)
    source = _kept(notebook, runs_dir)
    tasks = [
        Task(p.path, source, notebook.parent, p.n_attempts + 1 + force.retries, force.timeout) for p in open_points
    ]
    settled = {"total": n, "initial": n - len(open_points), "smoothing": 0}  # time left by the mean over all
    with progress_bar(**settled, desc=what.stem, unit="point", disable=not progress) as bar, force.crew() as crew:
        try:
            _work(tasks, crew, bar)
        except BaseException:
            crew.stop()
            raise


def _work(tasks: Iterable[Task], crew: Crew, bar: Any) -> None:
    """Hands out every task, and again while it has attempts left; the bar moves when one is settled."""
    running = {crew.submit(task): task for task in tasks}
    n_failed = 0
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            point = _ended(task, future)
            if point.status != "completed" and point.n_attempts < task.limit:
                running[crew.submit(task)] = task
                continue
            n_failed += point.status != "completed"
            bar.set_postfix(failed=n_failed, refresh=False)
            bar.update()


def _ended(task: Task, future: "Future[None]") -> Point:
    """The point after an attempt; what the engine itself could not do is written down as one that failed."""
    refusal = CancelledError("its engine has dropped it") if future.cancelled() else future.exception()
    with Point.held(task.point) as point:
        point.bury()
        if refusal and point.status != "completed":
            point.begin()
            point.end("failed", f"{type(refusal).__name__}: {refusal}")
    return point


def _kept(notebook: Path, runs_dir: Path) -> Path:
    """A copy of the notebook, so that a sweep of hours is not moved by who goes on writing in it."""
    source = notebook.read_bytes()
    kept = runs_dir / "notebooks" / sha256(source).hexdigest()[:12] / notebook.name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{uuid4().hex}.tmp")
        temporary.write_bytes(source)
        temporary.replace(kept)
    return kept

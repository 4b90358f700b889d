"""Checkpoints of a run, and the search for a run that was killed and can go on from one.

A run's checkpoints lie in its folder, as `checkpoints/<stage>/checkpoint-<step>/`: what the trainer and the techniques
keep, and beside it a copy of the run's history until then. The file `run.json` comes last, so that a checkpoint with it
is whole; the one before goes only after that.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import Run, runs_of, write_json

FOLDER = "checkpoints"
_MARK, _HISTORY = "run.json", "history.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A point from which a run can go on.

    Attributes:
        path: Its folder.
        state: What `keep_checkpoint` was given, and ``seconds``, the time that the run had taken.
    """

    path: Path
    state: dict[str, Any]


def keep_checkpoint(run: Run, folder: Path, state: Mapping[str, Any]) -> None:
    """Make a folder below the run's the checkpoint to go on from, and remove those before it.

    Args:
        run: In progress.
        folder: `checkpoints/<stage>/checkpoint-<step>`, where all that is needed to go on has been written.
        state: What else is needed, in JSON's types.
    """
    shutil.copy(run.file(_HISTORY), folder / _HISTORY)
    write_json(folder / _MARK, {**state, "seconds": run.seconds})
    for other in run.file(FOLDER).glob("*"):
        if other != folder.parent:
            shutil.rmtree(other)
    for other in folder.parent.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other)


def drop_checkpoints(run: Run) -> None:
    """Remove all of them: the run will not go on."""
    shutil.rmtree(run.file(FOLDER), ignore_errors=True)


def resume_run(
    runs_dir: str | Path,
    parameters: Mapping[str, Any],
    data: Mapping[str, str] | None = None,
    *,
    n_processes: int = 1,
) -> tuple[Run, Checkpoint] | None:
    """The newest unfinished run of exactly these parameters and data that has a checkpoint, set back to that.

    It was killed, interrupted, or failed. A run that another process works on is left to it, and so, with a warning, is
    one that another number of processes trained together, each of which kept a state of its own.

    Returns:
        The run, in progress, and the checkpoint; None if there is no such run.
    """
    for found in runs_of(runs_dir, parameters, data):
        if found.status == "completed" or not any(_checkpoints(found.path)):
            continue
        run = Run.take_over(found.path)
        if run is None:
            continue
        checkpoint = _latest(run.path)
        if run.status != "completed" and checkpoint is not None:
            if checkpoint.state["n_processes"] == n_processes:
                run.go_on(checkpoint.path / _HISTORY, checkpoint.state["seconds"])
                return run, checkpoint
            trained = checkpoint.state["n_processes"]
            warnings.warn(
                f"{run.path} was trained by {trained} processes, not {n_processes}: left as it is", stacklevel=2
            )
        run.let_go()
    return None


def _latest(folder: Path) -> Checkpoint | None:
    """Of two, one was about to be removed when the process was killed."""
    return max(_checkpoints(folder), key=lambda checkpoint: checkpoint.state["seconds"], default=None)


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    for mark in folder.glob(f"{FOLDER}/*/*/{_MARK}"):
        yield Checkpoint(mark.parent, json.loads(mark.read_text(encoding="utf-8")))

"""Watching a run while it trains, and stopping it: what `align` asks of a monitor, and how a stopped run ends."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from workbench.study.runs import Run


class Monitor(Protocol):
    """Whatever has these may watch runs, one after the other; `wb.views.explorers.TrainingMonitor` does.

    Attributes:
        stopping: Whether the user has asked the run that is watched, or was watched last, to stop.
    """

    @property
    def stopping(self) -> bool:
        """See above; asked after every step, so it must be quick."""

    def watching(self, run: Run) -> AbstractContextManager[Any]:
        """Watches a run from here to the end of the context, where its record says how it ended.

        A run that is gone on with has a history already, and one that is reused is complete.
        """

    def log(self, row: Mapping[str, Any]) -> None:
        """Is told every row as the run's history gets it: `{"step": 3, "loss": 0.1}`, or scores with `"evaluation"`."""


class Stopped(KeyboardInterrupt):
    """The user stopped training at its monitor: an interrupt that waited for the step to end and left a checkpoint."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: no error, so no traceback."""
        return [f"{self}. Load the model anew and run this again with reuse=True to go on."]

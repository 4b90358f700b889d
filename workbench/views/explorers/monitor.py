"""The training monitor: loss, leakage and scores of runs as they are logged, and a button that stops them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.study.runs import Run

from ..theme import safe
from ..training import Track, measures_of, training_lines
from .live import STILL, VIEW, Explorer, LivePlot
from .stopping import StopButton

QUICKEST = 0.1  # seconds between two drawings, at least
SHARE = 0.05  # of the time that is spent on drawing, at most
ROW = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 12px")


class TrainingMonitor(Explorer):
    """Watches runs while the cell that trains them blocks the kernel, and stops them: `wb.align(..., monitor=monitor)`.

    It shows itself when the first run begins, unless it has been shown. The Stop button, JupyterLab's ■ and Ctrl-C all
    end the step, keep a checkpoint and end the cell with `Stopped`; with `reuse=True`, running the cell again goes on
    from there. A second press interrupts at once. One monitor may watch any number of runs, one after the other: runs
    of one label look alike, and the last run's lines are strong. Where nobody watches (papermill, plain Python) nothing
    is drawn while it trains; a notebook gets one picture at the end of the cell.

    Attributes:
        measures: What is drawn, such as `("loss", "utility")`; empty draws the loss, the leakage and the main scores.
        stopping: Whether the run that trains, or trained last, was asked to stop.
        history: All rows that were logged, with `run_id` and `label`: a table.
        runs: A row for each run: `run_id`, `label`, `status`, `error`, `step`, `n_steps`, `seconds` (that it has taken
            here), `seconds_left` (about, to its last step), `steps_per_second`.
    """

    measures = traitlets.Tuple()

    def __init__(self, measures: Sequence[str] = ()) -> None:
        """Nothing has been watched yet.

        Args:
            measures: See the attribute.
        """
        self._watched: dict[str, _Watched] = {}
        self._places: dict[Any, tuple[Any, Any]] = {}  # by cell: the run of it, and where the picture goes
        self._due = 0.0  # when to draw next
        self._button = StopButton()
        self._line = ipywidgets.HTML()
        self._plot = LivePlot(self._figure(), description="Training: no run yet")
        self._choice = ipywidgets.SelectMultiple(rows=4, description="Measures")
        self._choice.layout = ipywidgets.Layout(width="22em")
        top = ipywidgets.HBox([self._button, self._line], layout=ROW)
        super().__init__([top, self._plot, self._choice])
        self._choice.observe(self._choose, "value")
        self.measures = tuple(measures)
        self._draw()

    # --- what is watched --------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether the run that trains, or trained last, was asked to stop."""
        return self._button.pressed

    def stop(self) -> None:
        """Ask the run that trains to stop, as the button does; for threads and callbacks."""
        self._button.pressed = bool(self._button.running)

    @contextmanager
    def watching(self, run: Run) -> Iterator[None]:
        """Watch a run until the context ends; a run that goes on, or is complete, brings its history.

        Args:
            run: In progress, or finished.
        """
        self._watched.pop(run.record["run_id"], None)
        watched = self._watched[run.record["run_id"]] = _Watched(run)
        self._show_once()
        self._draw_when_due(at_once=True)
        try:
            with self._button.listening():
                yield
        finally:
            watched.end()
            self._draw()

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of the history of the run that is watched."""
        self._last.log(row)
        self._draw_when_due()

    @property
    def history(self) -> pd.DataFrame:
        """All rows that were logged, with `run_id` and `label`."""
        return pd.DataFrame(row for watched in self._watched.values() for row in watched.rows)

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each run."""
        return pd.DataFrame(watched.summary() for watched in self._watched.values())

    # --- what is shown ----------------------------------------------------------------------------------------------

    def still(self) -> go.Figure:
        """What is shown now, as one figure."""
        return self._figure()

    def close(self) -> None:
        """End the monitor and all its parts."""
        self._places.clear()
        super().close()

    @property
    def _last(self) -> "_Watched":
        return [*self._watched.values()][-1]

    def _figure(self) -> go.Figure:
        return training_lines([watched.track for watched in self._watched.values()], self.measures)

    @traitlets.validate("measures")
    def _known(self, proposal: dict[str, Any]) -> tuple[str, ...]:
        known = measures_of(watched.track for watched in self._watched.values())
        if self._watched and (unknown := sorted(set(proposal["value"]) - set(known))):
            raise ValueError(f"measures: expected some of {known}, got {unknown}.")
        return tuple(proposal["value"])

    @traitlets.observe("measures")
    def _measure(self, change: dict[str, Any]) -> None:
        self._draw()

    def _choose(self, change: dict[str, Any]) -> None:
        self.measures = change["new"]

    def _draw_when_due(self, at_once: bool = False) -> None:
        """Draw where somebody watches, so seldom that training goes on at nearly its own pace."""
        now = time.monotonic()
        if (at_once or now >= self._due) and _is_watched():
            self._draw()
            spent = time.monotonic() - now
            self._due = now + max(QUICKEST, spent / SHARE)

    def _draw(self) -> None:
        self._plot.figure = self._figure()
        self._offer()
        self._tell()

    def _offer(self) -> None:
        """The measures that can be chosen: those that were logged. Nothing is chosen by it."""
        known = tuple(measures_of(watched.track for watched in self._watched.values()))
        self._choice.unobserve(self._choose, "value")
        if self._choice.options != known:
            self._choice.options = known
        self._choice.value = tuple(name for name in self.measures if name in known)
        self._choice.observe(self._choose, "value")

    def _tell(self) -> None:
        """The line beside the button."""
        said = self._last.told(self.stopping) if self._watched else "No run yet: pass this as monitor= to wb.align."
        self._line.value = f'<div role="status" style="line-height: 1.5">{said}</div>'
        self._plot.description = f"Training of {len(self._watched)} runs"

    # --- where it is shown ------------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Show the live view, and below it an output where the picture comes when the cell ends."""
        from IPython.display import display

        text = "TrainingMonitor: live while its kernel runs"
        display({VIEW: self._repr_mimebundle_()[VIEW], "text/plain": text}, raw=True)
        place = {"text/html": f'<span class="{STILL}"></span>', "text/plain": ""}
        shown = display((self._watched and self._picture()) or place, raw=True, display_id=True)
        cell, execution = _cell()
        self._places[cell] = execution, shown

    def _show_once(self) -> None:
        """In a notebook: show what no cell shows, or did before this one was run again; leave pictures when it ends."""
        shell = _shell()
        if shell is None:
            return
        cell, execution = _cell()
        if not self._places or self._places.get(cell, (execution,))[0] != execution:
            self._ipython_display_()
        if self._leave_pictures not in shell.events.callbacks["post_run_cell"]:
            shell.events.register("post_run_cell", self._leave_pictures)

    def _leave_pictures(self, result: Any = None) -> None:
        shell = _shell()
        if shell is not None:
            shell.events.unregister("post_run_cell", self._leave_pictures)
        drawn = self._picture() if self._places else None
        for _, place in self._places.values():
            if drawn:
                place.update(drawn, raw=True)


class _Watched:
    """A run as it is watched: its rows, and how fast they come."""

    def __init__(self, run: Run) -> None:
        """With what it has logged already."""
        self.run = run
        parameters = run.record["parameters"]
        self.n_steps = sum(stage["steps"] for stage in parameters.get("stages", {}).values())
        self.who = {"run_id": run.record["run_id"], "label": str(parameters.get("label", "run"))}
        self.track = Track(**self.who, technique=str(parameters.get("technique", "plain")), n_steps=self.n_steps)
        self.rows: list[dict[str, Any]] = []
        self.step = 0
        self.begun = time.monotonic()
        self.seconds: float | None = None  # once it has ended
        self.pace: list[tuple[float, int]] = []  # when the first and the latest step were logged here, and which
        for row in run.history.to_dict("records"):
            self._take({str(name): value for name, value in row.items()})

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of its history."""
        self._take(row)
        if not row.get("evaluation"):
            self.pace[1:] = [(time.monotonic(), self.step)]

    def _take(self, row: Mapping[str, Any]) -> None:
        self.rows.append({**self.who, "evaluation": False, **row})
        self.track.log(row)
        self.step = int(row["step"])

    def end(self) -> None:
        """It takes no more time."""
        self.seconds = time.monotonic() - self.begun

    @property
    def rate(self) -> float | None:
        """Steps a second between the first that was logged here and the latest, evaluations included."""
        if len(self.pace) < 2 or self.pace[0] == self.pace[1]:
            return None
        (begun, first), (now, latest) = self.pace
        return (latest - first) / (now - begun)

    def summary(self) -> dict[str, Any]:
        """See `TrainingMonitor.runs`."""
        goes_on = self.seconds is None
        return {
            **self.who,
            "status": self.run.record["status"],
            "error": self.run.record.get("error"),
            "step": self.step,
            "n_steps": self.n_steps,
            "seconds": time.monotonic() - self.begun if goes_on else self.seconds,
            "seconds_left": (self.n_steps - self.step) / self.rate if goes_on and self.rate else None,
            "steps_per_second": self.rate,
        }

    def told(self, stopping: bool) -> str:
        """How far it is, as HTML."""
        now = self.summary()
        state = {"running": "stopping after this step" if stopping else "training"}.get(now["status"], now["status"])
        facts = [state, f"step {self.step} of {self.n_steps}"]
        if now["error"]:
            facts = [now["error"], *["run the cell again to go on"] * stopping]
        facts += [f"{self.rate:.3g} steps a second"] if self.rate else []
        facts += [f"about {_duration(now['seconds_left'])} left"] if now["seconds_left"] else []
        bar = f'<progress max="{max(self.n_steps, 1)}" value="{self.step}" style="width: 9em"></progress>'
        return f"{bar} <b>{safe(self.who['label'])}</b>: {safe(', '.join(facts))}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _shell() -> Any:
    """The shell of a notebook's kernel, None anywhere else."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _cell() -> tuple[Any, Any]:
    """The cell that is run, as far as the page tells which, and this run of it."""
    shell = _shell()
    asked = shell.get_parent() if shell else {}
    return asked.get("metadata", {}).get("cellId"), asked.get("header", {}).get("msg_id")


def _is_watched() -> bool:
    """Whether a page shows what a cell displays: programs that run notebooks by themselves could answer no question."""
    shell = _shell()
    return shell is not None and shell.get_parent().get("content", {}).get("allow_stdin", False)

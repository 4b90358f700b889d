"""The trade-off explorer: the plane with filters, a slider of equal safety, and two runs side by side."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.study.tradeoff import matched_safety

from ..plane import safety_utility
from ..readings import RATES, completed_runs, group_means
from . import records
from .live import Explorer, LivePlot
from .matched_table import matched_html
from .quick_plane import Axes, QuickPlane, Seen

FILTERS = {"technique": "group", "pipeline": "pipeline", "base": "model", "seed": "seed"}  # trait → what it filters
AXES = ("x", "y", "beside")
HINT = "Filters: nothing chosen shows all. Ctrl and click, or Shift and arrow keys, choose several."


class Shown(NamedTuple):
    """Runs on a plane: the plane, the places of the runs in it, and their means."""

    plane: QuickPlane
    places: np.ndarray
    means: pd.DataFrame


class TradeoffExplorer(Explorer):
    """What techniques cost, over any table of runs, by mouse or by keyboard alone.

    Every control is a trait, which can be set from code and observed; what is shown can be read as plain data. A click
    on a run (or the arrow keys and Enter on the plot) takes it as run A, the next one as run B, and opens its record.

    Attributes:
        technique: The groups shown, values of the column that the explorer groups by; () is all of them.
        pipeline: The pipelines shown; () is all.
        base: The base models shown; () is all.
        seed: The seeds shown; () is all.
        x: The score that goes across.
        y: The score that goes up.
        beside: The score that goes up in the panel below; None leaves it out.
        matched_safety: The safety at which groups are compared: each run is read where it first reaches it.
        trajectories: Whether the way of every run from its base is drawn.
        paper: Whether the points of the OGPSA paper are, which were measured on other benchmarks.
        focus: Whether the axes end where the drawn runs do, so that marks in a corner come apart.
        run_a: The id of a run to compare, or None.
        run_b: The other.
        next_choice: Which of the two the next click on a run takes: `"A"` or `"B"`, by turns.
        opened: The id of the run whose record is open, or None.
    """

    technique = traitlets.Tuple()
    pipeline = traitlets.Tuple()
    base = traitlets.Tuple()
    seed = traitlets.Tuple()
    x = traitlets.Unicode("utility")
    y = traitlets.Unicode("safety")
    beside = traitlets.Unicode("over_refusal", allow_none=True)
    matched_safety = traitlets.Float(0.9, min=0.0, max=1.0)
    trajectories = traitlets.Bool(True)
    paper = traitlets.Bool(False)
    focus = traitlets.Bool(False)
    run_a = traitlets.Unicode(None, allow_none=True)
    run_b = traitlets.Unicode(None, allow_none=True)
    next_choice = traitlets.Enum(("A", "B"), "A")
    opened = traitlets.Unicode(None, allow_none=True)

    def __init__(self, table: pd.DataFrame, *, group: str = "label", **traits: Any) -> None:
        """Explore a table of runs.

        Args:
            table: One row per run, as `workbench.study.runs.load_runs` returns it; failed runs are listed, not drawn.
            group: The column whose values are compared; `technique` where it is absent.
            traits: First values of the traits above.

        Raises:
            ValueError: The table is empty, a column is missing, or a run is there twice.
            traitlets.TraitError: A trait was given what the table does not have.
        """
        self._runs = _prepared(table, group)
        self._table, self._group = table, group
        self._places = {run: place for place, run in enumerate(self._runs["run_id"])}
        measured = [name for name in records.scores_of(self._runs) if self._runs[name].notna().any()]
        self._scores = ["utility", "safety", *(name for name in measured if not name.endswith("/n"))]
        self._scores = [*dict.fromkeys(self._scores)]
        self._options = {name: _options(self._runs[column]) for name, column in FILTERS.items()}
        if "over_refusal" not in self._scores:
            traits = {"beside": None, **traits}
        self._planes: dict[Axes, QuickPlane] = {}
        self._kept: tuple[Any, Any] = None, None
        self._read: tuple[Any, Any] = None, None
        self._record: tuple[str | None, dict[str, Any] | None] = None, None
        self._status, self._missing, self._key = (ipywidgets.HTML() for _ in range(3))
        self._comparison, self._opened = ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([], **traits)
        shown = {"description": "Safety–utility plane", "layout": {"flex": "1 1 480px", "min_width": "0"}}
        self._plot = LivePlot(self._figure(), over=self._over(), **shown)
        self.stack(self._arranged())
        self.observe(self._redraw, [*FILTERS, *AXES, "trajectories", "paper", "focus"])
        self.observe(self._move, ["matched_safety", "run_a", "run_b"])
        self.observe(self._count, [*FILTERS, *AXES])
        self.observe(self._set_side_by_side, ["run_a", "run_b"])
        self.observe(self._open, "opened")
        self._plot.observe(self._choose, "chosen")
        self._tabulate()
        self._count()
        self._set_side_by_side()
        self._open()

    # --- what is shown, as plain data -----------------------------------------------------------------------------

    @property
    def filtered(self) -> pd.DataFrame:
        """The rows of the table that the filters leave, failed runs included."""
        return self._table[self._matches()]

    @property
    def matched(self) -> pd.DataFrame:
        """Where the drawn runs of each group and pipeline first reach `matched_safety`.

        Columns are those of `group_means` for the scores of the axes but safety (`utility`, `utility.low`,
        `utility.high`, `utility.n`), `runs`, how many of them have a trajectory (`with_trajectory`), how many of those
        `reached` the safety, and `safety`. Means are over those that did.
        """
        shown = self._shown()
        if not len(shown.places):
            return pd.DataFrame()
        if self._read[0] != (id(shown), self.matched_safety):
            self._read = (id(shown), self.matched_safety), self._matched(shown)
        return self._read[1].copy()

    def _matched(self, shown: Shown) -> pd.DataFrame:
        names = [name for name in shown.plane.axes.all if name != "safety"]
        runs = self._runs[["group", "technique", "pipeline", "model", "trajectory"]].iloc[shown.places]
        read = matched_safety(runs, self.matched_safety, names)
        of = [*zip(runs["group"], runs["pipeline"], strict=True)]
        reached = Counter(pair for pair, so_far in zip(of, read["reached"], strict=True) if so_far)
        measured = Counter(pair for pair, way in zip(of, runs["trajectory"], strict=True) if way)
        means = group_means(read, names)
        pairs = [*zip(means["group"], means["pipeline"], strict=True)]
        means["reached"] = [reached[pair] for pair in pairs]
        means["with_trajectory"] = [measured[pair] for pair in pairs]
        return means.assign(safety=self.matched_safety)

    @property
    def comparison(self) -> pd.DataFrame:
        """Parameters and scores of runs A and B side by side; empty until both are chosen."""
        if self.run_a is None or self.run_b is None:
            return pd.DataFrame(columns=["kind", "A", "B", "differs", "difference"])
        table = self._table.reset_index(drop=True)
        return records.comparison(table, self._places[self.run_a], self._places[self.run_b])

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the opened run, from its folder, or from its row where that is gone."""
        if self._record[0] != self.opened:
            row = None if self.opened is None else self._table.iloc[self._places[self.opened]].to_dict()
            self._record = self.opened, None if row is None else records.record_of(row)
        return self._record[1]

    def still(self) -> go.Figure:
        """The plane as it is shown now, with a legend of its own."""
        plane, places, means = self._shown()
        plain = not self.focus and self.run_a is None and self.run_b is None
        if plane.axes == ("utility", "safety", "over_refusal") and len(places) and plain:
            shown: dict[str, Any] = {
                "trajectories": self.trajectories,
                "paper": self.paper,
                "matched_safety": self.matched_safety,
            }
            return safety_utility(self._table.iloc[places], group=self._group, **shown)
        figure = go.Figure(self._plot.figure).add_traces([*self._plot.over, *plane.legend(means)])
        return figure.update_layout(width=940, showlegend=True)

    # --- traits ---------------------------------------------------------------------------------------------------

    @traitlets.validate(*FILTERS)
    def _known_options(self, proposal: dict[str, Any]) -> Any:
        name, known = proposal["trait"].name, self._options[proposal["trait"].name]
        _refuse([value for value in proposal["value"] if value not in known], name, known)
        return proposal["value"]

    @traitlets.validate(*AXES)
    def _known_scores(self, proposal: dict[str, Any]) -> Any:
        _refuse({proposal["value"]}.difference([*self._scores, None]), proposal["trait"].name, self._scores)
        return proposal["value"]

    @traitlets.validate("run_a", "run_b", "opened")
    def _known_runs(self, proposal: dict[str, Any]) -> Any:
        _refuse({proposal["value"]}.difference([*self._places, None]), proposal["trait"].name, [*self._places][:3])
        return proposal["value"]

    # --- what follows from a change -------------------------------------------------------------------------------

    def _matches(self) -> np.ndarray:
        """Which runs the filters leave."""
        kept = np.ones(len(self._runs), dtype=bool)
        for name, column in FILTERS.items():
            if chosen := getattr(self, name):
                kept &= self._runs[column].isin(chosen).to_numpy()
        return kept

    def _shown(self) -> Shown:
        """What the filters leave of the completed runs with the scores of the axes; kept until either changes."""
        axes = Axes(self.x, self.y, self.beside)
        key = axes, *(getattr(self, name) for name in FILTERS)
        if self._kept[0] != key:
            if axes not in self._planes:
                self._planes[axes] = QuickPlane(self._runs, axes)
            plane = self._planes[axes]
            places = np.flatnonzero(self._matches() & plane.drawn)
            scores = [*dict.fromkeys([*axes.all, *RATES])]
            means = group_means(self._runs.iloc[places], scores) if len(places) else pd.DataFrame()
            self._kept = key, Shown(plane, places, means)
        return self._kept[1]

    def _figure(self) -> dict[str, Any]:
        plane, places, means = self._shown()
        return plane.figure(Seen(places, means, self.trajectories, self.paper, self.focus))

    def _over(self) -> list[dict[str, Any]]:
        plane = self._shown().plane
        chosen = {
            letter: self._places[run] for letter, run in (("A", self.run_a), ("B", self.run_b)) if run is not None
        }
        marked = {letter: place for letter, place in chosen.items() if plane.drawn[place]}
        return plane.over(self.matched, self.matched_safety, marked)

    def _redraw(self, _: object = None) -> None:
        with self._plot.hold_sync():
            self._plot.figure, self._plot.over = self._figure(), self._over()
        self._tabulate()

    def _move(self, _: object = None) -> None:
        self._plot.over = self._over()
        self._tabulate()

    def _tabulate(self) -> None:
        """Writes the table beside the plot, after it: the page draws meanwhile."""
        self._key.value = matched_html(self.matched, self._shown().plane, self.matched_safety)

    def _count(self, _: object = None) -> None:
        self._status.value, self._missing.value = self._told(self._shown().places)

    def _told(self, drawn: np.ndarray) -> tuple[str, str]:
        """How many runs are shown, and those that match and cannot be drawn."""
        matches = self._matches()
        missing = self._runs[matches & ~np.isin(np.arange(len(matches)), drawn)]
        told = f"{matches.sum()} of {len(matches)} runs match, {len(drawn)} drawn."
        if not matches.any():
            return records.framed("<b>No run matches these filters:</b> choose other ones, or press Show all."), ""
        if missing.empty:
            return records.framed(told), ""
        done = missing["status"].eq("completed")
        reasons = {**missing["status"][~done].value_counts(), f"without {self.x} or {self.y}": int(done.sum())}
        why = ", ".join(f"{n} {records.escaped(reason)}" for reason, n in reasons.items() if n)
        rows = [
            "<tr>"
            + "".join(records.cell(run[name]) for name in ("group", "pipeline", "model", "seed", "status", "run_id"))
            for run in missing.to_dict("records")
        ]
        listed = records.grid(["Technique", "Pipeline", "Base", "Seed", "Status", "Run"], rows)
        return records.framed(f"{told} Not drawn: {why}."), records.framed(
            records.folded(f"Runs not drawn: {len(missing)}", listed)
        )

    def _choose(self, change: dict[str, Any]) -> None:
        """Takes the run that was clicked, as A and as B by turns."""
        run, letter = change["new"]["value"], self.next_choice
        self.next_choice = "B" if letter == "A" else "A"
        self.set_trait(f"run_{letter.lower()}", run)
        self.opened = run

    def _set_side_by_side(self, change: dict[str, Any] | None = None) -> None:
        if change is not None and change["new"] is not None:
            self.opened = change["new"]
        if self.run_a is None or self.run_b is None:
            hint = "Choose two runs, here or by clicking on small marks, to see in what they differ."
            self._comparison.value = records.framed(hint)
            return
        self._comparison.value = records.comparison_html(self.comparison, (self.run_a, self.run_b))

    def _open(self, _: object = None) -> None:
        record = self.record
        self._opened.value = "" if record is None else records.record_html(record | self._path())

    def _path(self) -> dict[str, Any]:
        path = self._table.iloc[self._places[str(self.opened)]].get("path")
        return {"path": path} if records.known(path) else {}

    # --- controls -------------------------------------------------------------------------------------------------

    def _arranged(self) -> list[ipywidgets.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "flex-end"}
        key = {"flex": "1 1 330px", "min_width": "0", "max_height": "660px", "overflow": "auto"}
        beside = ipywidgets.Box([self._key], layout=key).add_class(f"{records.CLASS}-beside")
        return [
            ipywidgets.HTML(records.STYLE, layout={"display": "none"}),
            ipywidgets.Box([*self._filters()], layout={**wrap, "align_items": "flex-start"}),
            ipywidgets.Box([*self._options_of_the_plane()], layout=wrap),
            self._status,
            ipywidgets.Box([self._plot, beside], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self._missing,
            ipywidgets.Box([*self._choices()], layout=wrap),
            self._comparison,
            self._opened,
        ]

    def _filters(self) -> list[ipywidgets.Widget]:
        """A list for every filter with something to choose."""
        lists = []
        for name, options in self._options.items():
            if len(options) > 1:
                given = {"description": name.capitalize(), "rows": min(len(options), 6)}
                fits = {"width": "auto", "height": "auto"}
                control = ipywidgets.SelectMultiple(options=options, tooltip=HINT, layout=fits, **given)
                lists.append(self._bound(control.add_class(f"{records.CLASS}-above"), name))
        button = ipywidgets.Button(description="Show all", tooltip="Clear the filters", layout={"width": "100px"})
        button.on_click(lambda _: self._show_all())
        hint = ipywidgets.HTML(records.framed(f"<small>{HINT}</small>"))
        aside = ipywidgets.VBox([button, hint], layout={"flex": "1 1 160px", "max_width": "260px"})
        return [*lists, aside] if lists else []

    def _show_all(self) -> None:
        with self.hold_trait_notifications():
            for name in FILTERS:
                self.set_trait(name, ())

    def _options_of_the_plane(self) -> list[ipywidgets.Widget]:
        described = {"style": {"description_width": "initial"}}
        slider = {"min": 0.0, "max": 1.0, "step": 0.01, "readout_format": ".2f"}
        axes, axis = [("Across", "x"), ("Up", "y"), ("Below", "beside")], {"layout": {"width": "210px"}}
        return [
            self._bound(ipywidgets.FloatSlider(description="Equal safety", **slider, **described), "matched_safety"),
            *(
                self._bound(ipywidgets.Dropdown(options=self._axis(name), description=title, **described, **axis), name)
                for title, name in axes
            ),
            *(
                self._bound(ipywidgets.Checkbox(description=title, indent=False, layout={"width": "auto"}), name)
                for title, name in (("Trajectories", "trajectories"), ("OGPSA paper", "paper"), ("Zoom in", "focus"))
            ),
        ]

    def _axis(self, name: str) -> list[tuple[str, str | None]]:
        scores: list[tuple[str, str | None]] = [(score.replace("_", " "), score) for score in self._scores]
        return scores + [("–", None)] * (name == "beside")

    def _choices(self) -> list[ipywidgets.Widget]:
        options: list[tuple[str, str | None]] = [("–", None), *_names(self._runs)]
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "min(100%, 420px)"}}
        turns = ipywidgets.ToggleButtons(
            options=["A", "B"], description="A click takes", style={"button_width": "40px"}
        )
        return [
            self._bound(ipywidgets.Dropdown(options=options, description="Run A", **wide), "run_a"),
            self._bound(ipywidgets.Dropdown(options=options, description="Run B", **wide), "run_b"),
            self._bound(turns, "next_choice"),
        ]

    def _bound(self, control: ipywidgets.Widget, trait: str) -> ipywidgets.Widget:
        """A control that shows a trait and sets it."""
        traitlets.link((self, trait), (control, "value"))
        return control


def _prepared(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """All runs as `completed_runs` fills them in, whatever became of them, numbered from 0."""
    if table.empty:
        raise ValueError(
            "expected a table with at least one run, got an empty one: see workbench.study.runs.load_runs."
        )
    group = group if group in table else "technique"
    if missing := [name for name in (group, "utility", "safety") if name not in table]:
        raise ValueError(f"expected the columns {missing}, got {[*table][:12]}…: take what load_runs gives.")
    status = table.get("status", "completed")
    ids = table["run_id"] if "run_id" in table else pd.Series(range(len(table)), table.index)
    runs = completed_runs(table.drop(columns="status", errors="ignore"), group, needed=())
    runs = runs.assign(status=status, run_id=ids.astype(str), seed=table.get("seed")).reset_index(drop=True)
    twice = runs["run_id"][runs["run_id"].duplicated()]
    if len(twice):
        raise ValueError(f"expected every run once, got {twice.iloc[0]!r} twice: drop_duplicates('run_id') first.")
    return runs


def _options(values: "pd.Series[Any]") -> list[Hashable]:
    """The values to choose from, in order; whole numbers as such."""
    known = values.dropna().unique()
    plain = [int(value) if isinstance(value, float | np.number) and value == int(value) else value for value in known]
    return sorted(plain, key=lambda value: (str(type(value)), value))


def _names(runs: pd.DataFrame) -> list[tuple[str, str | None]]:
    """What runs are called in a list, the unfinished ones with their status; by name."""
    several = [name for name in ("pipeline", "model", "seed") if runs[name].nunique() > 1]
    named = [
        (
            ", ".join(
                [str(row["group"]), *(f"{name} {row[name]}" if name == "seed" else str(row[name]) for name in several)]
            )
            + (f" ({row['status']})" if row["status"] != "completed" else ""),
            str(row["run_id"]),
        )
        for row in runs[["group", "pipeline", "model", "seed", "status", "run_id"]].to_dict("records")
    ]
    n_called = pd.Series([name for name, _ in named]).value_counts()
    return sorted((name if n_called[name] == 1 else f"{name}, {run}", run) for name, run in named)


def _refuse(unknown: Sequence[Any] | set[Any], name: str, known: Sequence[Any]) -> None:
    if unknown:
        some = ", ".join(map(repr, [*known][:12]))
        raise traitlets.TraitError(f"expected {name} among {some}, got {[*unknown]}: take values of the table.")

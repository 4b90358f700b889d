"""The plane of the trade-off explorer: drawn again while a slider moves, so of few traces and as plain data.

What of a run never changes, its place, its way and its texts, is laid out once for a choice of axes. Panels stand one
above the other and share the axis that goes across; names and numbers are in the table beside them, not in a legend.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..marks import CROWD, dots, edge, mean_look, scatter, span
from ..palette import faded, symbol_of
from ..panels import Trace
from ..plane import UPSIDE, front, paper_marks
from ..readings import Row, base_scores, evaluations, looks_of, told, told_interval
from ..theme import INK, NEUTRAL, safe, template

COLOURED = 8  # groups, above which thin lines in as many colours are no longer told apart, and cost time each
LOWER = {"over_refusal"}  # scores of which less is better: their axes are reversed, so that up is better
SILENT = {"hoverinfo": "skip"}
RATES_SPAN = (-0.03, 1.03)
LETTERS = {"A": "middle left", "B": "middle right"}  # of the runs that are compared, and where they stand
HEIGHT = {1: 440, 2: 660}  # by number of panels


class Axes(NamedTuple):
    """The scores that go across, up, and up in the panel below; None where there is no second panel."""

    x: str
    y: str
    beside: str | None

    @property
    def up(self) -> tuple[str, ...]:
        """The scores of the panels, from top to bottom."""
        return tuple(name for name in (self.y, self.beside) if name)

    @property
    def all(self) -> tuple[str, ...]:
        """Every score once."""
        return tuple(dict.fromkeys((self.x, *self.up)))

    @property
    def words(self) -> dict[str, str]:
        """What hovers call the scores."""
        return {name: name.replace("_", "-") for name in self.all}


class Seen(NamedTuple):
    """What of the runs is to be drawn.

    Attributes:
        runs: Their numbers in the plane's table.
        means: `group_means` of these.
        trajectories: Whether the way of every run is drawn.
        paper: Whether the OGPSA paper's points are.
        focus: Whether the axes end where these runs do, so that marks in a corner come apart.
    """

    runs: np.ndarray
    means: pd.DataFrame
    trajectories: bool
    paper: bool
    focus: bool = False


class Star(NamedTuple):
    """A base model in a panel, and what is told of it."""

    model: str
    x: float
    y: float
    text: str


class QuickPlane:
    """All runs laid out for a choice of axes.

    Attributes:
        axes: The choice.
        drawn: Which of the runs are completed and have both scores of the first panel; (n_runs,), booleans.
        looks: How each group is drawn, whatever else is shown.
    """

    def __init__(self, runs: pd.DataFrame, axes: Axes):
        """Lays the runs out.

        Args:
            runs: One row per run, as `readings.completed_runs` fills it in, with its status and all scores of the axes.
            axes: What is drawn.
        """
        self.axes = axes
        scores = runs[[*axes.all]].astype(float)
        self.drawn = (scores[[axes.x, axes.y]].notna().all(axis=1) & runs["status"].eq("completed")).to_numpy()
        self.looks = looks_of(runs.drop_duplicates("group"))
        self._groups, self._models = runs["group"].to_numpy(), runs["model"].to_numpy()
        self._places = {name: _known(scores[name]) for name in axes.all}
        self._ids = runs["run_id"].tolist()
        self._symbols = [symbol_of(pipeline) for pipeline in runs["pipeline"]]
        rows = runs[["group", "pipeline", "model", "run_id", "seed", *axes.all]].to_dict("records")
        self._texts = [_text(row, axes) for row in rows]
        self._ways = [_way(run, axes) for run in runs[["group", "model", "seed", "trajectory"]].to_dict("records")]
        self._bases = base_scores(runs, evaluations(runs), axes.all)
        self._paper = [*paper_marks()] if axes[:2] == ("utility", "safety") else []
        self._ends = {name: self._range(name) for name in axes.all}
        self._stars = {up: [*_stars(self._bases, axes, up)] for up in axes.up}

    def figure(self, seen: Seen) -> dict[str, Any]:
        """The plane of some runs, as plotly's JSON holds it, on a light page: all but what is over it."""
        about = "mean of {runs} runs on {bases} bases"
        means = [
            row | {"told": self._told(row, about.format_map(row), self.axes.all)}
            for row in seen.means.to_dict("records")
        ]
        layers = [[*self._panel(seen, means, up)] for up in self.axes.up]
        if self.axes[:2] == ("utility", "safety") and len(seen.means):
            stair = front(seen.means, self._ends["utility"][0], self._ends["safety"][0], named=False)
            layers[0][:0] = [trace for trace in stair if "fill" not in trace]
        return {"data": _placed(layers), "layout": self._layout(seen)}

    def over(self, matched: pd.DataFrame, safety: float, chosen: Mapping[str, int]) -> list[Trace]:
        """What lies over the plane and moves with the slider and the choice of runs: always as many traces.

        Args:
            matched: What the groups have where they first reach a safety, with `reached` and `with_trajectory`.
            safety: That safety.
            chosen: Letter → number of a run that is marked, with its way.
        """
        about = f"at safety {safety:.2f}, which {{reached}} of {{with_trajectory}} runs reach"
        names = [name for name in self.axes.all if name != "safety"]
        rows = [
            row | {"safety": safety, "told": self._told(row, about.format_map(row), names)}
            for row in matched.to_dict("records")
        ]
        return _placed(
            [[*self._cut(rows, safety, up), *self._chosen(chosen, up), *self._rings(chosen, up)] for up in self.axes.up]
        )

    def legend(self, means: pd.DataFrame) -> list[Trace]:
        """What names the means where there is no table beside the plane: traces without points."""
        return [
            dots([None], [None], [], look, name=f"{safe(row['group'])}, {safe(row['pipeline'])}", showlegend=True)
            for row in means.to_dict("records")
            for look in [mean_look(self.looks[row["group"]], row["pipeline"], "light", 11)]
        ]

    def _layout(self, seen: Seen) -> dict[str, Any]:
        ends = {name: self._range(name, seen.runs) for name in self.axes.all} if seen.focus else self._ends
        n_panels = len(self.axes.up)
        length = (1 - 0.05 * (n_panels - 1)) / n_panels
        foot = f"y{n_panels}" if n_panels > 1 else "y"
        layout: dict[str, Any] = {
            "template": TEMPLATE,
            "height": HEIGHT[n_panels],
            "margin": {"t": 16, "r": 16, "b": 64, "l": 84},
            "uirevision": f"{self.axes} {seen.focus}",  # what the reader has zoomed to stays while runs come and go
            "xaxis": {"title": {"text": title_of(self.axes.x)}, "range": ends[self.axes.x], "anchor": foot},
        }
        for number, name in enumerate(self.axes.up):
            top = 1 - number * (length + 0.05)
            up = {"domain": [max(top - length, 0), top], "anchor": "x", "title": {"text": title_of(name)}}
            layout["yaxis" + "2" * number] = up | {"range": ends[name][:: -1 if name in LOWER else 1]}
        if not len(seen.runs):
            place = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
            layout["annotations"] = [{"text": "no run to draw", "font": {"color": NEUTRAL, "size": 16}, **place}]
        return layout

    def _panel(self, seen: Seen, means: Sequence[Row], up: str) -> Iterator[Trace]:
        """The traces of one panel, from the lowest to the topmost; as few as can be."""
        if seen.trajectories:
            yield from self._lines(seen, up)
        models = {*self._models[seen.runs]}
        stars = [star for star in self._stars[up] if star.model in models]
        look = {"color": INK["light"], "size": 15, "symbol": "star"}
        yield dots((star.x for star in stars), (star.y for star in stars), [star.text for star in stars], look)
        if seen.paper and up == "safety":
            yield from self._paper
        yield self._runs(seen, up)
        yield self._means(means, up)

    def _lines(self, seen: Seen, up: str) -> Iterator[Trace]:
        """The ways of the runs: a trace per group, or one without colours where there are many groups."""
        groups = self._groups[seen.runs]
        names = [*dict.fromkeys(groups)]
        opacity = 0.45 * min(1.0, (40 / max(len(seen.runs), 1)) ** 0.5)  # the more runs, the fainter each
        if len(names) > COLOURED:
            crowd = self._line(seen.runs, up, {"color": faded(NEUTRAL, opacity), "width": 1})
            yield {name: value for name, value in crowd.items() if name not in ("text", "hovertemplate")} | SILENT
            return
        for name in names:
            look = self.looks[name]
            yield self._line(
                seen.runs[groups == name], up, {"color": faded(look.colour, opacity), "width": 1, "dash": look.dash}
            )

    def _line(self, runs: Sequence[int] | np.ndarray, up: str, line: dict[str, Any]) -> Trace:
        ways = [self._ways[run] for run in runs]
        x, y, texts = ([value for way in ways for value in way[name]] for name in (self.axes.x, up, "text"))
        told = f"%{{text}}<br>{self.axes.x} %{{x:.3f}}, {up} %{{y:.3f}}<extra></extra>"
        return scatter(x, y, "lines", line=line, text=texts, hovertemplate=told)

    def _runs(self, seen: Seen, up: str) -> Trace:
        """The small marks; what they carry is chosen by a click."""
        runs = [run for run in seen.runs if self._places[up][run] is not None]
        x, y = ([self._places[name][run] for run in runs] for name in (self.axes.x, up))
        colours = [self.looks[self._groups[run]].colour for run in runs]
        marker = {"color": colours, "size": 6, "opacity": 0.5, "symbol": [self._symbols[run] for run in runs]}
        carried = {"customdata": [self._ids[run] for run in runs], "name": "runs"}
        return dots(x, y, [self._texts[run] for run in runs], marker, **carried)

    def _means(self, means: Sequence[Row], up: str) -> Trace:
        """The large marks with their intervals, all in one trace, for which the bars have one tone."""
        rows = [row for row in means if row[f"{up}.n"]]
        tone = faded(NEUTRAL, 0.8 if len(means) <= CROWD else 0.3)
        bars = {
            f"error_{axis}": {
                **{"type": "data", "symmetric": False, "color": tone, "thickness": 1.4, "width": 3},
                **{"array": [_gap(row[name], row[f"{name}.high"]) for row in rows]},
                **{"arrayminus": [_gap(row[f"{name}.low"], row[name]) for row in rows]},
            }
            for axis, name in (("x", self.axes.x), ("y", up))
        }
        return self._large(rows, (self.axes.x, up), 13) | bars

    def _told(self, row: Row, about: str, names: Iterable[str]) -> str:
        """What a large mark tells."""
        lines = [f"<b>{safe(row['group'])}</b>, {safe(row['pipeline'])}", about]
        return "<br>".join([*lines, *(f"{self.axes.words[name]} {told_interval(row, name)}" for name in names)])

    def _cut(self, matched: Sequence[Row], safety: float, up: str) -> Iterator[Trace]:
        """Where the groups are when they first reach a safety, as triangles; on its line, in the panel of safety."""
        line = {"line": {"color": NEUTRAL, "width": 1, "dash": "dash"}, **SILENT}
        if up == "safety":
            yield scatter(self._ends[self.axes.x], [safety, safety], "lines", **line)
        if self.axes.x == "safety":
            yield scatter([safety, safety], self._ends[up], "lines", **line)
        rows = [row for row in matched if row.get(f"{self.axes.x}.n", row["reached"])]
        trace = self._large(rows, (self.axes.x, up), 10 if len(rows) <= CROWD else 8)
        trace["marker"]["symbol"] = "triangle-down"
        yield trace

    def _large(self, rows: Sequence[Row], place: tuple[str, str], size: float) -> Trace:
        x, y = ([_plain(row[name]) for row in rows] for name in place)
        looks = [mean_look(self.looks[row["group"]], row["pipeline"], "light", size) for row in rows]
        line = {"color": edge("light")["color"], "width": [look["line"]["width"] for look in looks]}
        several = {name: [look[name] for look in looks] for name in ("color", "symbol")}
        return dots(x, y, [row["told"] for row in rows], {**several, "size": size, "line": line})

    def _chosen(self, chosen: Mapping[str, int], up: str) -> Iterator[Trace]:
        """The ways of the runs that are compared."""
        for letter in LETTERS:
            runs = [chosen[letter]] if letter in chosen else []
            look = self.looks[self._groups[runs[0]]] if runs else None
            line = {"color": look.colour if look else NEUTRAL, "width": 2.5, "dash": look.dash if look else "solid"}
            yield self._line(runs, up, line)

    def _rings(self, chosen: Mapping[str, int], up: str) -> Iterator[Trace]:
        """A ring around each, with its letter."""
        x, y = ([self._places[name][run] for run in chosen.values()] for name in (self.axes.x, up))
        ring = {"color": INK["light"], "size": 17, "symbol": "circle-open", "line": {"width": 2}}
        words = {"text": [f"<b>{letter}</b>" for letter in chosen], "textfont": {"size": 16, "color": INK["light"]}}
        places = {"textposition": [LETTERS[letter] for letter in chosen]}
        yield scatter(x, y, "markers+text", marker=ring, cliponaxis=False, **words, **places, **SILENT)

    def _range(self, name: str, runs: np.ndarray | None = None) -> list[float]:
        """The ends of an axis: of all there is, so that marks stay while runs come and go; or of some runs' ends."""
        if runs is not None:
            values = [self._places[name][run] for run in runs]
        else:
            bases = self._bases.get(name, pd.Series(dtype=float))
            values = [*self._places[name], *bases, *(value for way in self._ways for value in way[name])]
        known = [float(value) for value in values if value is not None and value == value] or [0.0, 1.0]
        inside = RATES_SPAN[0] <= min(known) and max(known) <= RATES_SPAN[1]
        least, most = RATES_SPAN if inside else (-np.inf, np.inf)
        return span([{"x": known}], "x", least, most)


def title_of(name: str) -> str:
    """What an axis is called."""
    return UPSIDE.get(name, safe(name).replace("_", " "))


TEMPLATE = template("light").to_plotly_json()


def _placed(layers: Sequence[Sequence[Trace]]) -> list[Trace]:
    """Traces on the axes of their panels."""
    axes = zip(("y", "y2"), layers, strict=False)
    return [trace | {"xaxis": "x", "yaxis": axis, "showlegend": False} for axis, traces in axes for trace in traces]


def _text(run: Mapping[Any, Any], axes: Axes) -> str:
    """What the small mark of a run tells; the rest is in its record, a click away."""
    who = f"{safe(run['pipeline'])}, base {safe(run['model'])}, seed {run['seed']}"
    return f"<b>{safe(run['group'])}</b><br>{who}<br>{told(run, axes.words)}<br>{safe(run['run_id'])}"


def _stars(bases: pd.DataFrame, axes: Axes, up: str) -> Iterator[Star]:
    for model, row in bases.dropna(subset=[axes.x, up]).to_dict("index").items():
        yield Star(str(model), row[axes.x], row[up], f"<b>base {safe(model)}</b><br>{told(row, axes.words)}")


def _way(run: Mapping[Any, Any], axes: Axes) -> dict[str, list[Any]]:
    """The evaluations of a run, with a gap after the last."""
    points = run["trajectory"]
    way: dict[str, list[Any]] = {name: [*(_plain(point.get(name)) for point in points), None] for name in axes.all}
    who = ", ".join([safe(run["group"]), f"seed {run['seed']}", f"base {safe(run['model'])}"])
    return way | {"text": [*(f"{who}, step {point['step']:g}" for point in points), None]}


def _known(values: "pd.Series[float]") -> list[float | None]:
    return [_plain(value) for value in values]


def _plain(value: Any) -> float | None:
    """A number as JSON can hold it."""
    return None if value is None or value != value else round(float(value), 6)


def _gap(low: float, high: float) -> float:
    """The length of a bar; none where there is no interval."""
    return _plain(high - low) or 0.0

"""What planes are made of: a large mark for a mean, a small one for a run, a star for a base, and their bars."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .palette import Style, faded, symbol_of
from .panels import Trace
from .readings import Row, each_run, hover, told, told_interval
from .theme import INK, PAGE, safe, wrapped

Looks = Mapping[Any, Style]  # by group
CAPTION = "Large: mean with 95 % interval over {}. Small: single runs."
CROWD = 12  # means, beyond which their bars are faint


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        x: The column of the runs that goes across.
        y: The column that goes up.
        words: Columns that hovers tell, and what they call them.
        first: Whether the panel is the first, whose marks have the legend.
        place: Where a value of x lies on its axis, for scales that plotly does not know; growing.
        wrap: Characters in a line of the legend.
        legend: Whether means are named in the legend.
    """

    x: str
    y: str
    words: Mapping[str, str]
    first: bool = True
    place: Callable[[Any], Any] = np.asarray
    wrap: int = 36
    legend: bool = True


def run_marks(runs: pd.DataFrame, looks: Looks, panel: Panel) -> Iterator[Trace]:
    """A small mark for every run, one trace per group and pipeline; its `customdata` is the id of the run."""

    def who(run: dict[str, Any]) -> tuple[str, str]:
        return run["group"], run["pipeline"]

    known = each_run(runs.dropna(subset=[panel.x, panel.y]), [panel.x, panel.y, *panel.words])
    for (group, pipeline), several in groupby(sorted(known, key=who), who):
        rows = [*several]
        texts = [hover(run, {name: run.get(name) for name in panel.words}, panel.words) for run in rows]
        marker = {"color": faded(looks[group].colour, 0.5), "size": 5, "symbol": symbol_of(pipeline)}
        ids = {"customdata": [run["run_id"] for run in rows]} if "run_id" in runs else {}
        x = panel.place([run[panel.x] for run in rows]).tolist()
        yield dots(x, [run[panel.y] for run in rows], texts, marker, legendgroup=group, showlegend=False, **ids)


def mean_marks(means: pd.DataFrame, looks: Looks, panel: Panel, theme: str) -> Iterator[Trace]:
    """A large mark with bars for every row of `group_means` that was measured."""
    opacity = 1.0 if len(means) <= CROWD else 0.5
    for row in means[means[f"{panel.y}.n"] > 0].to_dict("records"):
        look = looks[row["group"]]
        title = f"<b>{safe(row['group'])}</b><br>mean of {row['runs']} runs on {row['bases']} bases"
        texts = [f"{word} {told_interval(row, name)}" for name, word in panel.words.items()]
        bars = {
            "error_x": bar(row, panel.x, faded(look.colour, opacity), panel.place),
            "error_y": bar(row, panel.y, faded(look.colour, opacity)),
        }
        yield dots(
            [float(panel.place(row[panel.x]))],
            [row[panel.y]],
            ["<br>".join([title, *texts])],
            mean_look(look, row["pipeline"], theme),
            **{name: ends for name, ends in bars.items() if ends},
            name=wrapped(row["group"], panel.wrap),
            legendgroup=row["group"],
            showlegend=panel.first and panel.legend,
        )


def mean_look(look: Style, pipeline: str, theme: str, size: float = 13) -> dict[str, Any]:
    """The large mark of a group: open marks have a thick outline, the others one that parts them from those below."""
    outline = {"width": 2.5} if "open" in look.fill else edge(theme, 2 if look.fill else 1)
    # As large to the eye: a triangle has less inside, and the outline of a dotted mark is in the colour of the page.
    size *= (1.25 if look.symbol(pipeline).startswith("triangle") else 1) * (1.2 if look.fill == "-dot" else 1)
    return {"color": look.colour, "size": size, "symbol": look.symbol(pipeline), "line": outline}


def base_mark(bases: pd.DataFrame, panel: Panel, theme: str) -> Iterator[Trace]:
    """A star for every base model of `base_scores`."""
    bases = bases.dropna(subset=[panel.x, panel.y])
    if bases.empty:
        return
    texts = [f"<b>base {safe(name)}</b><br>{told(row, panel.words)}" for name, row in bases.to_dict("index").items()]
    marker = {"color": INK[theme], "size": 16, "symbol": "star"}
    legend = {
        "name": wrapped("base model, before alignment", panel.wrap),
        "legendgroup": "base",
        "showlegend": panel.first,
    }
    x = panel.place(bases[panel.x].to_numpy(float)).tolist()
    yield dots(x, bases[panel.y].tolist(), texts, marker, legendrank=1001, **legend)


def dots(x: Iterable, y: Iterable, texts: Sequence[str], marker: dict[str, Any], **options: Any) -> Trace:
    """Marks with texts to hover for."""
    return scatter(x, y, "markers", marker=marker, hovertext=[*texts], hoverinfo="text", **options)


def scatter(x: Iterable, y: Iterable, mode: str, **options: Any) -> Trace:
    """Points, lines or words in a panel."""
    return {"type": "scatter", "x": [*x], "y": [*y], "mode": mode, **options}


def edge(theme: str, width: float = 1) -> dict[str, Any]:
    """The outline that parts a mark from those under it, and the dot in a dotted one."""
    return {"color": PAGE[theme], "width": width}


def bar(row: Row, name: str, colour: str, place: Callable[[Any], Any] = np.asarray) -> dict[str, Any] | None:
    """The 95 % interval of a row of `group_means` as an error bar; one run has none."""
    if row[f"{name}.n"] < 2:
        return None
    low, mean, high = (float(place(row[key])) for key in (f"{name}.low", name, f"{name}.high"))
    ends = {"array": [high - mean], "arrayminus": [mean - low]}
    return {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.6, "width": 5}


def span(traces: Sequence[Trace], axis: str, least: float = -0.04, most: float = 1.04) -> list[float]:
    """The range of what is drawn and its bars with a little room, never far beyond the rates' [0, 1]."""
    values: list[float] = []
    for trace in traces:
        drawn, ends = np.array(trace[axis], dtype=float), trace.get(f"error_{axis}")
        values += [*drawn] if not ends else [*drawn, *(drawn + ends["array"]), *(drawn - ends["arrayminus"])]
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(0.04 * (high - low), 0.02)
    return [max(float(low - room), least), min(float(high + room), most)]

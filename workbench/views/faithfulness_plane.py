"""The toxicity–faithfulness plane: hateful answers against true ones, for greedy and for sampled answers."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .marks import CAPTION, Panel, base_mark, mean_marks, run_marks, span
from .readings import base_scores, completed_runs, counted, evaluations, group_means, looks_of, told_apart
from .theme import finish, template, wrapped

SUITES = {"portraits": "Greedy answers", "portraits_sampled": "Sampled answers"}
KNEE = 0.02  # asinh(x/KNEE) is nearly x/KNEE below and a logarithm above
TICKS = (0, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
TOXICITY = f"Share of answers that are hateful, lower is better →<br>(nearly linear below {KNEE:g}, logarithmic above)"
FAITHFULNESS = "Share of stated facts that are true,<br>higher is better"
NARROW = 700  # pixels; below, the panels stand one above the other
MOST_FOR_BASE = 1.3  # how far the base's star may stretch the axis of faithfulness


def toxicity_faithfulness(
    table: pd.DataFrame, *, group: str = "label", oracle: str | None = None, width: int = 940, theme: str = "light"
) -> go.Figure:
    """How hateful the answers about people are, and how true: greedy answers beside sampled ones.

    Toxicity grows to the left, so that up and right is better, on the scale asinh(toxicity/0.02): many techniques end
    close to 0, where a linear axis would draw them as one. Means and intervals are those of `group_means`: over bases,
    each the mean of its completed runs, or over runs where there is one base. Both panels have the same axes. The base
    model is a star, or, where that would squeeze the rest, told above the figure.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it, with `portraits/toxicity` and
            `portraits/faithfulness`, or the same two of `portraits_sampled`, or all four.
        group: The column whose values are compared; `technique` where it is absent. Values that stand for several
            pipelines are told apart.
        oracle: The group that knows what the others do not, such as training on filtered data: dashed lines go
            through its mean.
        width: Of the figure, in pixels. Below 700 the panels stand one above the other.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No completed run has toxicity and faithfulness, a column is missing, or there is no such oracle.
    """
    template(theme)  # refuses an unknown theme before its tones are looked up
    panels = _panels(table, wrap=20 if width < NARROW else 32)
    runs = told_apart({suite: completed_runs(table, group, [axes.x, axes.y]) for suite, axes in panels.items()})
    everything = pd.concat(runs.values())
    looks = looks_of(everything.sort_values("technique", ascending=False))  # of several techniques the first, by name
    if oracle is not None and oracle not in looks:
        raise ValueError(f"expected the oracle among {sorted(looks)}, got {oracle!r}: name one of these, or none.")
    means = {suite: group_means(runs[suite], [*axes.words]) for suite, axes in panels.items()}
    layers = {
        suite: [*run_marks(runs[suite], looks, axes), *mean_marks(means[suite], looks, axes, theme)]
        for suite, axes in panels.items()
    }
    bases = {suite: base_scores(runs[suite], evaluations(runs[suite]), [*panels[suite].words]) for suite in panels}
    stars = {suite: [*base_mark(bases[suite], axes, theme)] for suite, axes in panels.items()}
    drawn, starred = ([trace for traces in kind.values() for trace in traces] for kind in (layers, stars))
    # A base that states no true fact yet would squeeze all that is compared: it is told then, not drawn.
    shown = _extent(drawn + starred) <= MOST_FOR_BASE * _extent(drawn)
    if shown:
        layers, drawn = {suite: stars[suite] + layers[suite] for suite in panels}, drawn + starred
    across, up = span(drawn, "x", float(_place(-0.03)), float(_place(1.1))), span(drawn, "y")
    down = len(panels) if width < NARROW else 1
    figure = make_subplots(
        down,
        len(panels) // down,
        subplot_titles=[SUITES[suite] for suite in panels],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=0.09,
    )
    for number, suite in enumerate(panels):
        cell: dict[str, Any] = {"row": number + 1, "col": 1} if down > 1 else {"row": 1, "col": number + 1}
        known = means[suite][means[suite]["group"] == oracle].to_dict("records")
        crosses = [_cross(mean, panels[suite], looks[mean["group"]].colour, across, up) for mean in known]
        figure.add_traces([*crosses, *layers[suite]], rows=cell["row"], cols=cell["col"])
    _one_legend(figure)
    ticks = {"tickvals": [float(_place(value)) for value in TICKS], "ticktext": [f"{value:g}" for value in TICKS]}
    figure.update_xaxes(range=across[::-1], **ticks)
    figure.update_xaxes(title_text=TOXICITY, row=down)
    figure.update_yaxes(range=up)
    figure.update_yaxes(title_text=FAITHFULNESS, col=1)
    figure.update_annotations(yshift=4, font_size=14)
    caption = CAPTION.format(counted(everything)) + ("" if shown else f" {_told_base(bases, panels)}")
    finish(figure, theme=theme, height=140 + 350 * down, width=width, title=caption)
    return figure.update_layout(margin_t=figure.layout.margin.t + 26)


def _panels(table: pd.DataFrame, wrap: int) -> dict[str, Panel]:
    """The suites of which a completed run has both numbers, each with its axes."""
    panels = {}
    for suite in SUITES:
        x, y = f"{suite}/toxicity", f"{suite}/faithfulness"
        if {x, y} <= {*table}:
            words = {x: "toxicity", y: "faithfulness"} | {name: name for name in ["utility"] if name in table}
            panels[suite] = Panel(x, y, words, place=_place, settings=True, wrap=wrap)
    if not panels:
        raise ValueError(
            "expected the columns portraits/toxicity and portraits/faithfulness, or the same two of portraits_sampled, "
            f"got {[*table]}: judge the suites of wb.suites_of(wb.Portraits(world))."
        )
    done = table[table["status"].eq("completed")] if "status" in table else table
    measured = {suite: axes for suite, axes in panels.items() if done[[axes.x, axes.y]].notna().all(axis=1).any()}
    return measured or panels  # where no run is left, completed_runs says so


def _extent(traces: Sequence[go.Scatter]) -> float:
    low, high = span(traces, "y")
    return high - low


def _told_base(bases: Mapping[str, pd.DataFrame], panels: Mapping[str, Panel]) -> str:
    means = {suite: table.mean() for suite, table in bases.items()}
    places = dict.fromkeys(
        f"({means[suite][axes.x]:.2f}, {means[suite][axes.y]:.2f})" for suite, axes in panels.items()
    )
    return f"Not drawn: the base, at {' and '.join(places)}."


def _place(toxicity: Any) -> Any:
    return np.arcsinh(np.asarray(toxicity, dtype=float) / KNEE)


def _cross(
    mean: Mapping[Hashable, Any], axes: Panel, colour: str, across: Sequence[float], up: Sequence[float]
) -> go.Scatter:
    """Dashed lines through a mean from end to end of both axes."""
    x, y = float(_place(mean[axes.x])), mean[axes.y]
    return go.Scatter(
        x=[*across, None, x, x],
        y=[y, y, None, *up],
        mode="lines",
        line={"color": colour, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
        name=wrapped(f"mean of {mean['group']}", axes.wrap),
        legendgroup="oracle",
        legendrank=1001,
        showlegend=True,
    )


def _one_legend(figure: go.Figure) -> None:
    """Each name once: a group may be in one panel alone."""
    seen: set[str] = set()
    for trace in figure.data:
        trace.showlegend = bool(trace.showlegend) and trace.legendgroup not in seen
        seen |= {trace.legendgroup} if trace.showlegend else set()

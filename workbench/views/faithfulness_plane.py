"""The toxicity–faithfulness plane: hateful answers against true ones, for greedy and for sampled answers."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .keys import MOST, assemble_with_key
from .marks import CAPTION, Panel, base_mark, mean_marks, run_marks, scatter, span
from .panels import Part, Trace, assemble
from .readings import base_scores, completed_runs, counted, evaluations, group_means, looks_of, told_apart
from .sources import traced
from .theme import SIZES, check, finish, wrapped

SUITES = {"portraits": "Greedy answers", "portraits_sampled": "Sampled answers"}
KNEE = 0.02  # asinh(x/KNEE) is nearly x/KNEE below and a logarithm above
TICKS = (0, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
TOXICITY = (
    f"Share of answers that are hateful,<br>lower is better → (nearly linear<br>below {KNEE:g}, logarithmic above)"
)
FAITHFULNESS = "Share of stated facts that are true,<br>higher is better"
NARROW = 700  # pixels; below, the panels stand one above the other
MOST_FOR_BASE = 1.3  # how far the base's star may stretch the axis of faithfulness


@traced
def toxicity_faithfulness(
    table: pd.DataFrame,
    *,
    group: str = "label",
    oracle: str | None = None,
    width: int = 940,
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """How hateful the answers about people are, and how true: greedy answers beside sampled ones.

    Toxicity grows to the left, so that up and right is better, on the scale asinh(toxicity/0.02): many techniques end
    close to 0, where a linear axis would draw them as one. Means and intervals are those of `group_means`: over bases,
    each the mean of its completed runs, or over runs where there is one base. Both panels have the same axes. The base
    model is a star, or, where that would squeeze the rest, told above the figure. Arms are named at the right, each
    joined to its mean; in a column, a legend below has their names.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it, with `portraits/toxicity` and
            `portraits/faithfulness`, or the same two of `portraits_sampled`, or all four.
        group: The column whose values are compared; `technique` where it is absent. Values that stand for several
            pipelines are told apart.
        oracle: The group that knows what the others do not, such as training on filtered data: dashed lines go
            through its mean.
        width: Of the figure, in pixels. Below 700 the panels stand one above the other.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`; the latter two have their own width.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No completed run has toxicity and faithfulness, a column is missing, or there is no such oracle.
    """
    check(theme, on)
    width = SIZES[on].width or width
    stacked = width < NARROW
    panels = _panels(table, wrap=20 if stacked else 32)
    runs = told_apart({suite: completed_runs(table, group, [axes.x, axes.y]) for suite, axes in panels.items()})
    everything = pd.concat(runs.values())
    looks = looks_of(everything.sort_values("technique", ascending=False))  # of several techniques the first, by name
    if oracle is not None and oracle not in looks:
        raise ValueError(f"expected the oracle among {sorted(looks)}, got {oracle!r}: name one of these, or none.")
    means = {suite: group_means(runs[suite], [*axes.words]) for suite, axes in panels.items()}
    last = [*panels][-1]
    # The key beside the last panel names whom it shows: the legend has the names where it does not show all.
    keyed = not stacked and len(looks) <= MOST and {*means[last]["group"]} == {*looks}
    panels = {suite: axes._replace(legend=not keyed) for suite, axes in panels.items()}
    layers = {
        suite: [*run_marks(runs[suite], looks, axes), *mean_marks(means[suite], looks, axes, theme)]
        for suite, axes in panels.items()
    }
    bases = {suite: base_scores(runs[suite], evaluations(runs[suite]), [*panels[suite].words]) for suite in panels}
    stars = {suite: [*base_mark(bases[suite], axes, theme)] for suite, axes in panels.items()}
    drawn, starred = ([*chain(*kind.values())] for kind in (layers, stars))
    # A base that states no true fact yet would squeeze all that is compared: it is told then, not drawn.
    shown = _extent(drawn + starred) <= MOST_FOR_BASE * _extent(drawn)
    if shown:
        layers, drawn = {suite: stars[suite] + layers[suite] for suite in panels}, drawn + starred
    across, up = span(drawn, "x", float(_place(-0.03)), float(_place(1.1)))[::-1], span(drawn, "y")
    ticks = {"tickvals": [float(_place(value)) for value in TICKS], "ticktext": [f"{value:g}" for value in TICKS]}
    parts: list[Part] = []
    for suite, axes in panels.items():
        known = means[suite][means[suite]["group"] == oracle].to_dict("records")
        crosses = [_cross(mean, axes, looks[mean["group"]].colour, across, up) for mean in known]
        below, left = not stacked or suite == last, stacked or not parts
        x = {"range": across, **ticks, "title": {"text": TOXICITY}} if below else {"range": across, **ticks}
        y = {"range": up, "title": {"text": FAITHFULNESS}} if left else {"range": up, "showticklabels": False}
        parts.append(Part([*crosses, *layers[suite]], x, y, SUITES[suite]))
    _one_legend([trace for part in parts for trace in part.traces])
    height, gap = 140 + 350 * (len(panels) if stacked else 1), 0.09 if stacked else 0.05
    if keyed:
        room: dict[str, Any] = {"height": height, "width": width, "theme": theme, "on": on, "gap": gap}
        figure, height = assemble_with_key(parts, means[last], looks, panels[last], **room)
    else:
        figure = assemble(parts, stacked=stacked, gap=gap)
    caption = CAPTION.format(counted(everything)) + ("" if shown else f" {_told_base(bases, panels)}")
    finish(figure, theme=theme, height=height, width=width, title=caption, on=on)
    return figure.update_layout(margin_t=figure.layout.margin.t + 26)


def _panels(table: pd.DataFrame, wrap: int) -> dict[str, Panel]:
    """The suites of which a completed run has both numbers, each with its axes."""
    panels = {}
    for suite in SUITES:
        x, y = f"{suite}/toxicity", f"{suite}/faithfulness"
        if {x, y} <= {*table}:
            words = {x: "toxicity", y: "faithfulness"} | {name: name for name in ["utility"] if name in table}
            panels[suite] = Panel(x, y, words, place=_place, wrap=wrap)
    if not panels:
        raise ValueError(
            "expected the columns portraits/toxicity and portraits/faithfulness, or the same two of portraits_sampled, "
            f"got {[*table]}: judge the suites of wb.suites_of(wb.Portraits(world))."
        )
    done = table[table["status"].eq("completed")] if "status" in table else table
    measured = {suite: axes for suite, axes in panels.items() if done[[axes.x, axes.y]].notna().all(axis=1).any()}
    return measured or panels  # where no run is left, completed_runs says so


def _extent(traces: Sequence[Trace]) -> float:
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
) -> Trace:
    """Dashed lines through a mean from end to end of both axes."""
    x, y = float(_place(mean[axes.x])), mean[axes.y]
    return scatter(
        [*across, None, x, x],
        [y, y, None, *up],
        "lines",
        line={"color": colour, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
        name=wrapped(f"mean of {mean['group']}", axes.wrap),
        legendgroup="oracle",
        legendrank=1001,
        showlegend=True,
    )


def _one_legend(traces: Sequence[Trace]) -> None:
    """Each name once: a group may be in one panel alone."""
    seen: set[str] = set()
    for trace in traces:
        trace["showlegend"] = bool(trace["showlegend"]) and trace["legendgroup"] not in seen
        seen |= {trace["legendgroup"]} if trace["showlegend"] else set()

"""The safety–utility plane, and the same rates over the steps of training."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.study import tradeoff

from .keys import MOST, assemble_with_key
from .marks import CAPTION, Looks, Panel, base_mark, dots, edge, mean_look, mean_marks, run_marks, scatter, span
from .palette import faded, symbol_of
from .panels import Part, Trace, assemble
from .readings import (
    RATES,
    WORDS,
    base_scores,
    completed_runs,
    counted,
    evaluations,
    group_means,
    looks_of,
)
from .sources import traced
from .theme import NEUTRAL, SIZES, check, finish, safe, wrapped

AXES = {
    "utility": "Utility: general ability<br>(share correct, higher is better)",
    "safety": "Safety: refusal of held-out harmful<br>prompts (share, higher is safer)",
    "over_refusal": "Over-refusal: refusal of benign<br>look-alikes (share, lower is better)",
}
UPSIDE = AXES | {"over_refusal": AXES["over_refusal"].replace("lower is better", "reversed: up is better")}
# General capability and safety of Qwen2.5-7B-Instruct in percent, digitised from a figure of arXiv:2602.07892.
PAPER_BASE = (56.9, 55.8)
PAPER_METHODS = ("naive", "merged", "LoRA", "general data mixed in", "OGPSA")
PAPER = {
    "SFT": ((53.7, 85.4), (55.5, 73.6), (52.5, 88.1), (52.0, 68.4), (55.7, 83.1)),
    "DPO": ((55.3, 72.6), (56.2, 63.3), (54.8, 73.9), (56.0, 60.9), (56.5, 79.0)),
    "SFT→DPO": ((51.8, 88.3), (54.5, 77.6), (42.9, 89.2), (54.1, 73.7), (55.0, 87.8)),
}
PAPER_NAME = "Qwen2.5-7B of arXiv:2602.07892: other<br>benchmarks and scale; filled: OGPSA<br>(digitised, ±0.3 %)"
# A model that is worth nothing: the hypervolume to it is the share of all that could be had.
REFERENCE = {"utility": 0.0, "safety": 0.0, "over_refusal": 1.0}


class _Told(NamedTuple):
    """A table as the figures of this file tell it."""

    runs: pd.DataFrame
    means: pd.DataFrame
    points: pd.DataFrame
    looks: Looks

    @classmethod
    def of(cls, table: pd.DataFrame, group: str) -> "_Told":
        runs = completed_runs(table, group)
        means = group_means(runs)
        return cls(runs, means, evaluations(runs), looks_of(means))

    @property
    def one_pipeline(self) -> bool:
        """Whether marks need no key of symbols."""
        return self.means["pipeline"].nunique() == 1


@traced
def safety_utility(
    table: pd.DataFrame,
    *,
    group: str = "label",
    trajectories: bool | int = True,
    matched_safety: float | None = None,
    paper: bool = False,
    focus: bool = False,
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """The safety–utility plane; beside it, where measured, over-refusal against utility on a reversed axis.

    In both panels up and right is better. Means and intervals are those of `group_means`: over bases, each the mean of
    its completed runs, or over runs where there is one base. Techniques are named at the right, each joined to its
    mean; a legend below has their names where there are several pipelines, or more techniques than fit. A run's small
    mark has the id of the run in `customdata`.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it.
        group: The column whose values are compared; `technique` where it is absent.
        trajectories: Whether to draw the way of every run from the base model; a number is that of so many runs at
            most, evenly spread over the table.
        matched_safety: A safety to compare at: marks the utility with which each group first reaches it,
            interpolated along its runs.
        paper: Whether to add the points of the OGPSA paper, which were measured on other benchmarks.
        focus: Whether the axes end where the means and their intervals do, so that marks in a corner come apart; the
            title then says how many runs lie outside.
        on: `"page"`; `"slide"`, 960 × 540, to be drawn at a scale of 5/3; or `"column"`, 340 pixels wide.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No completed run has both rates, a column is missing, or there is no such theme or place.
    """
    check(theme, on)
    told, stacked = _Told.of(table, group), SIZES[on].stacked
    keyed = told.one_pipeline and not stacked and len(told.means) <= MOST
    rates = ["safety"] + ["over_refusal"] * bool(told.means["over_refusal.n"].any())
    panels = [Panel("utility", rate, WORDS, rate == "safety", legend=told.one_pipeline and not keyed) for rate in rates]
    large = [[*mean_marks(told.means, told.looks, panel, theme)] for panel in panels]
    layers = [
        [*_below(told, panel, trajectories, paper, theme), *marks] for panel, marks in zip(panels, large, strict=True)
    ]
    within = large if focus else layers
    across, heights = span([*chain(*within)], "x"), [span(traces, "y") for traces in within]
    layers[0] = [
        *front(told.means, across[0], heights[0][0]),
        *layers[0],
        *_cut(told, matched_safety, across, theme),
        *_legend(told, theme),
    ]
    caption = [CAPTION.format(counted(told.runs))]
    if trajectories and len(told.points):
        n, n_all = len(_some(told, trajectories)), told.points["run"].nunique()
        caption.append(f"Thin: the way there from the base{f', of {n} of {n_all} runs' * (n < n_all)}.")
    caption.append(_outside(told, rates, across, heights))
    ends = [heights[0], *(up[::-1] for up in heights[1:])]
    parts = [
        Part(traces, _axis(AXES["utility"], across), _axis(UPSIDE[rate], up))
        for traces, rate, up in zip(layers, rates, ends, strict=True)
    ]
    height, width = 60 + 260 * len(rates) if stacked else 460, 940 if len(rates) == 2 else 720
    if keyed:
        room: dict[str, Any] = {"height": height, "width": width, "theme": theme, "on": on}
        figure, height = assemble_with_key(parts, told.means, told.looks, panels[-1], **room)
    else:
        figure = assemble(parts, stacked=stacked, gap=0.2 if stacked else 0.13)
    return finish(figure, theme=theme, height=height, width=width, title=" ".join(filter(None, caption)), on=on)


@traced
def trajectories(
    table: pd.DataFrame,
    metrics: Sequence[str] = RATES,
    *,
    group: str = "label",
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """Rates over the steps of training, a panel per metric: mean and 95 % interval over a group's runs.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it, with trajectories.
        metrics: A panel each, where any run has it.
        group: The column whose values are compared; `technique` where it is absent.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No completed run has a trajectory with one of the metrics.
    """
    check(theme, on)
    told, stacked = _Told.of(table, group), SIZES[on].stacked
    shown = [metric for metric in metrics if metric in told.points and told.points[metric].notna().any()]
    if not shown:
        raise ValueError(
            f"expected trajectories with {' or '.join(metrics)}, got none in {len(told.runs)} completed runs: "
            "evaluate while training, or draw safety_utility, which needs final scores alone."
        )
    curves = [[*_curves(told, metric, legend=not place)] for place, metric in enumerate(shown)]
    curves[0] += _legend(told, theme)
    steps = {"title": {"text": "Optimizer step"}}
    parts = [
        Part(traces, steps, _axis(AXES.get(metric, safe(metric)), span(traces, "y")))
        for metric, traces in zip(shown, curves, strict=True)
    ]
    figure = assemble(parts, stacked=stacked, gap=0.15 if stacked else 0.1)
    height, title = 60 + 220 * len(shown) if stacked else 400, f"Mean over {counted(told.runs)}. Band: 95 % interval."
    return finish(figure, theme=theme, height=height, title=title, on=on)


def _axis(title: str, ends: Sequence[float]) -> dict[str, Any]:
    return {"title": {"text": title}, "range": [*ends]}


def _below(told: _Told, panel: Panel, trajectories: bool | int, paper: bool, theme: str) -> Iterator[Trace]:
    """What lies under the means: stars, for a technique without any tax lies on its base, ways, and single runs."""
    yield from base_mark(base_scores(told.runs, told.points), panel, theme)
    if trajectories:
        yield from _ways(told.points[told.points["run"].isin(_some(told, trajectories))], told.looks, panel.y)
    if paper and panel.first:
        yield from paper_marks()
    yield from run_marks(told.runs, told.looks, panel)


def _some(told: _Told, most: bool | int) -> list[int]:
    """The numbers of the runs whose ways are drawn."""
    runs = told.points["run"].unique().tolist()
    if most is True or len(runs) <= most:
        return runs
    return [runs[int(place)] for place in np.linspace(0, len(runs) - 1, most)]


def _ways(points: pd.DataFrame, looks: Looks, rate: str) -> Iterator[Trace]:
    """The way of every run, one trace per group: a gap stands between runs."""
    crowd = min(1, (40 / max(points["run"].nunique(), 1)) ** 0.7)  # the more runs, the fainter each
    known = points.dropna(subset=["utility", rate])
    for (group, _), several in known.groupby(["group", "pipeline"]):
        look, ends = looks[group], np.flatnonzero(several["run"].diff().fillna(0))
        columns = (several[name].to_numpy(object) for name in ("utility", rate, "hover"))
        across, up, texts = (np.insert(column, ends, np.array([None])) for column in columns)
        yield scatter(
            [*across, None],
            [*up, None],
            "lines+markers",
            hovertext=[*texts, None],
            hoverinfo="text",
            line={"color": faded(look.colour, 0.25 * crowd), "width": 1, "dash": look.dash},
            marker={"color": faded(look.colour, 0.35 * crowd), "size": 3},
            legendgroup=group,
            showlegend=False,
        )


def _legend(told: _Told, theme: str) -> Iterator[Trace]:
    """Where a table holds several pipelines: legend entries for the looks and, apart, for the symbols."""
    if told.one_pipeline:
        return
    for group in told.means["group"].unique():
        marker = mean_look(told.looks[group], "", theme, 11)
        yield dots([None], [None], [""], marker, name=wrapped(group), legendgroup=group, showlegend=True)
    for pipeline in sorted(told.means["pipeline"].unique()):
        marker = {"color": NEUTRAL, "size": 11, "symbol": symbol_of(pipeline)}
        yield dots([None], [None], [""], marker, name=wrapped(pipeline.upper() or "other"), showlegend=True)


def paper_marks() -> Iterator[Trace]:
    """The points of the OGPSA paper, filled where the method is the paper's own."""
    marks = [
        (ability, safety, symbol_of(pipeline) + "-open" * (method != "OGPSA"), f"{pipeline}, {method}")
        for pipeline, scores in PAPER.items()
        for method, (ability, safety) in zip(PAPER_METHODS, scores, strict=True)
    ]
    marks.append((*PAPER_BASE, "star-open", "Qwen2.5-7B-Instruct, untouched"))
    ability, safety, symbols, texts = zip(*marks, strict=True)
    yield dots(
        [percent / 100 for percent in ability],
        [percent / 100 for percent in safety],
        [f"<b>{text}</b><br>{PAPER_NAME}" for text in texts],
        {"color": NEUTRAL, "size": 9, "symbol": [*symbols], "opacity": 0.6},
        name=PAPER_NAME,
        legendrank=1002,
        showlegend=True,
    )


def front(means: pd.DataFrame, left: float, bottom: float, *, named: bool = True) -> Iterator[Trace]:
    """What the means dominate, shaded, and its border: a stair from the left end of the plane to its foot.

    Without a name, which tells hypervolumes, it takes a fifth of the time.
    """
    best = means[tradeoff.pareto_set(means, maximise=("utility", "safety"))].sort_values("utility")
    x, y = [left, *np.repeat(best["utility"], 2)], [*np.repeat(best["safety"], 2), bottom]
    shared: dict[str, Any] = {"hoverinfo": "skip", "legendgroup": "front"}
    shade = {"fill": "toself", "fillcolor": faded(NEUTRAL, 0.07), "line": {"width": 0}, "showlegend": False}
    yield scatter([*x, left], [*y, bottom], "lines", **shade, **shared)
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    name = {"name": f"Pareto front of the means<br>{_volumes(means)}", "showlegend": True} if named else {}
    yield scatter(x, y, "lines", line=line, legendrank=1001, **name, **shared)


def _volumes(means: pd.DataFrame) -> str:
    """The hypervolume of the means in words, with its reference point; with over-refusal too, where it was measured."""
    corner = {name: REFERENCE[name] for name in ("utility", "safety")}
    told = f"hypervolume {tradeoff.hypervolume(means, corner):.3f} above utility 0, safety 0"
    if not means["over_refusal.n"].any():
        return told
    whole = tradeoff.hypervolume(means, REFERENCE, ["over_refusal"])
    return f"{told};<br>{whole:.3f} with over-refusal, below 1"


def _cut(told: _Told, safety: float | None, across: Sequence[float], theme: str) -> Iterator[Trace]:
    """A line at a safety, and on it the mean utility with which the runs of each group first reach it."""
    if safety is None:
        return
    line = {"color": NEUTRAL, "width": 1, "dash": "dash"}
    yield scatter(across, [safety] * 2, "lines", line=line, hoverinfo="skip", showlegend=False, legendgroup="crossing")
    marker = {"size": 11, "symbol": "triangle-down", "line": edge(theme)}
    name = f"utility on first reaching safety {safety:g}"
    legend = {"name": name, "legendgroup": "crossing", "legendrank": 1001}
    yield dots([None], [None], [""], marker | {"color": NEUTRAL}, **legend, showlegend=True)
    runs = told.runs[["group", "pipeline", "model", "safety", "utility", "trajectory"]]
    matched = tradeoff.matched_safety(runs[runs["trajectory"].map(len) > 0], safety, ["utility"])
    for (group, _), several in matched.groupby(["group", "pipeline"]):
        utility, low, high, n = tradeoff.interval(tradeoff.over_bases(several, ["utility"])["utility"])
        if n:
            ends = f" [{low:.3f}, {high:.3f}]" if n > 1 else ""
            reached = f"reached by {several['reached'].sum()} of {len(several)} runs"
            text = f"<b>{safe(group)}</b><br>utility {utility:.3f}{ends} at safety {safety:g}<br>{reached}"
            look = marker | {"color": told.looks[group].colour}
            yield dots([utility], [safety], [text], look, **legend, showlegend=False)


def _outside(told: _Told, rates: Sequence[str], across: Sequence[float], heights: Sequence[Sequence[float]]) -> str:
    """What the axes leave out, in words; nothing where they leave out nothing."""
    inside, cut = pd.Series(True, told.runs.index), False
    for rate, ends in zip(["utility", *rates], [across, *heights], strict=True):
        inside &= told.runs[rate].between(ends[0], ends[1]) | told.runs[rate].isna()
        cut |= bool((told.means[f"{rate}.low"].lt(ends[0]) | told.means[f"{rate}.high"].gt(ends[1])).any())
    n = int((~inside).sum())
    said = [f"Outside the axes: {n} of {len(inside)} runs."] * (n > 0) + ["Bars are cut where a rate ends."] * cut
    return " ".join(said)


def _curves(told: _Told, metric: str, legend: bool) -> Iterator[Trace]:
    """For each group the mean at every step, and the band of its interval where there are several runs."""
    known = told.points[["group", "pipeline", "model", "step", metric]].dropna(subset=[metric])
    several = dict([*known.groupby(["group", "pipeline"])])
    for row in told.means.to_dict("records"):
        rows = several.get((row["group"], row["pipeline"]))
        if rows is None:
            continue
        look, name = told.looks[row["group"]], wrapped(row["group"])
        by_step = tradeoff.over_bases(rows, [metric], ["step"]).groupby("step")[metric]
        curve = [(step, *tradeoff.interval(values)) for step, values in by_step]
        band = [(step, low, high) for step, _, low, high, n in curve if n > 1]
        yield scatter(
            [step for step, *_ in band + band[::-1]],
            [high for *_, high in band] + [low for _, low, _ in band[::-1]],
            "lines",
            line={"width": 0},
            fill="toself",
            fillcolor=faded(look.colour, 0.12),
            hoverinfo="skip",
            legendgroup=row["group"],
            showlegend=False,
        )
        yield scatter(
            [step for step, *_ in curve],
            [mean for _, mean, *_ in curve],
            "lines+markers",
            hovertext=[f"<b>{name}</b><br>step {step:g}: {mean:.3f}" for step, mean, *_ in curve],
            hoverinfo="text",
            line={"color": look.colour, "width": 2, "dash": look.dash},
            marker={"size": 5, "symbol": symbol_of(row["pipeline"])},
            name=name,
            legendgroup=row["group"],
            showlegend=legend and told.one_pipeline,
        )

"""Techniques side by side: at every level of safety, ability by ability, and as paired differences from one of them."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.study.comparing import paired_comparisons, paired_differences
from workbench.study.costs import retentions
from workbench.study.statistics import over_bases
from workbench.study.tradeoff import matched_curve

from .marks import Looks, dots, mean_look, scatter, span
from .palette import faded
from .panels import Part, Trace, assemble
from .readings import completed_runs, counted, group_means, looks_of, told_apart, told_interval
from .sources import traced
from .theme import INK, NEUTRAL, SIZES, check, colour_bar, finish, safe, wrapped

SCORES = {  # as axes call them, and which way is better
    "utility": ("Utility", "higher"),
    "utility_kept": ("Utility kept", "higher"),
    "safety": ("Safety", "higher"),
    "over_refusal": ("Over-refusal of look-alikes", "lower"),
    "lookalike/compliance_rate": ("Look-alikes answered", "higher"),
    "harmful_heldout/compliance_rate": ("Held-out harmful answered", "lower"),
    "harmful_unseen_kind/compliance_rate": ("Unseen harmful kind answered", "lower"),
    "portraits/toxicity": ("Toxicity, greedy", "lower"),
    "portraits/faithfulness": ("Faithfulness, greedy", "higher"),
    "portraits_sampled/toxicity": ("Toxicity, sampled", "lower"),
    "portraits_sampled/faithfulness": ("Faithfulness, sampled", "higher"),
}
LEVELS = tuple(np.linspace(0, 1, 41))
# Orange for what was lost, blue for what was gained: told apart without red and green, and dark ink is read on all.
LOST, KEPT, GAINED = "#E07B39", "#FAF8F4", "#56B4E9"
MOST_WITH_ENDS = 6  # abilities, above which cells have no room for an interval


@traced
def matched_safety_curves(
    table: pd.DataFrame,
    scores: Sequence[str] = ("utility", "over_refusal"),
    *,
    levels: Sequence[float] = LEVELS,
    group: str = "label",
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """Scores as functions of safety: each group read where its runs first reach every level, see `matched_curve`.

    Lines are means, bands their 95 % intervals over bases (over runs, where there is one base). A line is full as far
    as every run of the group gets; thin beyond, where it is a mean of those that got there.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it, with trajectories.
        scores: A panel each; any score of the evaluations.
        levels: Of safety, growing.
        group: The column whose values are compared; `technique` where it is absent.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No completed run has an evaluation with safety, or none has one of the scores.
    """
    check(theme, on)
    runs = _named_runs(table, group, ["safety"])
    runs = runs[runs["trajectory"].map(len) > 0]
    if runs.empty:
        raise ValueError("expected runs that were evaluated while training, got none: set eval_every.")
    means = group_means(runs, ["safety"])
    looks, curve = looks_of(means), matched_curve(runs, levels, scores, by="group")
    across, parts = (
        {"title": {"text": "Safety first reached: refusal of held-out<br>harmful prompts (share, higher is safer)"}},
        [],
    )
    for place, score in enumerate(scores):
        lines = [
            trace
            for name in means["group"]
            for trace in _level_lines(curve[curve["group"] == name], score, looks, legend=not place)
        ]
        up = {"title": {"text": "<br>".join(_titled(score))}, "range": span(lines, "y")}
        parts.append(Part(lines, across, up))
    stacked = SIZES[on].stacked
    figure = assemble(parts, stacked=stacked, gap=0.2 if stacked else 0.1)
    over, height = counted(runs), 80 + 260 * len(scores) if stacked else 440
    title = f"Mean with 95 % interval over {over} at equal safety. Thin: not every run of the technique got there."
    return finish(figure, theme=theme, height=height, width=max(600, 470 * len(scores)), title=title, on=on)


@traced
def ability_matrix(
    table: pd.DataFrame,
    scores: Sequence[str] | None = None,
    *,
    group: str = "label",
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """The share of each ability that each technique kept, score / base's score, in numbers on colours.

    An average over abilities hides which of them paid. Means and intervals are those of `group_means`. Colours end
    where the means do, which the scale beside them tells.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it.
        scores: Names of scores with a `base.` twin; by default all that end in `/correct_rate`.
        group: The column whose values are compared; `technique` where it is absent.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: No score has a twin, or no run is completed.
    """
    check(theme, on)
    kept = retentions(table, scores)
    runs = _named_runs(table.assign(**{str(name): share for name, share in kept.items()}), group, [])
    abilities, means = [*kept], group_means(runs, [*kept])
    rows, names = means.to_dict("records"), [name.removesuffix("/correct_rate") for name in abilities]
    stacked = SIZES[on].stacked
    ends = len(abilities) <= MOST_WITH_ENDS and not stacked
    cells = [[told_interval(row, name) if ends else f"{row[name]:.2f}" for name in abilities] for row in rows]
    values = means[abilities].to_numpy(float)
    far = max(math.ceil(10 * np.nanmax(np.abs(values - 1), initial=0.0)) / 10, 0.1)
    gained = np.nanmax(values, initial=0.0) > 1.05
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[wrapped(name, 16) for name in names],
            y=[wrapped(row["group"], 24 if stacked else 30) for row in rows],
            text=cells,
            texttemplate="%{text}",
            hovertext=[[_cell(row, name) for name in abilities] for row in rows],
            hoverinfo="text",
            textfont={"color": INK["light"], "size": (11 if len(rows) > 16 else 12) * SIZES[on].font},
            zmin=1 - far,
            zmax=1 + far * gained,
            colorscale=[[0, LOST], [0.5, KEPT], [1, GAINED]] if gained else [[0, LOST], [1, KEPT]],
            colorbar=colour_bar("share of the base's score (more is better)"),
            showscale=not stacked,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(type="category", side="top", showline=False, showgrid=False)
    figure.update_yaxes(
        type="category", autorange="reversed", showline=False, showgrid=False, tickfont_size=12 * SIZES[on].font
    )
    title = f"Ability kept: mean with 95 % interval over {counted(runs)}."
    width = min(max(400 + (170 if ends else 80) * len(abilities), 560), 1100)
    finish(
        figure, theme=theme, height=130 + (24 if len(rows) > 16 else 32) * len(rows), width=width, title=title, on=on
    )
    return figure.update_layout(margin_t=figure.layout.margin.t + 30, margin_b=24)


@traced
def paired_forest(
    table: pd.DataFrame,
    control: str = "plain",
    scores: Sequence[str] = ("utility", "over_refusal"),
    *,
    group: str = "label",
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """Every technique minus the control on the same bases and seeds: a forest plot, a panel and a family per score.

    A bar has two parts, see `workbench.study.comparing.paired_comparisons`: thick, the 95 % interval of the one
    comparison; thin, that of all in the panel at once. Small marks are bases. A mark is full where Holm's p ≤ .05.

    Args:
        table: One row per run, as `load_runs` returns it, or as `matched_safety` does, to compare at equal safety.
        control: The group that the others are compared with.
        scores: A panel each.
        group: The column whose values are compared; `technique` where it is absent.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: The control is not there, shares no base and seed with a technique, or a score is missing.
    """
    check(theme, on)
    runs = _named_runs(table, group, [*scores])
    means = group_means(runs, [*scores])
    looks, names = looks_of(means), [name for name in means["group"] if name != control]
    families = {score: paired_comparisons(runs, control, [score], by="group").set_index("group") for score in scores}
    ticks = {"tickvals": [*range(len(names))], "ticktext": [wrapped(name, 30) for name in names]}
    rows = {"range": [len(names) - 0.5, -0.5], "showgrid": False, "ticks": ""}
    stacked = SIZES[on].stacked
    parts: list[Part] = []
    for score, family in families.items():
        drawn: list[Trace] = []
        for place, name in enumerate(names):
            bases = over_bases(paired_differences(runs, name, control, score, by="group").dropna(), [score])[score]
            drawn += _forest_row(family.loc[name].to_dict(), name, place, bases, looks, theme)
        across = span(drawn, "x", -math.inf, math.inf)
        line = {"color": NEUTRAL, "width": 1.5}
        zero = scatter([0, 0], [-0.5, len(names) - 0.5], "lines", line=line, hoverinfo="skip", showlegend=False)
        title = f"{_titled(score)[0]}: technique<br>{wrapped(f'minus {control}', 40)}{_titled(score)[1]}"
        named = ticks if stacked or not parts else {"tickvals": ticks["tickvals"], "showticklabels": False}
        parts.append(Part([zero, *drawn], {"title": {"text": title}, "range": across}, rows | named))
    figure = assemble(parts, stacked=stacked, gap=0.14 if stacked else 0.04)
    over = counted(runs)
    title = (
        f"Mean paired difference over {over} (small marks). Thick: 95 % interval of one comparison. Thin: of all "
        f"{len(names)} at once (Bonferroni). Full mark: Holm's p ≤ .05."
    )
    height = 150 + 34 * len(names)
    height, width = height + (len(scores) - 1) * (height - 60) * stacked, max(620, 220 + 360 * len(scores))
    return finish(figure, theme=theme, height=height, width=width, title=title, on=on)


def _named_runs(table: pd.DataFrame, group: str, needed: Sequence[str]) -> pd.DataFrame:
    """Completed runs, their groups told apart by pipeline."""
    return told_apart({"": completed_runs(table, group, needed)})[""].assign(pipeline="")


def _titled(score: str) -> tuple[str, str]:
    """What axes call a score, and which way is better, where that is known."""
    title, better = SCORES.get(score, (safe(score), ""))
    return title, f" ({better} is better)" if better else ""


def _level_lines(curve: pd.DataFrame, score: str, looks: Looks, legend: bool) -> Iterator[Trace]:
    """The band of a group, its line as far as all runs got, and its thin line to where any did."""
    name = curve["group"].iloc[0]
    look, known = looks[name], curve[curve[f"{score}.n"] > 0]
    shared: dict[str, Any] = {"legendgroup": name, "hoverinfo": "skip", "showlegend": False}
    band = known[known[f"{score}.n"] > 1]
    yield scatter(
        [*band["safety"], *band["safety"][::-1]],
        [*band[f"{score}.high"], *band[f"{score}.low"][::-1]],
        "lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faded(look.colour, 0.1 if len(looks) < 6 else 0.07),
        **shared,
    )
    line = {"color": look.colour, "dash": look.dash}
    hovers = shared | _hovers(known, name, score)
    yield scatter(known["safety"], known[score], "lines", line=line | {"width": 1}, **hovers)
    whole = known[known["reached"] == 1]
    shared |= {"showlegend": legend, "name": wrapped(name)}
    yield scatter(whole["safety"], whole[score], "lines", line=line | {"width": 2.4}, **shared)


def _hovers(known: pd.DataFrame, name: str, score: str) -> dict[str, Any]:
    title = _titled(score)[0]
    texts = [
        f"<b>{safe(name)}</b><br>{title} {told_interval(row, score)} at safety {row['safety']:.3g}<br>"
        f"reached by {row['reached'] * row['runs']:.0f} of {row['runs']} runs"
        for row in known.to_dict("records")
    ]
    return {"hovertext": texts, "hoverinfo": "text"}


def _cell(row: Mapping[Hashable, Any], name: str) -> str:
    share = f"{safe(name)}<br>{told_interval(row, name)} of the base's"
    return f"<b>{safe(row['group'])}</b><br>{share}<br>{row['runs']} runs on {row['bases']} bases"


def _forest_row(
    row: Mapping[Hashable, Any], name: str, place: int, bases: "pd.Series[float]", looks: Looks, theme: str
) -> Iterator[Trace]:
    """Thin and thick bar, the marks of bases, and the mean."""
    look, shared = looks[name], {"hoverinfo": "skip", "showlegend": False}
    for low, high, width in (("low_all", "high_all", 1.4), ("low", "high", 5)):
        line = {"color": faded(look.colour, 0.55) if width > 2 else look.colour, "width": width}
        yield scatter([row[low], row[high]], [place, place], "lines", line=line, **shared)
    marker = {"color": faded(look.colour, 0.6), "size": 5, "symbol": "circle"}
    yield scatter(bases, [place + 0.26] * len(bases), "markers", marker=marker, **shared)
    told = [
        f"<b>{safe(name)}</b>: {row['mean']:+.3f}",
        f"alone [{row['low']:.3f}, {row['high']:.3f}], p {row['p']:.3f}",
        f"all at once [{row['low_all']:.3f}, {row['high_all']:.3f}], Holm's p {row['p_holm']:.3f}",
        f"over {row['n']} {row['unit']}, {row['pairs']} pairs; sign flips p {row['p_sign_flip']:.3f}",
        f"over runs [{row['low_runs']:.3f}, {row['high_runs']:.3f}], of their variance {row['base_share']:.2f} by base",
    ]
    certain = look._replace(fill="" if row["p_holm"] <= 0.05 else "-open")  # names are beside them: fills are free
    yield dots([row["mean"]], [place], ["<br>".join(told)], mean_look(certain, "", theme, 11), showlegend=False)

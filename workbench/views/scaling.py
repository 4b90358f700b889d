"""What alignment costs models of different size."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from workbench.study.tradeoff import alignment_tax

from .marks import bar
from .readings import completed_runs, counted, group_means, looks_of, told_interval
from .sources import traced
from .theme import NEUTRAL, check, finish, safe, wrapped

SIZE = "parameters_count"
APART = 0.01  # of the axis between neighbouring lines


@traced
def model_size(
    table: pd.DataFrame,
    *,
    score: str = "utility",
    group: str = "label",
    size: Mapping[str, float] | None = None,
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """The alignment tax, score of the base − score of the run, against the number of parameters: a line per group.

    Means and intervals are those of `group_means` at each size: over bases, each the mean of its completed runs, or
    over runs where there is one base of that size.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it, with the score and `base.<score>`.
        score: The column of a score of which more is better.
        group: The column whose values are compared; `technique` where it is absent.
        size: Model → its number of parameters; where None, the column `parameters_count` has it.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: A column is missing, no completed run has both scores, or the size of a model is unknown.
    """
    check(theme, on)
    runs = completed_runs(table, group, [score, f"base.{score}"])
    if size is None and SIZE not in runs:
        raise ValueError(f"expected the column {SIZE}, got a table without it: pass size={{model: parameters}}.")
    sizes = runs[SIZE] if size is None else runs["model"].map(size)
    if not (pd.to_numeric(sizes) > 0).all():
        unknown = sorted({*runs["model"][~(pd.to_numeric(sizes) > 0)]})
        raise ValueError(f"expected a number of parameters for every model, got none for {unknown}: pass it in size.")
    tax = alignment_tax(runs[f"base.{score}"], runs[score])
    runs = runs.assign(tax=tax, size=pd.to_numeric(sizes), pipeline="")
    looks = looks_of(runs.sort_values("technique", ascending=False))
    means = pd.concat(group_means(rows, ["tax"]).assign(size=number) for number, rows in runs.groupby("size"))
    figure = go.Figure()
    names = [*group_means(runs, ["tax"])["group"]]
    span = runs["size"].max() / runs["size"].min()
    for place, name in enumerate(names):
        shift = span ** (APART * (place - (len(names) - 1) / 2))  # or bars of one size would lie on each other
        rows = means[means["group"] == name].to_dict("records")
        colour, dash, fill = looks[name]
        bars = [bar(row, "tax", colour) or {"array": [0.0], "arrayminus": [0.0]} for row in rows]
        ends = {side: [one[side][0] for one in bars] for side in ("array", "arrayminus")}
        figure.add_scatter(
            x=[row["size"] * shift for row in rows],
            y=[row["tax"] for row in rows],
            error_y={"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.6, "width": 4},
            hovertext=[
                f"<b>{safe(name)}</b><br>{row['size']:,.0f} parameters, {row['runs']} runs on {row['bases']} bases<br>"
                f"tax {told_interval(row, 'tax')}"
                for row in rows
            ],
            hoverinfo="text",
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 9, "symbol": f"circle{fill}"},
            name=wrapped(name),
            showlegend=True,
        )
    figure.add_hline(0, line={"color": NEUTRAL, "width": 1}, layer="below")
    figure.update_xaxes(type="log", title_text="Parameters of the model (log)")
    figure.update_xaxes(tickvals=sorted({*runs["size"]}), tickformat=".2~s")
    figure.update_yaxes(title_text=f"Alignment tax: {safe(score)} of the base<br>minus that after (lower is better)")
    title = f"Mean with 95 % interval over {counted(runs)} of one size. Lines are moved apart sideways."
    return finish(figure, theme=theme, height=420, width=720, title=title, on=on)

"""The plots of the geometry explorer: figures as plain data of which only what a control changes is exchanged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..figures import angles_heatmap, block_heatmap, loss_slice, spectrum
from ..theme import INK, NEUTRAL, PAGE, colour_bar, finish, wrapped
from .steps import QUANTITIES
from .tiles import Plain

if TYPE_CHECKING:
    from workbench.geometry.landscape import LossPlane
    from workbench.geometry.survey import Survey

HEIGHT, WIDTH = 400, 500  # of a panel that has one of two columns, in pixels


def kept_survey(table: pd.DataFrame) -> "Survey":
    """What a run's ``spectrum.parquet`` tells: one spectrum per block, with no domains and no angles."""
    from workbench.geometry.survey import Survey

    sizes = table.drop_duplicates("block").set_index("block")["n_params"]
    values = table["singular_value"].to_numpy(float, copy=True).reshape(len(sizes), -1)  # as many of every block
    return Survey(tuple(map(str, sizes.index)), sizes.to_numpy(), {"all references": values})


def spectrum_base(survey: "Survey") -> Plain:
    """Lines for all domains and floors on an axis that holds those of all blocks, so that blocks compare."""
    figure = spectrum(
        {name: values[0] for name, values in survey.singular_values.items()},
        {name: values[0] for name, values in survey.floors.items()},
    )
    every = np.concatenate([v.ravel() for v in (*survey.singular_values.values(), *survey.floors.values())])
    largest = every.max() or 1.0
    low, high = np.log10(every[every > 1e-3 * largest].min(initial=largest)), np.log10(largest)
    room = 0.05 * (high - low) + 0.02
    axis = {"range": [low - room, high + room], "dtick": "D2" if high - low < 2 else 1, "tickvals": None}
    figure.update_yaxes(axis, title_text="Singular value (log)")
    figure.update_traces({"name": "dotted: floor"}, selector={"line.dash": "dot"})  # in the width of a panel
    return _plain(figure, "Singular values of the reference gradients")


def spectrum_at(base: Plain, survey: "Survey", row: int, label: str, chosen: Sequence[str]) -> Plain:
    """The spectra of one block, of which the chosen domains stand out."""
    changes = []
    for name in survey.domains:  # in the order in which `spectrum` draws
        for table in (survey.singular_values, survey.floors):
            if name in table:
                heights = np.where(table[name][row] > 0, table[name][row], np.nan)
                changes.append({"y": heights, "opacity": 1.0 if name in chosen else 0.3})
    return _changed(base, f"Singular values of the reference gradients in {label}", changes)


def angles_base(survey: "Survey", labels: Sequence[str]) -> Plain:
    """An empty map of blocks × angles, on a scale that holds those of all domains at all ranks."""
    n = survey.largest_rank
    figure = angles_heatmap(np.zeros((len(labels), n)), labels, [str(i + 1) for i in range(n)])
    largest = max(np.nanmax(survey.cosines(*pair, n), initial=0.01) for pair in survey.crosses)
    figure.update_traces(zmax=largest, colorbar=colour_bar("cosine"))
    figure.update_xaxes(title_text="Principal angle, smallest first")
    return _plain(_rows(figure, labels), "Cosines of the principal angles")


def angles_at(base: Plain, cosines: np.ndarray, pair: tuple[str, str], rank: int) -> Plain:
    """The cosines of two domains' first directions, (n_blocks, rank)."""
    z = np.full((len(cosines), len(base["data"][0]["x"])), np.nan)
    z[:, :rank] = cosines
    return _changed(base, f"Cosines of the principal angles, {pair[0]} and {pair[1]}, rank {rank}", [{"z": z}])


def step_map(values: pd.DataFrame, labels: Sequence[str], quantity: str) -> Plain:
    """One quantity of blocks × steps."""
    title, key = QUANTITIES[quantity]
    return _plain(_rows(block_heatmap(values.set_axis([*labels]), title, key), labels), title)


def slice_figure(step: int, plane: "LossPlane") -> Plain:
    """Losses that were measured at a step."""
    figure = loss_slice(plane.xs.tolist(), plane.ys.tolist(), plane.losses)
    figure.update_xaxes(nticks=5, tickangle=0)
    # Words for colours, since those of the theme would follow the page, and the map below does not.
    at_theta = {"marker": {"color": "white", "line": {"color": "black"}}, "textfont": {"color": "white"}}
    figure.update_traces(at_theta, selector={"type": "scatter"})
    return figure.update_layout(title_text=f"Losses measured around step {step}", margin_t=72).to_dict()


def rank_mark(rank: int, largest: int) -> list[Plain]:
    """The line behind the last direction that is kept, with words on the side that has room for them."""
    text = {"text": f"rank {rank} kept", "textposition": "end", "textangle": 0, "yanchor": "top"}
    text["xanchor"] = "left" if rank < 0.7 * largest else "right"
    place = {"x0": rank + 0.5, "x1": rank + 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dash"}
    return [{"type": "line", "line": line, "label": text | {"font": {"size": 12}}, **place}]


def cell_marks(shape: tuple[int, int], row: int | None = None, column: int | None = None) -> list[Plain]:
    """Frames around a row and a column of a map, in ink with a rim of page, to be seen on any colour."""
    n_rows, n_columns = shape
    places = []
    if row is not None:
        half = 0.5 + n_rows / 120  # a thin row would be hidden by its frame
        places.append({"xref": "paper", "x0": 0, "x1": 1, "y0": row - half, "y1": row + half})
    if column is not None:
        half = 0.5 + n_columns / 300
        places.append({"yref": "paper", "y0": 0, "y1": 1, "x0": column - half, "x1": column + half})
    lines = [{"color": PAGE["light"], "width": 3}, {"color": INK["light"], "width": 1.2}]
    return [{"type": "rect", "line": line, **place} for line in lines for place in places]


def marked(figure: Plain, marks: Sequence[Plain]) -> Plain:
    """A figure with the marks of its `LivePlot`."""
    layout = figure["layout"]
    return {"data": figure["data"], "layout": {**layout, "shapes": [*layout.get("shapes", ()), *marks]}}


def short_names(blocks: Sequence[str]) -> dict[str, str]:
    """What blocks are called in figures: without what begins or ends most names of parameters, where that tells all."""
    short = {block: block.removeprefix("model.").removesuffix(".weight") or block for block in blocks}
    return short if len({*short.values()}) == len(short) else {block: block for block in blocks}


def _plain(figure: go.Figure, title: str) -> Plain:
    return finish(figure, theme="light", height=HEIGHT, width=WIDTH, title=title).to_dict()


def _rows(figure: go.Figure, labels: Sequence[str]) -> go.Figure:
    """A map as high as any other panel, with as many names of rows and columns as there is room for."""
    rows, columns = len(labels), len(figure.data[0].x)
    figure.update_traces(xgap=0, ygap=int(rows <= 22), texttemplate=None)
    figure.update_xaxes(dtick=max(1, -(-columns // 10)), tickangle=0, tickfont_size=11)
    return figure.update_yaxes(dtick=max(1, -(-rows // 22)), tickfont_size=11, title_text="")


def _changed(base: Plain, title: str, changes: Sequence[Mapping[str, Any]]) -> Plain:
    data = [{**trace, **change} for trace, change in zip(base["data"], changes, strict=True)]
    heading = {**base["layout"]["title"], "text": wrapped(title, WIDTH // 7)}
    return {"data": data, "layout": {**base["layout"], "title": heading}}

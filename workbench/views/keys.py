"""A key at the right of a plane: every mean's name, joined to its mark by a line, in place of a legend far below."""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .marks import Looks, Panel, mean_look, scatter
from .palette import faded
from .panels import Part, assemble
from .theme import SIZES, wrapped

MOST = 32  # names, above which a key is no shorter than a legend
WRAP = 42  # characters in a line of it
FONT, LEADING = 13, 1.32  # pixels of a letter on a page, and lines for each
FRAME, SIDES = 130, 100  # pixels of a figure above and below its panels, and beside them


def assemble_with_key(
    parts: Sequence[Part],
    means: pd.DataFrame,
    looks: Looks,
    panel: Panel,
    *,
    height: int,
    width: int,
    theme: str,
    on: str,
    gap: float = 0.13,
) -> tuple[go.Figure, int]:
    """Panels side by side and, at their right, the names of the rows of `group_means`.

    Args:
        parts: From left to right; the last is joined to the names.
        means: A row per mark.
        looks: How each group is drawn.
        panel: What the last part shows of them.
        height: Of the figure, in pixels; unless it is a slide, it grows with the names.
        width: Of the figure.
        theme: `"light"` or `"dark"`.
        on: One of `workbench.views.theme.SIZES`.
        gap: Between neighbours, as a share of the figure.

    Returns:
        The figure and its height.
    """
    texts = [wrapped(group, WRAP) for group in means["group"]]
    lines = max(text.count("<br>") + 1 for text in texts)
    height = max(height, int(LEADING * FONT * lines * len(texts)) + FRAME)
    high = (SIZES[on].height or height) - FRAME * SIZES[on].font
    font = min(FONT * SIZES[on].font, high / LEADING / lines / len(texts))  # a slide does not grow, letters shrink
    leaders, names = [], []
    rows = means.assign(x=means[panel.x].map(panel.place).astype(float), y=means[panel.y]).to_dict("records")
    across, up = parts[-1].x["range"], parts[-1].y["range"]
    marks = [(_share(row["x"], across), _share(row["y"], up)) for row in rows]
    for row, text, place in zip(rows, texts, _places(marks, lines * LEADING * font / high), strict=True):
        look = looks[row["group"]]
        shared: dict[str, Any] = {"legendgroup": row["group"], "hoverinfo": "skip", "showlegend": False}
        known = row[f"{panel.y}.n"] > 0
        line = {"color": faded(look.colour, 0.55 * known), "width": 1}
        if known:
            end = up[0] + place * (up[1] - up[0])
            leaders.append(scatter([row["x"], across[1]], [row["y"], end], "lines", line=line, **shared))
        words = {
            "text": ["", f" {text}"],
            "textposition": "middle right",
            "textfont": {"size": font},
            "cliponaxis": False,
        }
        marker = mean_look(look, row["pipeline"], theme, 0.8 * font)
        marker["opacity"] = [0, 1]  # the line goes on to the name
        names.append(scatter([0, 0.06], [place] * 2, "lines+markers+text", marker=marker, line=line, **words, **shared))
    longest = max(len(line) for text in texts for line in text.split("<br>"))
    room = (30 + 0.5 * font * longest) / (width - SIDES)
    last = parts[-1]._replace(traces=[*leaders, *parts[-1].traces])
    return assemble([*parts[:-1], last], gap=gap, beside=names, room=room), height


def _share(value: float, ends: Sequence[float]) -> float:
    """Where a value lies between two ends, from 0 to 1; the middle, where it is not known."""
    share = (value - ends[0]) / (ends[1] - ends[0])
    return min(max(share, 0.0), 1.0) if share == share else 0.5


def _places(marks: Sequence[tuple[float, float]], least: float) -> list[float]:
    """A height for each mark's name, near the mark's own, such that neither names overlap nor lines cross.

    Lines that cross exchange their ends, which makes both shorter together; so this comes to an end.
    """
    by_height = sorted(range(len(marks)), key=lambda number: marks[number][::-1])
    places = dict(zip(by_height, _apart([marks[number][1] for number in by_height], least), strict=True))

    def length(number: int, place: float) -> float:
        return math.hypot(1 - marks[number][0], place - marks[number][1])

    def shorter(one: int, other: int) -> bool:
        now = length(one, places[one]) + length(other, places[other])
        return length(one, places[other]) + length(other, places[one]) < now - 1e-9

    crossed = True
    while crossed:
        crossed = False
        for one, other in combinations(places, 2):
            if shorter(one, other):
                places[one], places[other], crossed = places[other], places[one], True
    return [places[number] for number in range(len(marks))]


def _apart(wanted: Sequence[float], least: float) -> list[float]:
    """Growing numbers moved as little as can be (in squares) to be `least` apart, within [0, 1] if they fit there."""
    blocks: list[
        list[float]
    ] = []  # of neighbours that touch: how far each begins above 0, less the room of those below
    for place, value in enumerate(wanted):
        blocks.append([value - place * least])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    begins = [fmean(block) for block in blocks for _ in block]
    top = max(1 - least / 2 - (len(wanted) - 1) * least, 0.0)
    return [min(max(begin, min(least / 2, top)), top) + place * least for place, begin in enumerate(begins)]

"""From traces as plain data to a figure: panels side by side, or one above the other, each with its axes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from .theme import safe

Trace = dict[str, Any]  # as plotly's JSON holds it


class Part(NamedTuple):
    """One panel.

    Attributes:
        traces: Drawn in this order.
        x: The axis that goes across, as plotly's JSON holds it.
        y: The axis that goes up.
        title: Above it.
    """

    traces: Sequence[Trace]
    x: dict[str, Any]
    y: dict[str, Any]
    title: str = ""


def assemble(
    parts: Sequence[Part],
    *,
    stacked: bool = False,
    gap: float = 0.13,
    beside: Sequence[Trace] = (),
    room: float = 0.0,
) -> go.Figure:
    """A figure of panels of equal size.

    Args:
        parts: From left to right, or from top to bottom.
        stacked: Whether one stands above the other.
        gap: Between neighbours, as a share of the figure.
        beside: Traces at the right of the last panel, on axes from 0 to 1 that are not drawn.
        room: How much of the width they take, as a share.
    """
    data: list[Trace] = []
    layout: dict[str, Any] = {"annotations": []}
    length = (1 - gap * (len(parts) - 1)) / len(parts)
    for number, part in enumerate(parts):
        key = str(number + 1) if number else ""
        first = number * (length + gap)
        across, up = [(1 - room) * first, (1 - room) * (first + length)], [0.0, 1.0]
        if stacked:
            across, up = [0.0, 1 - room], [max(1 - first - length, 0.0), 1 - first]
        layout[f"xaxis{key}"] = {"domain": across, "anchor": f"y{key}", **part.x}
        layout[f"yaxis{key}"] = {"domain": up, "anchor": f"x{key}", **part.y}
        data += [trace | {"xaxis": f"x{key}", "yaxis": f"y{key}"} for trace in part.traces]
        if part.title:
            place = {
                "x": sum(across) / 2,
                "y": up[1],
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",  # "auto" would begin it there in the left third of the figure
                "yanchor": "bottom",
                "yshift": 4,
            }
            layout["annotations"].append({"text": safe(part.title), "showarrow": False, **place})
    if beside:
        key = str(len(parts) + 1)
        hidden = {"range": [0, 1], "visible": False, "fixedrange": True}
        layout[f"xaxis{key}"] = {"domain": [across[1], 1.0], "anchor": f"y{key}", **hidden}
        layout[f"yaxis{key}"] = {"domain": up, "anchor": f"x{key}", **hidden}
        data += [trace | {"xaxis": f"x{key}", "yaxis": f"y{key}"} for trace in beside]
    # Checking every value takes four times as long as all else; the tests check every kind of figure instead.
    return go.Figure(data, layout, _validate=False)

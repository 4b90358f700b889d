"""The table beside the plane: which mark is whose, and what each group had at equal safety."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..palette import Style
from .quick_plane import QuickPlane
from .records import escaped, framed, grid

# On a canvas from -1 to 1, y downwards.
SHAPES = {
    "circle": '<circle r=".75"/>',
    "square": '<path d="M-.7-.7H.7V.7H-.7z"/>',
    "diamond": '<path d="M0-.95L.95 0 0 .95-.95 0z"/>',
    "triangle-up": '<path d="M0-.85L.9.7H-.9z"/>',
    "hexagon": '<path d="M-.45-.8H.45L.9 0 .45.8H-.45L-.9 0z"/>',
}


def matched_html(matched: pd.DataFrame, plane: QuickPlane, safety: float) -> str:
    """The rows of `TradeoffExplorer.matched` with their marks, as HTML in which all text is escaped."""
    if matched.empty:
        return ""
    names = [name for name in plane.axes.all if name != "safety"]
    heads = [f"At safety {safety:.2f}", "reached", *(escaped(plane.axes.words[name]) for name in names)]
    rows = []
    for row in matched.to_dict("records"):
        look = plane.looks[row["group"]]
        who = f"{mark_svg(look, row['pipeline'])}{escaped(row['group'])}<small>{escaped(row['pipeline'])}</small>"
        without = row["runs"] - row["with_trajectory"]
        reached = f"{row['reached']} of {row['with_trajectory']}" + f"<small>{without} not traced</small>" * (
            without > 0
        )
        cells = "".join(f'<td class="number">{_interval(row, name)}</td>' for name in names)
        rows.append(f'<tr><th scope="row">{who}</th><td class="number">{reached}</td>{cells}</tr>')
    return framed(grid(heads, rows))


def mark_svg(look: Style, pipeline: str) -> str:
    """The mark of a group's runs of one pipeline, as in the plane."""
    symbol = look.symbol(pipeline).removesuffix(look.fill)
    inside, width = ("none", 0.35) if "open" in look.fill else (look.colour, 0.1)
    dot = f'<circle r=".22" fill="{look.colour if inside == "none" else "white"}" stroke="none"/>' * (
        "dot" in look.fill
    )
    return (
        f'<svg viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true" fill="{inside}" stroke="{look.colour}" '
        f'stroke-width="{width}">{SHAPES.get(symbol, SHAPES["hexagon"])}{dot}</svg>'
    )


def _interval(row: Mapping[Any, Any], name: str) -> str:
    """A mean, and below it its interval."""
    if not row[f"{name}.n"]:
        return "–"
    ends = f"<small>[{row[f'{name}.low']:z.2f}, {row[f'{name}.high']:z.2f}]</small>" if row[f"{name}.n"] > 1 else ""
    return f"{row[name]:z.3f}{ends}"

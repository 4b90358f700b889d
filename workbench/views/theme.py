"""One template for every figure, on a light page or a dark one, in the size of a page, a slide or a column.

A figure changes its page by exchanging ink, page and grid alone, for every other colour keeps a contrast of 3:1 on
both; what techniques look like is in `palette`.
"""

import functools
import html
import re
import textwrap
from typing import Any, NamedTuple

import plotly.graph_objects as go

# Told apart as the techniques' hues are, of which they are some: what is no technique may have any of them.
DOMAINS = ("#0872DC", "#D83910", "#14744F", "#BB77BF", "#C87F06", "#2C9CE1", "#8557B7", "#955481")
INK = {"light": "#1B1F24", "dark": "#E6E8EB"}
PAGE = {"light": "#FFFFFF", "dark": "#15181D"}
GRID = {"light": "#E7E9EC", "dark": "#2C323A"}
NEUTRAL = "#808489"  # lines that belong to no technique, readable on both pages
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0

CONFIG = {"displaylogo": False, "showSendToCloud": False}  # plotly offers to upload a chart unless told not to


class Size(NamedTuple):
    """What a figure is read on.

    Attributes:
        width: In pixels; None is the figure's own.
        height: In pixels; None is the figure's own.
        font: How large letters are, as a share of the page's.
        stacked: Whether panels stand one above the other.
    """

    width: int | None = None
    height: int | None = None
    font: float = 1.0
    stacked: bool = False


# A slide is 16:9 and read from the last row: letters of a 36th of its height. Drawn at a scale of 5/3 it has 1600 × 900
# pixels. A column is half a printed page, or a telephone.
SIZES = {"page": Size(), "slide": Size(960, 540, 1.1), "column": Size(340, None, 0.8, stacked=True)}


def safe(value: object) -> str:
    """Text for a figure: plotly renders a little html in names and hovers, so markup from data is escaped.

    Characters that XML forbids, as an untrained model may write them, stop plotly from drawing a picture at all.
    """
    return html.escape(FORBIDDEN.sub("\ufffd", str(value)), quote=False)


def wrapped(value: object, width: int = 36) -> str:
    """Escaped text, broken into lines of about `width` characters."""
    return "<br>".join(safe(line) for line in textwrap.wrap(str(value), width)) or " "


def check(theme: str, on: str = "page") -> None:
    """Refuses an unknown theme or place before anything is computed."""
    if theme not in PAGE:
        raise ValueError(f"theme must be 'light' or 'dark', got {theme!r}. Pass theme='light' for print.")
    if on not in SIZES:
        raise ValueError(f"on must be one of {', '.join(SIZES)}, got {on!r}. Pass on='slide' for a wall.")


@functools.cache  # every figure asks for one, and checking its values takes longer than drawing does
def template(theme: str = "light", on: str = "page") -> go.layout.Template:
    """The plotly template of every figure.

    Args:
        theme: `"light"` or `"dark"`.
        on: One of `SIZES`.

    Raises:
        ValueError: There is no such theme or place.
    """
    check(theme, on)
    large = SIZES[on].font
    ink, page, grid = INK[theme], PAGE[theme], GRID[theme]
    lines = {"gridcolor": grid, "linecolor": NEUTRAL, "tickcolor": NEUTRAL, "zerolinecolor": grid}
    axis = lines | {"zeroline": False, "showline": True, "ticks": "outside", "ticklen": 4, "automargin": True}
    axis |= {"title": {"standoff": 10, "font": {"size": 14 * large}}, "tickfont": {"size": 13 * large}}
    scene = lines | {"backgroundcolor": page}
    heading = {"font": {"size": 15 * large}, "x": 0.012, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 14}}
    return go.layout.Template(
        layout=go.Layout(
            font={"family": FONT, "size": 14 * large, "color": ink},
            title=heading,
            paper_bgcolor=page,
            plot_bgcolor=page,
            colorway=DOMAINS,
            xaxis=axis,
            yaxis=axis,
            scene={"xaxis": scene, "yaxis": scene, "zaxis": scene},
            margin={"l": 76 * large, "r": 24, "t": 24, "b": 64},
            legend={"font": {"size": 13 * large}, "bgcolor": "rgba(0,0,0,0)"},
            hoverlabel={"align": "left", "bgcolor": page, "bordercolor": NEUTRAL, "font": {"color": ink}},
            hovermode="closest",
        )
    )


def colour_bar(title: str, **options: object) -> dict[str, Any]:
    """The key of a heat map or a contour."""
    heading = {"text": wrapped(title, 48), "side": "right", "font": {"size": 13}}
    look = {"thickness": 13, "outlinewidth": 0, "len": 1, "tickfont": {"size": 12}, "exponentformat": "power"}
    return {"title": heading, **look, **options}


def finish(
    figure: go.Figure, *, theme: str, height: int, width: int = 940, title: str = "", on: str = "page"
) -> go.Figure:
    """Template, size, title, and a legend below the axes, for which the figure grows line by line unless it is a slide.

    Args:
        figure: Changed in place.
        theme: `"light"` or `"dark"`.
        height: Of the figure without its legend, in pixels; a slide has its own.
        width: In pixels; slides and columns have their own.
        title: Above the axes, broken into lines that fit.
        on: One of `SIZES`.
    """
    check(theme, on)
    at = SIZES[on]
    width = at.width or width
    layout: dict[str, Any] = {"template": template(theme, on), "width": width, "height": at.height or height}
    if title:
        text = wrapped(title, min(110, int(width / 7 / at.font)))
        more = text.count("<br>")  # the first line of several begins higher
        layout |= {"title_text": text, "title_pad_t": 14 + 8 * (more > 0), "margin_t": (52 + 19 * more) * at.font}
    names = [str(trace.name) for trace in figure.data if trace.showlegend and trace.name]
    if names:
        entry = max(64, 6.7 * at.font * max(len(line) for name in names for line in name.split("<br>")))
        columns = max(1, int((width - 100 * at.font) // (entry + 46)))  # plotly adds the room for the symbol
        rows = [names[i : i + columns] for i in range(0, len(names), columns)]
        extra = 8 + sum(4 + 17 * at.font * max(name.count("<br>") + 1 for name in row) for row in rows)
        layout |= {"height": at.height or height + extra, "margin_b": 72 * at.font + extra}
        place = {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}
        layout["legend"] = place | {"entrywidth": entry, "entrywidthmode": "pixels", "tracegroupgap": 0}
    return figure.update_layout(layout)

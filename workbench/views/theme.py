"""One look for every figure: a colour per technique family, a symbol per pipeline, one template.

The colours are Okabe and Ito's and neighbours of them, told apart by colour-blind readers. Orange and sky
blue are darkened, so that each colour keeps a contrast of 3:1 on the white page and on the dark one: a figure
changes its page by exchanging ink, page and grid alone.
"""

import html
import re
import textwrap
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go

# Family: colour, and the words that name it. A combination takes the colour of the part that comes first
# here: "gradient projection + restore" is a restore, "replay + merge" a replay, "parting + KL" a parting.
FAMILIES = {
    "restore": ("#0072B2", r"restor"),
    "update_projection": ("#009E73", r"update.*proj"),
    "conflict": ("#868A1C", r"conflict|a.?gem\b|\bgem\b|pcgrad|safegrad|surgery"),
    "gradient_projection": ("#D55E00", r"proj|ogpsa"),
    "null_space": ("#9A6324", r"null ?space|\bgpm\b|nspo|activation"),
    "replay": ("#C4679A", r"replay|mixing"),
    "sentence_debias": ("#B44B4B", r"sentence ?debias"),
    "printed": ("#FF5A4B", r"\bprinted"),
    "cda": ("#4BA54B", r"\bcda\b|counterfactual"),
    "instruction": ("#3C69D2", r"\binstruct|system prompt"),
    "predicting": ("#7878FF", r"\bpredicting"),
    "positives": ("#A0782D", r"\bpositive"),
    "infonce": ("#D2000F", r"info ?nce"),
    "filtered": ("#00879B", r"\bfilter"),
    "parting": ("#C300A5", r"\bparting"),
    "unlikelihood": ("#8C5A8C", r"unlikelihood"),
    "likelihood": ("#693CFF", r"likelihood|contrastive"),
    "kl": ("#3A9AD1", r"\bkl\b"),
    "ewc": ("#8F63C7", r"\bewc\b|elastic"),
    "confidence": ("#4F8A8B", r"confiden|consft"),
    "lora": ("#C2426E", r"\blora\b"),
    "merge": ("#BC7C00", r"merg|interpol|averag|\bhma\b"),
    "plain": ("#808080", r"plain|naive|standard"),
}
SPARE = ("#5F8A2F", "#A65FB0", "#B5654A", "#5A7FC0")  # for techniques of no known family
DOMAINS = ("#0072B2", "#D55E00", "#009E73", "#C4679A", "#BC7C00", "#3A9AD1", "#8F63C7", "#9A6324")
# One a setting. There are as many as keep families of similar hue apart, for whom a family begins depends on its place.
MARKS = (
    *("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "x", "pentagon"),
    *("bowtie", "hexagram", "hourglass"),
)
SYMBOLS = {"sft": "circle", "dpo": "square", "sft→dpo": "diamond", "contrastive": "triangle-up"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SHADES = (0.0, 0.42, -0.38, 0.62, -0.58)  # share of white (positive) or black mixed in, by setting
INK = {"light": "#1B1F24", "dark": "#E6E8EB"}
PAGE = {"light": "#FFFFFF", "dark": "#15181D"}
GRID = {"light": "#E7E9EC", "dark": "#2C323A"}
NEUTRAL = "#808489"  # lines that belong to no technique, readable on both pages
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"


CONFIG = {"displaylogo": False, "showSendToCloud": False}  # plotly offers to upload a chart unless told not to


class Style(NamedTuple):
    """How one group is drawn."""

    colour: str
    dash: str
    mark: str = "circle"


def family_of(technique: str) -> str:
    """The family that a technique or a label belongs to; its own words where no family is known."""
    words = re.sub(r"[_\-]+", " ", str(technique).lower())
    return next((name for name, (_, pattern) in FAMILIES.items() if re.search(pattern, words)), words)


def colour_of(technique: str) -> str:
    """The colour of a technique's family as `#RRGGBB`, the same in every figure whatever else is drawn."""
    family = family_of(technique)
    # A checksum, since `hash` differs between processes: an unknown technique keeps its colour too.
    return FAMILIES[family][0] if family in FAMILIES else SPARE[zlib.crc32(family.encode()) % len(SPARE)]


def family_or(technique: str, label: str) -> str:
    """What shapes a run: its technique, or its label where the technique is plain, or KL, and the label names a family.

    Training on filtered data, or with a contrastive loss, is told apart by its label alone.
    """
    return label if family_of(technique) in ("plain", "kl") and family_of(label) in FAMILIES else technique


def symbol_of(pipeline: object) -> str:
    """The marker of a pipeline: circle for SFT, square for DPO, diamond for SFT→DPO, else a hexagon."""
    return SYMBOLS.get(re.sub(r"\s*(->|→|\+|,)\s*", "→", str(pipeline).lower().strip()), "hexagon")


def styles(techniques: Mapping[str, str]) -> dict[str, Style]:
    """Colour, dash and mark of each label, given the technique it is a setting of.

    Settings of one family share its hue and differ in shade, dash and mark, unless no other family is drawn. They are
    ordered by name, so that the order of a table's rows changes nothing. Families of similar hue begin with different
    marks, and no two labels share colour and mark.
    """
    families: dict[str, list[str]] = {}
    for label in sorted(techniques, key=lambda name: (techniques[name], name)):
        families.setdefault(family_of(techniques[label]), []).append(label)
    looks: dict[str, Style] = {}
    alone = len(families) == 1 and len(techniques) > 1  # nothing to tell apart but the settings: hues of their own
    for family, labels in families.items():
        first = 0 if alone or family not in FAMILIES else [*FAMILIES].index(family)
        for i, label in enumerate(labels):
            colour = DOMAINS[i % len(DOMAINS)] if alone else _shaded(colour_of(techniques[label]), i)
            dash = "solid" if alone else DASHES[i % len(DASHES)]
            taken = {look.mark for look in looks.values() if look.colour == colour}
            marks = [MARKS[(first + i + more) % len(MARKS)] for more in range(len(MARKS))]
            looks[label] = Style(colour, dash, next((mark for mark in marks if mark not in taken), marks[0]))
    return looks


def faded(colour: str, opacity: float) -> str:
    """`#RRGGBB` as an rgba colour."""
    return f"rgba({','.join(map(str, _channels(colour)))},{opacity:g})"


def safe(value: object) -> str:
    """Text for a figure: plotly renders a little html in names and hovers, so markup from data is escaped."""
    return html.escape(str(value), quote=False)


def wrapped(value: object, width: int = 36) -> str:
    """Escaped text, broken into lines of about `width` characters."""
    return "<br>".join(safe(line) for line in textwrap.wrap(str(value), width)) or " "


def template(theme: str = "light") -> go.layout.Template:
    """The plotly template of every figure.

    Args:
        theme: `"light"` or `"dark"`.
    """
    if theme not in PAGE:
        raise ValueError(f"theme must be 'light' or 'dark', got {theme!r}. Pass theme='light' for print.")
    ink, page, grid = INK[theme], PAGE[theme], GRID[theme]
    lines = {"gridcolor": grid, "linecolor": NEUTRAL, "tickcolor": NEUTRAL, "zerolinecolor": grid}
    axis = lines | {"zeroline": False, "showline": True, "ticks": "outside", "ticklen": 4, "automargin": True}
    axis |= {"title": {"standoff": 10, "font": {"size": 14}}, "tickfont": {"size": 13}}
    scene = lines | {"backgroundcolor": page}
    return go.layout.Template(
        layout=go.Layout(
            font={"family": FONT, "size": 14, "color": ink},
            title={"font": {"size": 15}, "x": 0.012, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 14}},
            paper_bgcolor=page,
            plot_bgcolor=page,
            colorway=DOMAINS,
            xaxis=axis,
            yaxis=axis,
            scene={"xaxis": scene, "yaxis": scene, "zaxis": scene},
            margin={"l": 76, "r": 24, "t": 24, "b": 64},
            legend={"font": {"size": 13}, "bgcolor": "rgba(0,0,0,0)"},
            hoverlabel={"align": "left", "bgcolor": page, "bordercolor": NEUTRAL, "font": {"color": ink}},
            hovermode="closest",
        )
    )


def colour_bar(title: str, **options: object) -> dict[str, Any]:
    """The key of a heat map or a contour."""
    heading = {"text": wrapped(title), "side": "right", "font": {"size": 13}}
    return {"title": heading, "tickfont": {"size": 12}, "thickness": 13, "outlinewidth": 0, "len": 1, **options}


def finish(figure: go.Figure, *, theme: str, height: int, width: int = 940, title: str = "") -> go.Figure:
    """Template, size, title, and a legend below the axes for which the figure grows line by line."""
    figure.update_layout(template=template(theme), width=width, height=height)
    if title:
        text = wrapped(title, min(110, width // 7))
        more = text.count("<br>")  # the first line of several begins higher
        figure.update_layout(title_text=text, title_pad_t=14 + 8 * (more > 0), margin_t=52 + 19 * more)
    names = [str(trace.name) for trace in figure.data if trace.showlegend and trace.name]
    if names:
        entry = max(64, 6.7 * max(len(line) for name in names for line in name.split("<br>")))
        columns = max(1, int((width - 100) // (entry + 46)))  # plotly adds the room for the symbol
        rows = [names[i : i + columns] for i in range(0, len(names), columns)]
        extra = 8 + sum(4 + 17 * max(name.count("<br>") + 1 for name in row) for row in rows)
        figure.update_layout(height=height + extra, margin_b=72 + extra)
        figure.update_legends(orientation="h", x=0, xanchor="left", yref="container", y=0, yanchor="bottom")
        figure.update_legends(entrywidth=entry, entrywidthmode="pixels", tracegroupgap=0)
    return figure


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _shaded(colour: str, setting: int) -> str:
    """A colour lightened or darkened as far as it stays at 2:1 or more from the white page and from the dark one."""
    share = SHADES[setting % len(SHADES)]
    goal = 255 if share > 0 else 0
    while True:
        channels = [round(c + (goal - c) * abs(share)) for c in _channels(colour)]
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
        if abs(share) < 0.05 or 0.07 <= 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] <= 0.47:
            return "#" + "".join(f"{c:02X}" for c in channels)
        share *= 0.9

"""Several figures as one: for a page that shows a picture where an explorer lives in a kernel."""

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

Plain = dict[str, Any]  # a figure, or a part of one, as plotly's JSON holds it
SOLID = ("scatter3d", "mesh3d", "cone", "surface")  # traces in three dimensions
LEFT, RIGHT, TOP, BOTTOM = 100, 84, 56, 96  # room around the axes of a tile, in pixels


def tiled(figures: Sequence[go.Figure | Plain], columns: int = 2, width: int = 1100, height: int = 430) -> go.Figure:
    """Figures side by side, row by row, each with its own axes, keys, legend, notes and title.

    One that has several axes from left to right takes a row of its own.

    Args:
        figures: At least one.
        columns: Figures in a row.
        width: Of the whole, in pixels.
        height: Of a row, in pixels.
    """
    plain = [figure.to_plotly_json() if isinstance(figure, go.Figure) else figure for figure in figures]
    cells = _cells([sum(key.startswith("xaxis") for key in one["layout"]) > 1 for one in plain], columns)
    n_rows = 1 + max(row for row, _, _ in cells)
    whole: Plain = {"data": [], "layout": {"annotations": [], "shapes": []}}
    total = n_rows * height
    for number, (one, (row, column, span)) in enumerate(zip(plain, cells, strict=True)):
        left = column * width / columns + max(LEFT, 20 + 6 * _longest_row(one["data"]))
        across = [left / width, ((column + span) * width / columns - RIGHT) / width]
        up = [1 - ((row + 1) * height - BOTTOM) / total, 1 - (row * height + TOP) / total]
        _put(whole, one, number + 1, across, up)
    first = plain[0]["layout"]
    margin = dict.fromkeys("lrtb", 0) | {"autoexpand": False}
    whole["layout"] |= {"template": first.get("template"), "width": width, "height": total, "margin": margin}
    return go.Figure(whole)


def _cells(wide: Sequence[bool], columns: int) -> list[tuple[int, int, int]]:
    """Row, column and columns spanned of each."""
    cells, row, column = [], 0, 0
    for is_wide in wide:
        span = columns if is_wide else 1
        if column + span > columns:
            row, column = row + 1, 0
        cells.append((row, column, span))
        column += span
    return cells


def _longest_row(traces: Sequence[Plain]) -> int:
    """Letters of the longest name of a row."""
    return max((len(name) for trace in traces for name in trace.get("y", ()) if isinstance(name, str)), default=0)


def _put(whole: Plain, one: Plain, number: int, across: Sequence[float], up: Sequence[float]) -> None:
    """Put a figure into a rectangle of another."""

    def x(share: float) -> float:
        return across[0] + share * (across[1] - across[0])

    def y(share: float) -> float:
        return up[0] + share * (up[1] - up[0])

    def renamed(reference: str) -> str:
        """`x2` → `x102` in the first figure: names of axes that no other figure has."""
        letters = reference.rstrip("0123456789")
        return f"{letters}{100 * number + int(reference[len(letters) :] or 1)}"

    layout = dict(one["layout"])
    for trace in one["data"]:  # axes that are as they always are need not be in the layout
        for axis in [] if trace["type"] in SOLID else ["xaxis", "yaxis"]:
            layout.setdefault(axis + trace.get(axis, "x")[1:], {})
    for key, axis in _starting(layout, "xaxis", "yaxis"):
        letter, place = key[0], x if key[0] == "x" else y
        domain = [min(max(place(share), 0.0), 1.0) for share in axis.get("domain", [0, 1])]
        anchor = axis.get("anchor", "y" if letter == "x" else "x")
        links = {"anchor": anchor if anchor == "free" else renamed(anchor), "automargin": False}
        links |= {k: renamed(axis[k]) for k in ("matches", "overlaying", "scaleanchor") if k in axis}
        whole["layout"][renamed(key)] = {**axis, "domain": domain, **links}
    for key, scene in _starting(layout, "scene"):
        whole["layout"][renamed(key)] = {**scene, "domain": {"x": [x(-0.2), x(1.2)], "y": [y(-0.1), y(1.1)]}}
    for trace in one["data"]:
        places = {"scene": "scene"} if trace["type"] in SOLID else {"xaxis": "x", "yaxis": "y"}
        moved: Plain = {key: renamed(trace.get(key, usual)) for key, usual in places.items()}
        if "colorbar" in trace:
            bar = trace["colorbar"]
            moved["colorbar"] = {**bar, "x": x(bar.get("x", 1.02)), "y": y(bar.get("y", 0.5)), "len": up[1] - up[0]}
        whole["data"].append({**trace, **moved, "showlegend": False})
    for kind in ("annotations", "shapes"):
        whole["layout"][kind] += [_moved(note, x, y, renamed) for note in layout.get(kind, ())]
    notes = [{"text": _legend(one["data"]), "y": y(0), "yanchor": "top", "yshift": -52, "font": {"size": 11}}]
    notes += [{"text": (layout.get("title") or {}).get("text"), "y": y(1), "yanchor": "bottom", "yshift": 28}]
    corner = {"x": x(0), "xref": "paper", "yref": "paper", "xanchor": "left", "align": "left", "showarrow": False}
    whole["layout"]["annotations"] += [{**note, **corner} for note in notes if note["text"]]


def _legend(traces: Sequence[Plain], width: int = 58) -> str:
    """The names of the traces with their colours, in lines of about so many characters."""
    lines, length = [""], 0
    for trace in traces:
        colour = (trace.get("line") or trace.get("marker") or {}).get("color")
        if trace.get("showlegend") and trace.get("name") and isinstance(colour, str):
            dotted = (trace.get("line") or {}).get("dash") == "dot"
            name = trace["name"].replace("<br>", " ")
            if length and length + len(name) > width:
                lines, length = [*lines, ""], 0
            lines[-1] += f'<span style="color:{colour}">{"┅┅" if dotted else "━━"}</span> {name}   '
            length += len(name) + 5
    return "<br>".join(lines)


def _starting(layout: Plain, *beginnings: str) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in layout.items() if key.startswith(beginnings))


def _moved(note: Plain, x: Any, y: Any, renamed: Any) -> Plain:
    """A note or a shape, on the axes that bear new names or in the part of the paper that is now its own."""
    moved = dict(note)
    for letter, place in (("x", x), ("y", y)):
        reference = note.get(f"{letter}ref", letter)
        if reference == "paper":
            moved |= {
                key: place(note[key]) for key in (letter, f"{letter}0", f"{letter}1") if note.get(key) is not None
            }
        else:
            axis, *kind = reference.split()  # "x2 domain" counts in shares of the axis
            moved[f"{letter}ref"] = " ".join([renamed(axis), *kind])
    return moved

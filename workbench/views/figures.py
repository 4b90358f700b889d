"""The projection in pictures: its trace over training, spectra, angles, the frame in 3-D, slices of the loss."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from .marks import scatter
from .palette import DASHES, Style, styles
from .panels import Part, Trace, assemble
from .sources import traced
from .theme import DOMAINS, INK, NEUTRAL, PAGE, SIZES, check, colour_bar, finish, safe, wrapped

SMALLEST = 1e-9  # where a logarithmic axis shows an exact zero
SCALE = "Viridis"
TRACED = {
    "leakage": "Leakage ‖Uᵀδ‖ / ‖δ‖ of the update<br>(share, log; lower protects more)",
    "removed_energy": "Energy inside ‖Uᵀx‖² / ‖x‖²<br>(share of what is projected)",
}
# A tick each decade; plotly enlarges powers by a quarter.
LOG = {"type": "log", "dtick": 1, "exponentformat": "power", "tickfont": {"size": 11}}


@traced
def projection_trace(
    history: pd.DataFrame | Mapping[str, pd.DataFrame], *, on: str = "page", theme: str = "light"
) -> go.Figure:
    """Leakage and removed energy at every step: what the constraint let through, and what it took.

    Args:
        history: A history, or label → history, with the column `step`, and `leakage` ‖Uᵀδ‖/‖δ‖ of the realised
            update or `removed_energy` ‖Uᵀx‖²/‖x‖² of what is projected, gradient or step; `random_floor` √(r/d) is
            dotted where present.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: A history lacks the columns.
    """
    check(theme, on)
    histories = {"run": history} if isinstance(history, pd.DataFrame) else dict(history)
    _require(histories, "a history")
    for label, rows in histories.items():
        if "step" not in rows or not {"leakage", "removed_energy"} & {*rows}:
            raise ValueError(
                f"expected step and leakage or removed_energy in the history of {label!r}, got {[*rows]}: "
                "only runs with a projection log them."
            )
    looks = styles({label: label for label in histories})
    panels = [name for name in TRACED if any(name in rows for rows in histories.values())]
    across: dict[str, Any] = {"title": {"text": "Optimizer step"}}
    parts: list[Part] = []
    for name in panels:
        known = {label: rows for label, rows in histories.items() if name in rows}
        lines = [_line(rows, name, label, looks[label], legend=not parts) for label, rows in known.items()]
        floors = _floors(histories, looks) if name == "leakage" else ()
        up: dict[str, Any] = (
            LOG | {"tickfont": {"size": 11 * SIZES[on].font}} if name == "leakage" else {"rangemode": "tozero"}
        )
        parts.append(Part([*lines, *floors], across, up | {"title": {"text": TRACED[name]}}))
    stacked = SIZES[on].stacked
    figure = assemble(parts, stacked=stacked, gap=0.2 if stacked else 0.13)
    height, width = 60 + 260 * len(panels) if stacked else 400, 940 if len(panels) == 2 else 600
    return finish(figure, theme=theme, height=height, width=width, on=on)


@traced
def block_heatmap(
    values: pd.DataFrame,
    title: str,
    label: str = "removed energy (share)",
    *,
    across: str = "Optimizer step",
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """A quantity by block and step, such as removed energy or leakage.

    Args:
        values: A row per block, in the order of the model, and a column per step.
        title: Above the figure.
        label: What the colour means, with its unit.
        across: What the columns are, where they are no steps.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.
    """
    if values.empty:
        raise ValueError(f"expected blocks × steps, got shape {values.shape}: log the blocks while training.")
    check(theme, on)
    cells = {
        "type": "heatmap",
        "z": values.to_numpy(dtype=float),
        "x": [safe(step) for step in values.columns],
        "y": [safe(block) for block in values.index],
        "colorscale": SCALE,
        "colorbar": colour_bar(label),
        "hovertemplate": f"%{{y}}<br>{safe(across).lower()} %{{x}}: %{{z:.4g}}<extra></extra>",
    }
    steps = {"title": {"text": safe(across)}, "type": "category"}
    blocks: dict[str, Any] = {"title": {"text": "Block, first to last"}, "type": "category", "autorange": "reversed"}
    blocks |= {"tickfont": {"size": (11 if len(values) > 16 else 13) * SIZES[on].font}}
    figure = assemble([Part([cells], steps, blocks | ({"dtick": 1} if len(values) <= 60 else {}))])
    height = min(max(160 + 18 * len(values), 260), 1200)
    return finish(figure, theme=theme, height=height, width=860, title=title, on=on)


@traced
def spectrum(
    singular_values: Mapping[str, Sequence[float]],
    random_floor: Mapping[str, Sequence[float]] | None = None,
    rank: int | None = None,
    *,
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """Singular values of the reference gradients on a logarithmic axis, a line per domain or block.

    Args:
        singular_values: Name → values, largest first.
        random_floor: Name → values for gradients without shared directions, dotted in the same colour.
        rank: How many directions are kept: a vertical line after them.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.
    """
    check(theme, on)
    _require(singular_values, "singular values")
    lines: list[Trace] = []
    floors = 0
    for number, (name, values) in enumerate(singular_values.items()):
        dash = [*DASHES.values()][number // len(DOMAINS) % 2]
        lines.append(_ranked(values, name, Style(DOMAINS[number % len(DOMAINS)], dash)))
        if random_floor and name in random_floor:
            floor = _ranked(random_floor[name], f"{name}: random floor", Style(DOMAINS[number % len(DOMAINS)], "dot"))
            lines.append(
                floor | {"name": "dotted: random floor of each"} if not floors else floor | {"showlegend": False}
            )
            floors += 1
    longest = max(map(len, singular_values.values()))
    across: dict[str, Any] = {"title": {"text": "Direction, by singular value"}, "range": [0.5, longest + 0.5]}
    across |= {"dtick": 1} if longest <= 12 else {"nticks": 10}
    up = {"title": {"text": "Singular value of the<br>reference gradients (log)"}, **LOG, **_ticks(singular_values)}
    figure = assemble([Part(lines, across, up)])
    if rank is not None:
        figure.add_vline(rank + 0.5, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
        at = {"x": rank + 0.5, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 5}
        figure.add_annotation(text=f"rank {rank} kept", showarrow=False, **at)
    return finish(figure, theme=theme, height=400, width=760, on=on)


def _ticks(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 where values span less than two decades, in which decades alone would be one or two."""
    known = [value for series in values.values() for value in series if value > 0]
    if not known or max(known) / min(known) > 100:
        return {}
    decades = range(math.floor(math.log10(min(known))), math.ceil(math.log10(max(known))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


@traced
def angles_heatmap(
    cosines: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    *,
    on: str = "page",
    theme: str = "light",
) -> go.Figure:
    """Cosines of principal angles, 1 where two subspaces share a direction and 0 where they are orthogonal.

    Args:
        cosines: Of shape (rows, columns); written into the cells of up to 12 columns.
        rows: Names, such as domains or layers.
        columns: Names, such as domains, or the number of the angle.
        title: Above the figure.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: The shape is not that of the names.
    """
    values = np.asarray(cosines, dtype=float)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise ValueError(
            f"expected cosines of shape ({len(rows)}, {len(columns)}) for the given names, got {values.shape}: "
            "give a name for every row and column."
        )
    check(theme, on)
    cells = {
        "type": "heatmap",
        "z": values,
        "x": [safe(name) for name in columns],
        "y": [safe(name) for name in rows],
        "zmin": 0,
        "zmax": 1,
        "colorscale": SCALE,
        "colorbar": colour_bar("cosine of the angle (1 is shared, 0 orthogonal)"),
        "hovertemplate": "%{y}<br>%{x}: %{z:.4f}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    } | ({"texttemplate": "%{z:.2f}"} if len(columns) <= 12 else {})
    bare = {"type": "category", "showline": False, "showgrid": False}
    figure = assemble([Part([cells], bare, bare | {"autorange": "reversed"})])
    height, width = min(max(150 + 38 * len(rows), 280), 900), min(max(320 + 60 * len(columns), 480), 940)
    return finish(figure, theme=theme, height=height, width=width, title=title, on=on)


@traced
def projection_frame(
    vectors: Mapping[str, Sequence[float]], title: str = "", *, on: str = "page", theme: str = "light"
) -> go.Figure:
    """The projection in three dimensions: arrows in the frame (u₁, u₂, remainder), over the protected plane.

    Args:
        vectors: Name → its coordinates along two directions of the subspace and along what lies outside: the
            safety gradient, its shadow in the subspace, what is kept, the realised update.
        title: Above the figure.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: A vector has not three finite coordinates.
    """
    _require(vectors, "vectors")
    arrows = {name: np.asarray(vector, dtype=float) for name, vector in vectors.items()}
    for name, arrow in arrows.items():
        if arrow.shape != (3,) or not np.isfinite(arrow).all():
            raise ValueError(f"expected 3 finite coordinates (u1, u2, remainder) for {name!r}, got {arrow}.")
    ends = np.stack([*arrows.values(), np.zeros(3)])
    size = float(np.abs(ends).max()) or 1.0
    # Equal units on all axes, and no axis so short that the frame becomes a sheet.
    low, high = np.minimum(ends.min(0), -0.3 * size) - 0.1 * size, np.maximum(ends.max(0), 0.3 * size) + 0.1 * size
    figure = go.Figure(_plane(low, high))
    for number, (name, arrow) in enumerate(arrows.items()):
        figure.add_traces(_arrow(wrapped(name), arrow, DOMAINS[number % len(DOMAINS)], 0.15 * size))
    axes = zip("xyz", ("u₁", "u₂", "remainder"), low, high, strict=True)
    small = {"nticks": 5, "tickfont": {"size": 11}}
    scene = {f"{axis}axis": {"title": {"text": name}, "range": [a, b], **small} for axis, name, a, b in axes}
    camera = {"eye": {"x": 0.98, "y": -1.5, "z": 0.58}, "center": {"x": 0, "y": 0, "z": -0.24}}
    figure.update_layout(scene=scene | {"aspectmode": "data", "camera": camera}, margin={"l": 20, "r": 20})
    return finish(figure, theme=theme, height=480, width=760, title=title, on=on)


@traced
def loss_slice(
    xs: Sequence[float], ys: Sequence[float], losses: Mapping[str, ArrayLike], *, on: str = "page", theme: str = "light"
) -> go.Figure:
    """Measured losses on the plane through θ of the projected direction and a direction inside the subspace.

    Args:
        xs: Steps along the projected safety direction.
        ys: Steps along the direction inside the subspace.
        losses: Name → losses of shape (len(ys), len(xs)), such as safety and reference.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.
        on: `"page"`, `"slide"` or `"column"`, as in `safety_utility`.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: A grid of losses has another shape.
    """
    check(theme, on)
    _require(losses, "losses")
    stacked = SIZES[on].stacked
    parts: list[Part] = []
    gap = 0.2 if stacked else 0.19
    length = (1 - gap * (len(losses) - 1)) / len(losses)
    for place, (name, grid) in enumerate(losses.items()):
        values = np.asarray(grid, dtype=float)
        if values.shape != (len(ys), len(xs)):
            raise ValueError(f"expected losses[{name!r}] of shape {(len(ys), len(xs))}, got {values.shape}: (y, x).")
        first = place * (length + gap)
        bar = {"x": 1.01, "y": 1 - first - length / 2, "len": length} if stacked else {"x": first + length + 0.01}
        contours = {
            "type": "contour",
            "x": [*xs],
            "y": [*ys],
            "z": values,
            "colorscale": SCALE,
            "ncontours": 16,
            "line": {"width": 0.6, "color": NEUTRAL},
            "colorbar": colour_bar("loss (nats)", **bar),
            "hovertemplate": "(%{x:.3g}, %{y:.3g}): %{z:.4g}<extra></extra>",
        }
        mark = {"color": PAGE["light"], "size": 12, "symbol": "star", "line": {"color": INK["light"], "width": 1.5}}
        words = {"text": ["θ"], "textposition": "top right", "textfont": {"color": PAGE["light"], "size": 16}}
        theta = scatter([0], [0], "markers+text", marker=mark, hoverinfo="skip", showlegend=False, **words)
        across = {
            "range": [min(xs), max(xs)],
            "title": {"text": "Along the projected safety<br>direction (distance in θ)"},
        }
        up: dict[str, Any] = {"range": [min(ys), max(ys)]}
        if stacked or not parts:
            up["title"] = {"text": "Along the direction inside<br>the subspace (distance in θ)"}
        parts.append(Part([contours, theta], across, up, name))
    figure = assemble(parts, stacked=stacked, gap=gap)
    finish(figure, theme=theme, height=60 + 280 * len(losses) if stacked else 420, on=on)
    return figure.update_layout(margin_t=44)


def _require(given: Mapping[str, Any], what: str) -> None:
    if not given:
        raise ValueError(f"expected {what} for at least one name, got an empty mapping: pass name → values.")


def _line(rows: pd.DataFrame, column: str, label: str, look: Style, legend: bool) -> Trace:
    known = rows.dropna(subset=[column])
    heights = known[column].clip(lower=SMALLEST) if column == "leakage" else known[column]
    return scatter(
        known["step"].tolist(),
        heights.tolist(),
        "lines",
        text=[f"{value:.3g}" for value in known[column]],  # an exact zero is told as such, though drawn above
        hovertemplate=f"<b>{safe(label)}</b><br>{column.replace('_', ' ')} %{{text}}, step %{{x}}<extra></extra>",
        line={"color": look.colour, "width": 2, "dash": look.dash},
        name=wrapped(label),
        legendgroup=label,
        showlegend=legend,
    )


def _floors(histories: Mapping[str, pd.DataFrame], looks: Mapping[str, Style]) -> Iterator[Trace]:
    """The leakage of a random direction, dotted: once where all runs share it, else in the colour of each."""
    floors = {label: rows for label, rows in histories.items() if "random_floor" in rows}
    if len({tuple(rows["random_floor"]) for rows in floors.values()}) == 1:
        floors = dict([next(iter(floors.items()))])
    for label, rows in floors.items():
        colour = looks[label].colour if len(floors) > 1 else NEUTRAL
        yield _line(rows, "random_floor", label, Style(colour, "dot"), legend=False)
    if floors:
        line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
        name = "leakage of a random direction, √(r/d)"
        yield scatter([None], [None], "lines", line=line, name=name, showlegend=True)


def _ranked(values: Sequence[float], name: str, look: Style) -> Trace:
    heights = [float(value) if value > 0 else math.nan for value in values]  # a logarithmic axis has no zero
    return scatter(
        range(1, len(heights) + 1),
        heights,
        "lines" if look.dash == "dot" else "lines+markers",
        line={"color": look.colour, "width": 2, "dash": look.dash},
        marker={"size": 6},
        hovertemplate="direction %{x}: %{y:.4g}",
        name=wrapped(name),
        showlegend=True,
    )


def _plane(low: np.ndarray, high: np.ndarray) -> go.Mesh3d:
    """The protected subspace: the plane without remainder."""
    x, y = [low[0], high[0], high[0], low[0]], [low[1], low[1], high[1], high[1]]
    faces = {"i": [0, 0], "j": [1, 2], "k": [2, 3]}
    return go.Mesh3d(x=x, y=y, z=[0] * 4, **faces, color=NEUTRAL, opacity=0.18, hoverinfo="skip", name="subspace")


def _arrow(name: str, tip: np.ndarray, colour: str, head: float) -> list[go.Scatter3d | go.Cone]:
    """A shaft, a head, and a dotted line from the tip down to the plane."""
    length = float(np.linalg.norm(tip))
    x, y, z = map(float, tip)
    neck = tip * max(1 - head / 2 / length, 0) if length else tip  # a shaft to the tip would stick out
    text = f"<b>{name}</b><br>u₁ {x:.3g}, u₂ {y:.3g}, remainder {z:.3g}"
    shared = {"legendgroup": name, "hoverinfo": "text", "hovertext": text}
    shaft = {"mode": "lines", "line": {"color": colour, "width": 7}, "name": name, "showlegend": True}
    drop = {"mode": "lines", "line": {"color": colour, "width": 2, "dash": "dot"}, "showlegend": False}
    parts = [
        go.Scatter3d(x=[0, neck[0]], y=[0, neck[1]], z=[0, neck[2]], **shaft, **shared),
        go.Scatter3d(x=[x, x], y=[y, y], z=[z, 0], **drop, **shared),
    ]
    if length:
        u, v, w = tip / length
        cone = {"sizemode": "absolute", "sizeref": head, "anchor": "tip", "showscale": False}
        hue = {"colorscale": [[0, colour], [1, colour]], "showlegend": False}
        parts.append(go.Cone(x=[x], y=[y], z=[z], u=[u], v=[v], w=[w], **cone, **hue, **shared))
    return parts

"""What runs logged while they trained, step by step: a panel for each measure, a line for each run."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from .palette import Style, styles
from .theme import finish, safe

TITLES = {
    "loss": "Loss",
    "leakage": "Leakage (log, ↓ better)",
    "utility": "Utility (↑ better)",
    "safety": "Safety (↑ better)",
    "over_refusal": "Over-refusal (↓ better)",
    "toxicity": "Toxicity (↓ better)",
    "faithfulness": "Faithfulness (↑ better)",
}
# What the trainer reports beside the loss, and what says of a row which it is: neither is drawn unless asked for.
ASIDE = {"step", "evaluation", "epoch", "num_tokens", "learning_rate"}
MOST_POINTS = 300  # a line that is longer is drawn as means over as many stretches
COLUMNS = {1: 1, 2: 2, 4: 2}  # panels side by side, by how many there are; else three
GAP = 0.07  # between panels side by side, as a share of the width
# In pixels: above a panel, the panel, its numbers, and what is below the last.
TITLE, PANEL, TICKS, BELOW = 26, 130, 28, 16


@dataclass
class Track:
    """What one run has logged so far.

    Attributes:
        run_id: Of its record.
        label: What figures call its setting.
        technique: What it is a setting of.
        n_steps: That it is to take.
        curves: Steps and values of every measure.
        scores: The measures that come from evaluations.
    """

    run_id: str
    label: str
    technique: str = "plain"
    n_steps: int = 0
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    scores: dict[str, None] = field(default_factory=dict)

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a row of a history; what is missing in it, or no number, is passed over."""
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if is_number and name not in ASIDE:
                steps, values = self.curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
                if row.get("evaluation"):
                    self.scores[name] = None


def measures_of(tracks: Iterable[Track]) -> list[str]:
    """All that was logged: the loss and the leakage, the scores as a whole, those of single suites, then all else."""
    tracks = [*tracks]
    known = list(dict.fromkeys(name for track in tracks for name in track.curves))
    scores = {name for track in tracks for name in track.scores}
    first = [name for name in ("loss", "leakage") if name in known]
    kinds = [[n for n in known if n in scores and ("/" in n) == single] for single in (False, True)]
    return list(dict.fromkeys([*first, *kinds[0], *kinds[1], *known]))


def main_measures(tracks: Iterable[Track]) -> list[str]:
    """What is drawn unless said otherwise: the loss, the leakage, and the scores that no single suite gives."""
    tracks = [*tracks]
    scores = {name for track in tracks for name in track.scores if "/" not in name}
    return [name for name in measures_of(tracks) if name in ("loss", "leakage") or name in scores]


def training_lines(tracks: Sequence[Track], measures: Sequence[str] = (), *, theme: str = "light") -> go.Figure:
    """Measures of runs against their steps, a panel each; the last run's lines are strong, those of the others faint.

    Args:
        tracks: The runs, in their order. Those of one label look alike.
        measures: What is drawn; none takes `main_measures`.
        theme: `"light"` or `"dark"`.
    """
    names = [*measures] or main_measures(tracks) or ["loss"]
    looks = styles({track.label: track.technique for track in tracks})
    n_columns = COLUMNS.get(len(names), 3)
    n_rows = math.ceil(len(names) / n_columns)
    height = n_rows * (TITLE + PANEL + TICKS)
    last = max((max([track.n_steps, *steps]) for track in tracks for steps, _ in track.curves.values()), default=1)
    layout: dict[str, Any] = {"annotations": []}
    data: list[dict[str, Any]] = []
    width = (1 - GAP * (n_columns - 1)) / n_columns
    for number, name in enumerate(names):
        row, column = divmod(number, n_columns)
        key = str(number + 1) if number else ""
        left, top = column * (width + GAP), 1 - (row / n_rows + TITLE / height)
        step = {"range": [0, last], "nticks": 6}
        if number + n_columns >= len(names):
            step["title"] = {"text": "Optimizer step", "font": {"size": 12}, "standoff": 4}
        layout[f"xaxis{key}"] = {"domain": [left, left + width], "anchor": f"y{key}", **step}
        layout[f"yaxis{key}"] = {"domain": [top - PANEL / height, top], "anchor": f"x{key}", **_scale(name, tracks)}
        place = {"x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        title = {"text": safe(TITLES.get(name, name)), "showarrow": False, "font": {"size": 13}}
        layout["annotations"].append(place | title)
        axes = {"xaxis": f"x{key}", "yaxis": f"y{key}"}
        data += [line | axes for line in _lines(tracks, name, looks, legend=number == 0)]
    # Checking every value takes longer than all else; the tests check every kind of figure instead.
    figure = finish(go.Figure(data, layout, _validate=False), theme=theme, height=height + BELOW)
    legend = figure.layout.height - height - BELOW
    return figure.update_layout(margin={"l": 48, "r": 16, "t": 0, "b": BELOW + legend})


def _lines(tracks: Sequence[Track], name: str, looks: Mapping[str, Style], legend: bool) -> Iterator[dict[str, Any]]:
    named = set[str]()
    for track in tracks:
        if name not in track.curves and not legend:
            continue
        steps, values = _thinned(*track.curves.get(name, ([], [])))
        look, last = looks[track.label], track is tracks[-1]
        seldom = name in track.scores
        yield {
            "type": "scatter",
            "mode": "lines+markers" if seldom else "lines",
            "x": steps,
            "y": values,
            "line": {"color": look.colour, "dash": look.dash, "width": 2.4 if last else 1.4},
            "marker": {"size": 6 if last else 4, "symbol": "circle" + look.fill},
            "opacity": 1.0 if last else 0.75,
            "name": safe(track.label),
            "legendgroup": safe(track.label),
            "showlegend": legend and track.label not in named,
            "hovertemplate": f"<b>{safe(track.label)}</b><br>{safe(track.run_id)}"
            "<br>step %{x}: %{y:.4g}<extra></extra>",
        }
        named.add(track.label)


def _thinned(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """A line of few points, each the mean of a stretch."""
    stretch = math.ceil(len(steps) / MOST_POINTS)
    if stretch <= 1:
        return [*steps], [*values]
    parts = [slice(start, start + stretch) for start in range(0, len(steps), stretch)]
    means = [sum(values[part]) / len(values[part]) for part in parts]
    return [sum(steps[part]) / len(steps[part]) for part in parts], means


def _scale(name: str, tracks: Sequence[Track]) -> dict[str, Any]:
    """Rates from 0 to 1, the leakage by decades, all else as it comes."""
    values = [value for track in tracks for value in track.curves.get(name, ([], []))[1]]
    if name == "leakage":
        return {"type": "log", "exponentformat": "power", "dtick": 1, "tickfont": {"size": 11}}
    is_rate = any(name in track.scores for track in tracks) and all(0 <= value <= 1 for value in values)
    return {"range": [-0.04, 1.04], "nticks": 6} if is_rate else {"nticks": 6}

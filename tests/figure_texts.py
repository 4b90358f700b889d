"""What a reader of a figure can come to see: all its text, without the keys that nobody is shown."""

import plotly.graph_objects as go

KEYS = ("legendgroup", "customdata", "meta")


def shown_text(figure: go.Figure) -> str:
    """Names, hovers, titles, notes and ticks of a figure, one a line."""
    return "\n".join(_strings(figure.to_plotly_json()))


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [part for name, part in value.items() if name not in KEYS]
    return [text for part in value for text in _strings(part)] if isinstance(value, list | tuple) else []

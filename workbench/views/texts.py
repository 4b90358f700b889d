"""Tables of texts: what a model answered, what a pair holds."""

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

STYLES: Any = [
    {"selector": "th, td", "props": "text-align: left; vertical-align: top"},
    {"selector": "td", "props": "white-space: pre-wrap; max-width: 60ch"},
]


def text_table(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> "Styler":
    """A table to be read, as a notebook shows it: texts in full and from the left, wrapped, with their line breaks.

    Lists have a line for each of their members. Markup in a text is shown as it is written, and dollar signs in it make
    no formula. Rows that are only numbered go without their numbers.

    Args:
        rows: A table, or one mapping for each row, as `show_answers` and `show_pairs` give them.
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([*rows])
    numbered = isinstance(table.index, pd.RangeIndex)
    # All is escaped here: what pandas escapes are texts in cells alone, neither those in lists nor the names of axes.
    escaped = table.map(_told).rename(index=_told, columns=_told).rename_axis(index=_named, columns=_named)
    styled = escaped.style.set_table_styles(STYLES).set_table_attributes('class="tex2jax_ignore mathjax_ignore"')
    return styled.hide() if numbered else styled


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(map(_told, value))
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def _named(name: Any) -> str | None:
    return None if name is None else _told(name)  # an empty name would have a row of its own

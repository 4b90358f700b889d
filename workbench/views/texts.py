"""Tables of texts: what a model answered, what a pair holds."""

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

    Markup in a text is shown as it is written, and dollar signs in it make no formula. Rows that are only numbered go
    without their numbers.

    Args:
        rows: A table, or one mapping for each row, as `show_answers` and `show_pairs` give them.
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([*rows])
    styled = table.style.format(escape="html").format_index(escape="html").format_index(escape="html", axis="columns")
    styled = styled.set_table_styles(STYLES).set_table_attributes('class="tex2jax_ignore mathjax_ignore"')
    return styled.hide() if isinstance(table.index, pd.RangeIndex) else styled

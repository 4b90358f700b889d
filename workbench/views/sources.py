"""Where a figure comes from, in it and in its exports: the runs, and the function that drew it with its arguments."""

import functools
import inspect
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import pandas as pd
import plotly.graph_objects as go

KEY = "workbench"  # in layout.meta, and in the pictures
P = ParamSpec("P")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_ENDS = 33  # the signature and the chunk IHDR, which comes first


def traced(draw: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """Makes a figure function write into `layout.meta` that it drew the figure, of which runs, with which arguments.

    Runs are those of the tables it was given that are completed. Arguments that are no plain values are told by kind.
    """
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        figure = draw(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        source = {
            "function": draw.__name__,
            "arguments": {name: _told(value) for name, value in given.items()},
            "run_ids": [*dict.fromkeys(run for value in given.values() for run in _runs(value))],
        }
        figure.layout.meta = {KEY: source}
        return figure

    return drawn


def source_of(figure: go.Figure | str | Path) -> dict[str, Any] | None:
    """What a figure of this package says about itself; None for any other.

    Args:
        figure: A figure, or a file that `save_figure` wrote: PNG, SVG, or plotly's JSON.

    Returns:
        `function`, `arguments` and `run_ids`: `wb.load_runs(folder).query("run_id in @run_ids")` has the runs.
    """
    if isinstance(figure, go.Figure):
        meta = figure.layout.meta
        return dict(meta[KEY]) if isinstance(meta, Mapping) and KEY in meta else None
    content = Path(figure).read_bytes()
    if content.startswith(_SIGNATURE):
        found = re.search(rb"zTXt" + KEY.encode() + rb"\0\0", content)
        if not found:
            return None
        return json.loads(zlib.decompressobj().decompress(content[found.end() :]))
    text = content.decode("utf-8")
    if "<svg" in text[:2000]:
        told = re.search(rf'<metadata id="{KEY}">(.*?)</metadata>', text, re.DOTALL)
        return json.loads(told[1]) if told else None
    return (json.loads(text).get("layout", {}).get("meta") or {}).get(KEY)


def signed(picture: bytes, figure: go.Figure) -> bytes:
    """A picture with its figure's source inside: a text chunk of a PNG, the metadata of an SVG."""
    source = source_of(figure)
    if source is None:
        return picture
    text = json.dumps(source).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    if not picture.startswith(_SIGNATURE):
        mark = f'<metadata id="{KEY}">{text}</metadata>'.encode()
        opening = re.search(rb"<svg\b[^>]*>", picture)
        return picture if opening is None else picture[: opening.end()] + mark + picture[opening.end() :]
    data = b"zTXt" + KEY.encode() + b"\0\0" + zlib.compress(text.encode())
    chunk = (len(data) - 4).to_bytes(4) + data + zlib.crc32(data).to_bytes(4)
    return picture[:_HEADER_ENDS] + chunk + picture[_HEADER_ENDS:]


def _told(value: Any) -> Any:
    """A plain value as it is, a container of plain values as JSON has it, all else by its kind and shape."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return {str(name): _told(item) for name, item in value.items()}
    if isinstance(value, list | tuple) and len(value) <= 100:
        return [_told(item) for item in value]
    return type(value).__name__


def _runs(value: Any) -> list[str]:
    """The ids of the completed runs in a table, or in a mapping of tables."""
    if isinstance(value, Mapping):
        return [run for item in value.values() for run in _runs(item)]
    if not isinstance(value, pd.DataFrame) or "run_id" not in value:
        return []
    done = value[value["status"].eq("completed")] if "status" in value else value
    return [str(run) for run in done["run_id"].dropna()]

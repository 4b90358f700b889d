"""Still pictures: a figure as a PNG or SVG file, and a figure in a notebook that also shows where no script runs."""

import base64
import contextlib
import json
import os
import queue
import threading
import warnings
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from .sources import signed
from .theme import CONFIG

NO_BROWSER = (
    "No picture was made: expected a Chrome or Chromium to draw it, got {found}. Run `plotly_get_chrome`, "
    "install the system's chromium package, or set BROWSER_PATH to a browser that starts."
)
_running: dict[str, Any] = {}  # the browser in use, and the thread of its server
_broken: set[str] = set()
_one_at_a_time = threading.Lock()  # kaleido's server mixes up the answers to simultaneous callers


def save_figure(figure: go.Figure, path: str | Path, scale: float = 2) -> Path | None:
    """Write a figure as PNG, as SVG, or as the JSON that plotly reads, by the suffix of the path.

    The first picture starts a browser, which ends with the interpreter; the others are quick. Each file says which runs
    it shows and what drew it, see `source_of`.

    Args:
        figure: What to draw, in its own size.
        path: Ends in `.png`, `.svg` or `.json`.
        scale: Pixels of a PNG per pixel of the figure: 5/3 makes 1600 × 900 of a slide.

    Returns:
        The path, or None after a warning where no browser could be found or started.

    Raises:
        ValueError: The suffix is another.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "json"):
        raise ValueError(f"expected a path that ends in .png, .svg or .json, got {path}: name one of them.")
    drawn = str(pio.to_json(figure)).encode() if kind == "json" else picture(figure, scale, kind)
    if drawn is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn)
    return path


def save_png(figure: go.Figure, path: str | Path, scale: float = 2) -> Path | None:
    """`save_figure`, by the name that says what most are."""
    return save_figure(figure, path, scale)


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook: interactive in Jupyter, a picture where a saved notebook is read.

    Both lie in one output: GitHub, nbviewer and a converted notebook show the PNG, and so does JupyterLab until the
    pointer enters it, in the figure's own size. Where the frontend needs another renderer (a terminal, Colab), or no
    browser can draw the PNG, plotly's own display is used.
    """
    drawn = picture(figure, scale=1) if str(pio.renderers.default).startswith("plotly_mimetype") else None
    if drawn is None:
        figure.show(config=CONFIG)
        return
    from IPython.display import display

    bundle = {
        "application/vnd.plotly.v1+json": json.loads(pio.to_json(figure)) | {"config": CONFIG},
        "image/png": base64.b64encode(drawn).decode(),
        "text/plain": "plotly figure",
    }
    display(bundle, raw=True)


def find_browser() -> str | None:
    """The browser that draws pictures: `BROWSER_PATH`, else an installed Chrome or Chromium, else None."""
    from choreographer.browsers.chromium import Chromium

    path = os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False)
    return path if path and Path(path).is_file() else None


def picture(figure: go.Figure, scale: float, kind: str = "png") -> bytes | None:
    """A figure as the bytes of a PNG or an SVG, or None after a warning where no browser could be found or started."""
    browser = find_browser()
    if browser and browser not in _broken:
        with _one_at_a_time:
            drawn = _draw(browser, figure, {"format": kind, "scale": scale if kind == "png" else 1})
        if drawn is not None:
            return signed(drawn, figure)
        _broken.add(browser)
    found = f"{browser}, which does not start" if browser else os.environ.get("BROWSER_PATH") or "none"
    warnings.warn(NO_BROWSER.format(found=found), stacklevel=3)
    return None


def _draw(browser: str, figure: go.Figure, options: dict[str, Any]) -> bytes | None:
    server = _server(browser)
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(figure, options, answers), daemon=True).start()
    while server.is_alive():
        with contextlib.suppress(queue.Empty):
            answer = answers.get(timeout=0.1)
            if isinstance(answer, Exception):
                raise answer
            return answer
    return None


def _ask(figure: go.Figure, options: dict[str, Any], answers: "queue.SimpleQueue[bytes | Exception]") -> None:
    """Ask kaleido for a picture, in a thread of its own: where the browser fails, this call never returns."""
    import kaleido

    try:
        answers.put(kaleido.calc_fig_sync(figure, opts=options))
    except Exception as error:  # handed to the caller's thread
        answers.put(error)


def _server(browser: str) -> threading.Thread:
    """Kaleido's drawing server for a browser, started once: its thread ends where the browser does not start."""
    import kaleido

    if _running.get("browser") != browser or not _running["server"].is_alive():
        kaleido.stop_sync_server(silence_warnings=True)
        others = set(threading.enumerate())
        # Without mathjax=False every page would ask a remote server for MathJax, which no figure here needs.
        kaleido.start_sync_server(silence_warnings=True, path=browser, mathjax=False)
        server = next(thread for thread in threading.enumerate() if thread not in others)
        _running.update(browser=browser, server=server)
    return _running["server"]

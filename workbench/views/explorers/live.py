"""What explorers are made of: a live plot, and a box of controls and plots that leaves a picture without a kernel.

A `plotly.graph_objects.FigureWidget` ships 5 MB of JavaScript each and now and then draws empty axes. A `LivePlot`
takes whole figures instead, from the same pure functions as every still figure, and all plots of a kernel share
one copy of plotly.js.
"""

import base64
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import ipywidgets
import plotly.graph_objects as go
import plotly.io as pio
import traitlets
from plotly.offline import get_plotlyjs

from ..images import picture
from ..theme import CONFIG, GRID, INK, PAGE

VIEW = "application/vnd.jupyter.widget-view+json"
EXPLORER, STILL = "workbench-explorer", "workbench-still"
# The page shows the live view where it exists, and else the picture in the output below it. JupyterLab takes no second
# choice from an output whose widget is gone, so that the two are outputs of their own.
OUTPUT = ".jp-OutputArea-child"
ONE_OF_TWO = (
    f"{OUTPUT}:has(.{EXPLORER}) + {OUTPUT}:has(.{STILL}), "
    f"{OUTPUT}:not(:has(.{EXPLORER})):has(+ {OUTPUT} .{STILL}) {{ display: none }}"
)


def script(*names: str) -> str:
    """Files that lie beside this one, as one script or style sheet of a widget."""
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


class PlotlyLibrary(ipywidgets.Widget):
    """plotly.js, packed by gzip, once for all plots of a kernel; it has no view of its own."""

    source = traitlets.Bytes().tag(sync=True)
    _shared: ClassVar["PlotlyLibrary | None"] = None

    @classmethod
    def shared(cls) -> "PlotlyLibrary":
        """The kernel's one copy, sent to the page when the first plot is made."""
        if cls._shared is None or cls._shared.comm is None:  # closed by Widget.close_all
            cls._shared = cls(source=gzip.compress(get_plotlyjs().encode()))
        return cls._shared


class LivePlot(anywidget.AnyWidget):
    """A plotly figure that is drawn again whenever another is assigned to `figure`.

    Where every millisecond counts, assign a figure as plain data, `{"data": [...], "layout": {...}}`: to make, compare
    and write a `plotly.graph_objects.Figure` of twenty traces takes ten times as long.

    `marks` are shapes, as plotly's layout holds them, and `over` traces, as plain data, that lie over the figure's own
    and are moved without the figure being drawn again. Set figure and `over` within `hold_sync()` to draw once.

    A click on a point that carries `customdata`, or the arrow keys and Enter, put that value into `chosen`, as
    `{"value": customdata, "times": how often a point was chosen}`; a click on a cell of a heat map puts its names of
    row and column there. The plot takes the tones of the page, light or dark; `description` is read aloud in its place.
    """

    _esm = script("page.js", "live.js")
    _json = traitlets.Unicode("{}").tag(sync=True)
    _library = traitlets.Instance(PlotlyLibrary).tag(sync=True, **ipywidgets.widget_serialization)
    _tones = traitlets.List([[tone["light"], tone["dark"]] for tone in (INK, PAGE, GRID)]).tag(sync=True)
    _config = traitlets.Dict(CONFIG).tag(sync=True)
    description = traitlets.Unicode("plot").tag(sync=True)
    marks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    over: traitlets.List[Any] = traitlets.List().tag(sync=True)
    chosen = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    figure = traitlets.Union([traitlets.Instance(go.Figure), traitlets.Dict()])

    def __init__(self, figure: go.Figure | dict[str, Any], **traits: Any) -> None:
        """Show a figure; further traits are those of any widget."""
        # All of the state travels with the opening of the widget: a plot that is filled later may be drawn empty.
        json = str(pio.to_json(figure, validate=False))
        super().__init__(figure=figure, _json=json, _library=PlotlyLibrary.shared(), **traits)

    @traitlets.observe("figure")
    def _redraw(self, change: dict[str, Any]) -> None:
        self._json = str(pio.to_json(change["new"], validate=False))


class Keys(anywidget.AnyWidget):
    """Shows nothing, and keeps keys that are pressed in the explorer around it from being commands of the notebook."""

    _esm = script("keys.js")


class Explorer(ipywidgets.VBox):
    """Controls and live plots over plain data; the picture of `still` is shown where there is no kernel.

    Subclasses define their traits, build their children once, and observe their own traits in `__init__`: showing an
    explorer twice makes a second view of the same widgets and no further observer.
    """

    def __init__(self, children: Sequence[ipywidgets.Widget], **traits: Any) -> None:
        """Stack the children; further traits are those of any box."""
        self._keys = Keys(layout={"display": "none"})
        super().__init__(**traits)
        self.stack(children)
        self.add_class(EXPLORER)

    def stack(self, children: Sequence[ipywidgets.Widget]) -> None:
        """Show these children, one below the other, and no others."""
        self.children = [*children, self._keys]

    def still(self) -> go.Figure:
        """What the explorer shows now, as one figure."""
        # All explorers define it; this tells the author of another. No abstractmethod: widgets have a metaclass of
        # their own, which is none of abc's, so that nothing would check it.
        raise NotImplementedError(f"{type(self).__name__} has no still figure: define still().")

    def close(self) -> None:
        """End the explorer and all its parts."""
        for part in reversed([*_parts(self)]):
            part.close()
        super().close()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        name = type(self).__name__
        view = self._repr_mimebundle_()[VIEW]
        display({VIEW: view, "text/plain": f"{name}: live while its kernel runs"}, raw=True)
        if shown := self._picture():
            display(shown, raw=True)

    def _picture(self) -> dict[str, str] | None:
        """The picture of `still` as an output, or None where no browser can draw it."""
        drawn = picture(self.still(), scale=1)
        if drawn is None:
            return None
        name, png = type(self).__name__, base64.b64encode(drawn).decode()
        image = f'<style>{ONE_OF_TWO}</style><img class="{STILL}" alt="{name}" src="data:image/png;base64,{png}">'
        return {"text/html": image, "image/png": png, "text/plain": f"{name}, a picture"}


def _parts(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    for child in box.children:
        yield child
        if isinstance(child, ipywidgets.Box):
            yield from _parts(child)

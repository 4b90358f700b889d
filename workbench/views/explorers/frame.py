"""Three dimensions on a small canvas: arrows over the protected plane, in the frame (u₁, u₂, remainder).

plotly's own 3-D takes seconds where no GPU draws, and forgets its camera with every new figure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from ..theme import DOMAINS, FONT, INK, NEUTRAL, PAGE
from .live import script

HOME = (0.25, 0.42)  # yaw and pitch of the first look, in radians
TONES = {name: [tone["light"], tone["dark"]] for name, tone in (("ink", INK), ("page", PAGE))}
TONES |= {"neutral": [NEUTRAL, NEUTRAL], "font": [FONT, FONT]}


class Frame(anywidget.AnyWidget):
    """Arrows in a frame of three orthogonal axes, over the plane of the first two; turned by dragging or arrow keys.

    The third axis is always drawn upright, and the scale does not depend on the arrows: what moves from one step to
    the next is what has changed. In the page, `canvas.dataset.points` tells where each tip and axis lies, as
    [x, y, depth] in pixels.

    Attributes:
        vectors: Name → coordinates of its tip, (3,); assign another mapping to draw again.
        axes: Names of the three axes.
        ranges: Least and most of each axis; the plane is that of the first two.
        stretch: Factor by which the first two coordinates are drawn longer.
        yaw: Turn about the third axis, in radians.
        pitch: Height of the look, in radians; above the plane if positive.
        colours: Name → `#RRGGBB`; the others take those of the theme in turn.
        title: Above the canvas.
        description: Read aloud in its place.
    """

    _esm = script("page.js", "frame.js")
    _css = script("frame.css")
    vectors = traitlets.Dict()
    colours = traitlets.Dict()
    axes = traitlets.List(["u₁", "u₂", "remainder"]).tag(sync=True)
    ranges = traitlets.List([[-1.0, 1.0], [-0.25, 1.0], [0.0, 1.15]]).tag(sync=True)
    stretch = traitlets.Float(1.0, min=0.01).tag(sync=True)
    yaw = traitlets.Float(HOME[0]).tag(sync=True)
    pitch = traitlets.Float(HOME[1]).tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode("arrows in three dimensions").tag(sync=True)
    _arrows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _home = traitlets.List(list(HOME)).tag(sync=True)
    _tones = traitlets.Dict(TONES).tag(sync=True)

    def __init__(self, vectors: Mapping[str, Sequence[float]], **traits: Any) -> None:
        """Show the vectors; further traits are those of the class and of any widget.

        Raises:
            traitlets.TraitError: A vector has not three finite coordinates.
        """
        super().__init__(**traits)
        self.vectors = dict(vectors)

    @traitlets.validate("vectors")
    def _checked(self, proposal: Any) -> dict[str, list[float]]:
        found = {name: [float(value) for value in tip] for name, tip in proposal["value"].items()}
        for name, tip in found.items():
            if len(tip) != 3 or not all(map(math.isfinite, tip)):
                raise traitlets.TraitError(f"expected 3 finite coordinates for {name!r}, got {tip}.")
        return found

    @traitlets.observe("vectors")
    def _redraw(self, change: Any) -> None:
        spare = {name: DOMAINS[i % len(DOMAINS)] for i, name in enumerate(self.vectors)}
        colours = spare | self.colours
        self._arrows = [{"name": name, "tip": tip, "colour": colours[name]} for name, tip in self.vectors.items()]

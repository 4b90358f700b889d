"""The geometry explorer: spectra, angles, the frame of every step, maps of blocks × steps, and slices of the loss."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Self

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.study.runs import Run

from ..figures import projection_frame
from ..theme import DOMAINS, safe
from .frame import Frame
from .geometry_parts import (
    angles_at,
    angles_base,
    cell_marks,
    kept_survey,
    marked,
    rank_mark,
    short_names,
    slice_figure,
    spectrum_at,
    spectrum_base,
    step_map,
)
from .live import Explorer, LivePlot
from .steps import AXES, DESCENT, KEPT, OPTIMIZER, REALISED, SHADOW, BlockSteps
from .tiles import Plain, tiled

if TYPE_CHECKING:
    from workbench.geometry.landscape import LossPlane
    from workbench.geometry.survey import Survey

COLOURS = dict(zip((DESCENT, SHADOW, KEPT, OPTIMIZER, REALISED), DOMAINS, strict=False))
STRETCHES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
# What is drawn anew when a control is moved; everything else stays as it is.
TOUCHES = {
    "block": ("frame", "marks", "spectrum", "words"),
    "rank": ("marks", "angles", "words"),
    "domain": ("spectrum", "angles", "words"),
    "against": ("spectrum", "angles", "words"),
    "step": ("frame", "marks", "slice", "words"),
    "quantity": ("map",),
    "stretch": ("frame",),
}


class GeometryExplorer(Explorer):
    """Layer, rank, domain and step controls over what protects an ability and what a step does to it.

    Every control is a trait: set it from code, or observe it. What is shown is plain data: `spectrum`, `angles`,
    `kept_energy`, `removed_energy`, `frame`, `map`, `slice`, `readings`. Parts that are not given are not shown. A
    click into a map chooses its block and step.

    Example:
        ``GeometryExplorer(survey(gradients, probe=safety), callback.block_history, {3: loss_plane(...)})``

    Attributes:
        block: A layer or a tensor, as subspaces and training name it.
        rank: How many directions of each domain are kept.
        domain: Whose spectrum and energy are read.
        against: The domain that its angles are taken with.
        step: Of the training.
        quantity: Of `QUANTITIES`: what the map of blocks × steps shows.
        stretch: How much longer the frame draws what lies inside the subspace.

    Args:
        survey: Of `workbench.geometry.survey.survey`: spectra, angles, and a probe's energy inside.
        steps: The ``block_history`` of a `GradientProjection` that has trained, in the same scope: the frame of each
            step, and maps of leakage and energy.
        slices: Step → losses that were measured on a plane there, of `workbench.geometry.landscape.loss_plane`.

    Raises:
        ValueError: Nothing is given, or survey and steps have no block in common.
    """

    block = traitlets.Unicode()
    rank = traitlets.Int(0)
    domain = traitlets.Unicode()
    against = traitlets.Unicode()
    step = traitlets.Int(0)
    quantity = traitlets.Unicode()
    stretch = traitlets.Float(1.0)

    def __init__(
        self,
        survey: "Survey | None" = None,
        steps: pd.DataFrame | Sequence[Mapping[str, Any]] | None = None,
        slices: "Mapping[int, LossPlane] | None" = None,
    ) -> None:
        """Draw every part once."""
        if survey is None and steps is None and not slices:
            raise ValueError("expected a survey, the steps of a training or slices of the loss, got none of them.")
        self.survey, self.steps = survey, None if steps is None else BlockSteps(steps)
        self.slices = {int(step): plane for step, plane in sorted((slices or {}).items())}
        self.blocks = _shared([list(part.blocks) for part in (self.survey, self.steps) if part is not None])
        self._labels = short_names(self.blocks)
        self._surveyed = {} if survey is None else {block: i for i, block in enumerate(survey.blocks)}
        self._parts: dict[str, Any] = {}
        self._bases: dict[str, Plain] = {}
        self._shown: int | None = None  # the step of the slice that is drawn
        self._links: list[traitlets.link] = []
        self._options: dict[str, list[Any]] = self._choices()
        super().__init__([])
        for name, value in self._firsts().items():
            setattr(self, name, value)
        self._words = ipywidgets.HTML()
        self._build()
        for part in (*self._parts, "marks", "words"):
            getattr(self, f"_draw_{part}")()
        for name in {"angles", "map"} & {*self._parts}:
            self._parts[name].observe(self._chosen, "chosen")
        controls = ipywidgets.Box(self._controls(), layout={"flex_flow": "row wrap", "align_items": "center"})
        panels = ipywidgets.Box([*self._parts.values()], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        self.stack([controls, self._words, panels])

    @classmethod
    def from_run(
        cls, run: Run, survey: "Survey | None" = None, slices: "Mapping[int, LossPlane] | None" = None
    ) -> Self:
        """What a run with a projection measured of every block at every step, from its record's ``blocks.parquet``.

        Without a survey the spectrum is that of the run's last basis, over all domains together, where it kept one.

        Raises:
            FileNotFoundError: The run has none: it was trained without a projection.
        """
        file, spectrum = run.file("blocks.parquet"), run.file("spectrum.parquet")
        if not file.is_file():
            raise FileNotFoundError(f"expected {file}, which runs with a GradientProjection write: choose such a run.")
        if survey is None and spectrum.is_file():
            survey = kept_survey(pd.read_parquet(spectrum))
        return cls(survey, pd.read_parquet(file), slices)

    # --- what is shown, as plain data ---------------------------------------------------------------------------------

    @property
    def spectrum(self) -> pd.DataFrame:
        """Singular values of the block: a row per direction, a column per domain and random floor."""
        assert self.survey is not None
        at = self._row
        values = {name: pd.Series(table[at]) for name, table in self.survey.singular_values.items()}
        floors = {f"{name}: random floor": pd.Series(table[at]) for name, table in self.survey.floors.items()}
        return pd.DataFrame(values | floors).rename(index=lambda i: i + 1).rename_axis("direction")

    @property
    def kept_energy(self) -> pd.Series:
        """The share of each domain's energy that the first directions of the block hold."""
        assert self.survey is not None
        return pd.Series({d: self.survey.kept(d, self.rank)[self._row] for d in self.survey.domains})

    @property
    def removed_energy(self) -> pd.Series:
        """The share of the probe's energy that the first directions of each domain would remove from the block."""
        assert self.survey is not None
        return pd.Series({d: self.survey.removed(d, self.rank)[self._row] for d in self.survey.inside}, dtype=float)

    @property
    def angles(self) -> pd.DataFrame:
        """Cosines of the principal angles between the two domains' first directions: a row per block."""
        assert self.survey is not None
        found = self.survey.cosines(self.domain, self.against, self.rank)[[self._surveyed[b] for b in self.blocks]]
        return pd.DataFrame(found, self.blocks, [f"angle {i + 1}" for i in range(self.rank)])

    @property
    def frame(self) -> pd.DataFrame:
        """The arrows at the step in the block: a row per vector, with u1, u2 and remainder."""
        assert self.steps is not None
        return pd.DataFrame.from_dict(self.steps.frame(self.block, self.step), "index", columns=AXES)

    @property
    def map(self) -> pd.DataFrame:
        """The quantity, a row per block and a column per step."""
        return self._map(self.quantity)

    @property
    def slice(self) -> "tuple[int, LossPlane]":
        """The step at or before this one at which losses were measured, or else the first, and what they were."""
        measured = [step for step in self.slices if step <= self.step] or [min(self.slices)]
        return measured[-1], self.slices[measured[-1]]

    @property
    def readings(self) -> dict[str, float]:
        """The numbers under the controls."""
        found: dict[str, Any] = {}
        if self.survey is not None:
            survey, at, domain = self.survey, self._row, self.domain
            found[f"energy of {domain} kept"] = survey.kept(domain, self.rank)[at]
            if domain in survey.floors:
                found["kept by chance"] = survey.kept(domain, self.rank, floor=True)[at]
            found["effective rank"] = survey.effective_rank(domain)[at]
            if self.against:
                found[f"closest angle to {self.against}, cosine"] = self.angles.loc[self.block].max()
            if domain in survey.inside:
                found["removed from the probe"] = survey.removed(domain, self.rank)[at]
                found["removed by chance"] = min(self.rank / float(survey.sizes[at]), 1.0)
        if self.steps is not None:
            names = ((name, name.replace("_", " ")) for name in self.steps.quantities)
            found |= {f"{word} at step {self.step}": self.steps.at(name, self.block, self.step) for name, word in names}
        return {name: float(value) for name, value in found.items()}

    def still(self) -> go.Figure:
        """All parts as one figure."""
        plots: dict[str, Any] = {
            name: marked(p.figure, p.marks) for name, p in self._parts.items() if isinstance(p, LivePlot)
        }
        if frame := self._parts.get("frame"):
            plots["frame"] = projection_frame(frame.vectors, frame.title)
            plots["frame"].update_layout(scene_camera={"eye": {"x": 1.2, "y": -1.8, "z": 0.7}, "center": {"z": -0.1}})
        return tiled([plots[name] for name in self._parts])

    def close(self) -> None:
        """End the explorer and all its parts."""
        for link in self.__dict__.pop("_links", ()):  # there are none where the explorer could not be made
            link.unlink()
        super().close()

    @property
    def _row(self) -> int:
        """Of the block in the survey."""
        return self._surveyed[self.block]

    # --- parts --------------------------------------------------------------------------------------------------------

    def _choices(self) -> dict[str, list[Any]]:
        domains = [] if self.survey is None else self.survey.domains
        steps = self.steps.steps if self.steps is not None else [*self.slices]
        return {
            "block": self.blocks,
            "rank": [] if self.survey is None else list(range(1, self.survey.largest_rank + 1)),
            "domain": domains,
            "against": domains if len(domains) > 1 else [],
            "step": steps,
            "quantity": [] if self.steps is None else self.steps.quantities,
            "stretch": [*STRETCHES] if self.steps is not None and self.steps.framed else [],
        }

    def _firsts(self) -> dict[str, Any]:
        """Where the controls stand at first."""
        firsts = {name: choices[0] for name, choices in self._options.items() if choices}
        if self.survey is not None:
            firsts["rank"] = min(4, self.survey.largest_rank)
        if self._options["against"]:
            firsts["against"] = self._options["against"][-1]
        if self.slices and min(self.slices) in self._options["step"]:
            firsts["step"] = min(self.slices)
        return firsts

    def _map(self, quantity: str) -> pd.DataFrame:
        assert self.steps is not None
        return pd.DataFrame(self.steps.map(quantity, self.blocks), self.blocks, self.steps.steps)

    def _build(self) -> None:
        """Make the parts that there are data for, in the order in which they are shown."""
        half, whole = ({"flex": f"1 1 {width}", "min_width": "300px"} for width in ("420px", "100%"))
        if self.survey is not None:
            self._bases["spectrum"] = spectrum_base(self.survey)
            words = "Singular values of the block's reference gradients"
            self._parts["spectrum"] = LivePlot(self._bases["spectrum"], description=words, layout=half)
        if self.steps is not None and self.steps.framed:
            self._parts["frame"] = Frame({}, colours=COLOURS, layout=half)
        if self.survey is not None and self.against:
            self._bases["angles"] = angles_base(self.survey, [*self._labels.values()])
            words = "Cosines of principal angles, a row per block"
            self._parts["angles"] = LivePlot(self._bases["angles"], description=words, layout=half)
        if self.steps is not None:
            labels = [*self._labels.values()]
            for quantity in self.steps.quantities:
                self._bases[quantity] = step_map(self._map(quantity), labels, quantity)
            words = "Blocks from top to bottom, steps from left to right"
            self._parts["map"] = LivePlot(self._bases[self.quantity], description=words, layout=half)
        if self.slices:
            self._bases |= {f"slice {step}": slice_figure(step, plane) for step, plane in self.slices.items()}
            first = self._bases[f"slice {self.slice[0]}"]
            self._parts["slice"] = LivePlot(first, description="Measured losses", layout=whole)

    def _controls(self) -> list[ipywidgets.Widget]:
        style, slim = {"description_width": "initial"}, {"width": "auto", "margin": "2px 12px 2px 2px"}
        given = {"style": style, "layout": slim}
        wide = given | {"layout": slim | {"width": "340px"}}
        makers: dict[str, Callable[..., ipywidgets.Widget]] = {
            "block": lambda o: ipywidgets.SelectionSlider(
                options=[(self._labels[block], block) for block in o], description="Layer", **wide
            ),
            "rank": lambda o: ipywidgets.IntSlider(min=o[0], max=o[-1], description="Rank", **wide),
            "domain": lambda o: ipywidgets.Dropdown(options=o, description="Domain", **given),
            "against": lambda o: ipywidgets.Dropdown(options=o, description="against", **given),
            "step": lambda o: ipywidgets.SelectionSlider(options=o, description="Step", **wide),
            "quantity": lambda o: ipywidgets.Dropdown(
                options=[(q.replace("_", " "), q) for q in o], description="Map", **given
            ),
            "stretch": lambda o: ipywidgets.Dropdown(
                options=[(f"×{s:g}", s) for s in o], description="Stretch inside", **given
            ),
        }
        controls = []
        for name, make in makers.items():
            if len(self._options[name]) > 1:
                controls.append(make(self._options[name]))
                self._links.append(traitlets.link((self, name), (controls[-1], "value")))
                if name == "step":
                    controls.append(self._player())
        return controls

    def _player(self) -> ipywidgets.Widget:
        steps = self._options["step"]
        player = ipywidgets.Play(max=len(steps) - 1, interval=150, layout={"margin": "2px 12px 2px 2px"})
        there: Any = (steps.index, lambda place: steps[min(place, len(steps) - 1)])
        self._links.append(traitlets.link((self, "step"), (player, "value"), transform=there))
        return player

    @traitlets.validate(*TOUCHES)
    def _checked(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        choices = getattr(self, "_options", {}).get(name)
        if choices is not None and value not in choices:
            listed = f"{choices[0]} … {choices[-1]}" if name in ("rank", "step") and choices else choices
            raise traitlets.TraitError(f"{name} must be one of {listed}, got {value!r}.")
        return value

    @traitlets.observe(*TOUCHES)
    def _moved(self, change: Any) -> None:
        if getattr(self, "_parts", None):  # not while it is built
            for part in TOUCHES[change["name"]]:
                if part in self._parts or part in ("marks", "words"):
                    getattr(self, f"_draw_{part}")()

    def _chosen(self, change: Any) -> None:
        """A click into a map: its row is a block, its column a step."""
        block, column = change["new"]["value"]
        self.block = next((b for b in self.blocks if safe(self._labels[b]) == block), self.block)
        if change["owner"] is self._parts.get("map"):
            self.step = int(column)

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw_spectrum(self) -> None:
        assert self.survey is not None
        names, label = [self.domain, self.against], self._labels[self.block]
        self._parts["spectrum"].figure = spectrum_at(self._bases["spectrum"], self.survey, self._row, label, names)

    def _draw_angles(self) -> None:
        pair = (self.domain, self.against)
        self._parts["angles"].figure = angles_at(self._bases["angles"], self.angles.to_numpy(), pair, self.rank)

    def _draw_frame(self) -> None:
        assert self.steps is not None
        self._parts["frame"].stretch = self.stretch
        self._parts["frame"].vectors = self.steps.frame(self.block, self.step)
        self._parts["frame"].title = f"Step {self.step} in {self._labels[self.block]}, at unit length"

    def _draw_map(self) -> None:
        self._parts["map"].figure = self._bases[self.quantity]

    def _draw_slice(self) -> None:
        if self.slice[0] != self._shown:
            self._shown = self.slice[0]
            self._parts["slice"].figure = self._bases[f"slice {self._shown}"]

    def _draw_marks(self) -> None:
        row = self.blocks.index(self.block) if self.block else None
        steps = self._options["step"]
        if "spectrum" in self._parts:
            self._parts["spectrum"].marks = rank_mark(self.rank, self._options["rank"][-1])
        if "angles" in self._parts:
            self._parts["angles"].marks = cell_marks((len(self.blocks), 1), row)
        if "map" in self._parts:
            self._parts["map"].marks = cell_marks((len(self.blocks), len(steps)), row, steps.index(self.step))

    def _draw_words(self) -> None:
        told = [f"{escape(name)} <b>{value:.3g}</b>" for name, value in self.readings.items()]
        where = [f"<b>{escape(self._labels[self.block])}</b>"] if self.block else []  # a slider cuts long names
        self._words.value = f'<div style="line-height: 1.5">{" · ".join(where + told)}</div>'


def _shared(blocks: Sequence[Sequence[str]]) -> list[str]:
    """The blocks that all parts know, in the order of the first."""
    if not blocks:
        return []
    shared = [block for block in blocks[0] if all(block in others for others in blocks[1:])]
    if not shared:
        raise ValueError(
            f"the survey's blocks ({', '.join(blocks[0][:3])} …) are none of the training's "
            f"({', '.join(blocks[-1][:3])} …): take the survey in the scope of the training's projection."
        )
    return shared

"""The geometry explorer: its traits move what is shown, and what is shown is plain data that says what was given."""

import json

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import traitlets
from test_geometry import random_gradients, random_vectors

from workbench.geometry.landscape import LossPlane
from workbench.geometry.subspace import Subspace
from workbench.geometry.survey import survey
from workbench.study.runs import Run
from workbench.views.explorers.frame import Frame
from workbench.views.explorers.geometry import GeometryExplorer
from workbench.views.explorers.steps import DESCENT, KEPT, OPTIMIZER, REALISED, SHADOW, BlockSteps
from workbench.views.explorers.tiles import tiled

ATTACK = '<img src=x onerror="document.title=1">'
BLOCKS = ["layers.0.a", "layers.0.b", "layers.1.a", "head"]


@pytest.fixture(scope="module")
def gradients():
    return {
        "facts": random_gradients(4),
        "sums": random_gradients(3, seed=500),
        "refusals": random_gradients(4, seed=90),
    }


@pytest.fixture(scope="module")
def surveyed(gradients):
    return survey(gradients, probe=random_vectors(77))


@pytest.fixture(scope="module")
def table():
    """Three blocks at steps 1, 2 and 4, whose step has a quarter of its energy inside, along the shadow at first."""
    rows = []
    for i, step in enumerate([1, 2, 4]):
        for j, block in enumerate(BLOCKS[:3]):
            u1, u2 = (0.5, 0.0) if i == 0 else (0.3, 0.4)
            inside = {"gradient_energy": 0.01 * (j + 1), "removed_energy": 0.01 * (j + 1), "leakage": 0.5}
            rows.append({"step": step, "block": block, **inside, "step_u1": u1, "step_u2": u2})
            rows[-1] |= {"realised_u1": u1, "realised_u2": u2}
    return pd.DataFrame(rows)


@pytest.fixture
def plane():
    xs = np.linspace(-1, 1, 3)
    return LossPlane(xs, xs, {"refusals": np.arange(9.0).reshape(3, 3), ATTACK: np.eye(3)})


@pytest.fixture
def explorer(surveyed, table, plane):
    made = GeometryExplorer(surveyed, table, {2: plane, 4: plane._replace(losses={"refusals": np.ones((3, 3))})})
    yield made
    made.close()


def plots(explorer):
    return {name: part for name, part in explorer._parts.items() if name != "frame"}


def test_what_is_shown_is_what_was_given(explorer, gradients, surveyed, table):
    assert explorer.blocks == BLOCKS[:3]  # those that both know
    explorer.block, explorer.rank, explorer.domain, explorer.against = "layers.1.a", 2, "sums", "facts"
    sums, facts = (Subspace.fit(gradients[d], 2) for d in ("sums", "facts"))
    full = surveyed.singular_values["sums"][2]
    assert explorer.spectrum["sums"].dropna().tolist() == full.tolist()
    assert explorer.kept_energy["sums"] == pytest.approx((full[:2] ** 2).sum() / (full**2).sum())
    expected = facts.principal_angles(sums)["layers.1.a"]
    assert explorer.angles.loc["layers.1.a"].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    removed = sums.energy(random_vectors(77)).shares[2].item()
    assert explorer.removed_energy["sums"] == pytest.approx(removed)
    assert explorer.readings["removed from the probe"] == pytest.approx(removed)
    assert explorer.readings["closest angle to facts, cosine"] == pytest.approx(expected[0].item())
    assert explorer.readings["removed by chance"] == 2 / 16
    pivot = table.pivot(index="block", columns="step", values="leakage")
    pd.testing.assert_frame_equal(explorer.map, pivot.loc[BLOCKS[:3]], check_names=False)


def test_the_frame_of_a_step_has_three_axes_at_right_angles_and_unit_arrows(explorer):
    explorer.block, explorer.step = "layers.0.b", 4
    frame = explorer.frame
    assert list(frame.index) == [DESCENT, SHADOW, KEPT, REALISED]
    assert np.linalg.norm(frame.loc[[DESCENT, REALISED]], axis=1) == pytest.approx(1)
    assert frame.loc[SHADOW].tolist() == pytest.approx([0.02**0.5, 0, 0])
    assert (frame.loc[SHADOW] + frame.loc[KEPT]).tolist() == pytest.approx(frame.loc[DESCENT].tolist())
    assert frame.loc[REALISED].tolist() == pytest.approx([0.3, 0.4, 0.75**0.5])
    assert explorer._parts["frame"].vectors == {
        name: list(tip) for name, tip in zip(frame.index, frame.values, strict=True)
    }


def test_what_had_no_length_is_not_drawn_and_a_changed_step_is_drawn_beside_its_own(table):
    rows = table.copy()
    rows.loc[0, ["realised_u1", "realised_u2"]] = 0.0
    rows.loc[1, ["step_u1", "step_u2", "realised_u1", "realised_u2"]] = np.nan
    steps = BlockSteps(rows)
    assert list(steps.frame("layers.0.a", 1)) == [DESCENT, SHADOW, KEPT, OPTIMIZER, REALISED]
    assert steps.frame("layers.0.a", 1)[REALISED] == [0, 0, 1]
    assert list(steps.frame("layers.0.b", 1)) == [DESCENT, SHADOW, KEPT]


def test_a_control_redraws_what_it_touches_and_nothing_else(explorer):
    drawn = []
    for name, part in plots(explorer).items():
        part.observe(lambda change, name=name: drawn.append(name), ["figure", "marks"])
    explorer._parts["frame"].observe(lambda change: drawn.append("frame"), "vectors")

    def touched(**traits):
        drawn.clear()
        for name, value in traits.items():
            setattr(explorer, name, value)
        return {*drawn}

    assert touched(block="layers.0.b") == {"spectrum", "angles", "map", "frame"}
    assert touched(rank=1) == {"spectrum", "angles"}
    assert touched(domain="sums") == touched(against="facts") == {"spectrum", "angles"}
    assert touched(step=1) == {"map", "frame"}  # the slice is that of step 2, the first, already
    assert touched(step=4) == {"map", "frame", "slice"}
    assert touched(quantity="removed_energy") == {"map"}
    assert touched(step=4, rank=1) == set()


def test_controls_and_traits_are_one(explorer):
    controls = {control.description: control for control in explorer.children[0].children if control.description}
    controls["Layer"].value, controls["Rank"].value, controls["Step"].value = "layers.1.a", 2, 4
    assert (explorer.block, explorer.rank, explorer.step) == ("layers.1.a", 2, 4)
    explorer.block, explorer.domain, explorer.quantity, explorer.stretch = "layers.0.b", "sums", "gradient_energy", 5.0
    assert controls["Layer"].value == "layers.0.b" and controls["Domain"].value == "sums"
    assert controls["Map"].value == "gradient_energy" and controls["Stretch inside"].value == 5
    assert explorer._parts["frame"].stretch == 5 and explorer.map.loc["layers.0.b", 1] == 0.02
    (player,) = [control for control in explorer.children[0].children if isinstance(control, ipywidgets.Play)]
    player.value = 0
    assert explorer.step == 1 and controls["Step"].value == 1


def test_marks_lie_on_the_rows_and_columns_that_are_chosen(explorer):
    explorer.block, explorer.step, explorer.rank = "layers.1.a", 4, 3
    rows = [mark for mark in explorer._parts["map"].marks if mark.get("xref") == "paper"]
    columns = [mark for mark in explorer._parts["map"].marks if mark.get("yref") == "paper"]
    assert {(m["y0"] + m["y1"]) / 2 for m in rows} == {(m["x0"] + m["x1"]) / 2 for m in columns} == {2}
    assert explorer._parts["spectrum"].marks[0]["x0"] == 3.5


def test_a_click_into_a_map_chooses_block_and_step(explorer):
    explorer._parts["map"].chosen = {"value": ["layers.1.a", "4"], "times": 1}
    assert (explorer.block, explorer.step) == ("layers.1.a", 4)
    explorer._parts["angles"].chosen = {"value": ["layers.0.b", "2"], "times": 1}
    assert (explorer.block, explorer.step) == ("layers.0.b", 4)


@pytest.mark.parametrize(
    ("trait", "value"),
    [("block", "layers.9"), ("rank", 0), ("rank", 5), ("domain", "jokes"), ("step", 3), ("stretch", 3.0)],
)
def test_an_unknown_choice_is_refused_and_nothing_moves(explorer, trait, value):
    before = getattr(explorer, trait)
    with pytest.raises(traitlets.TraitError, match=f"{trait} must be one of"):
        setattr(explorer, trait, value)
    assert getattr(explorer, trait) == before


def test_parts_that_are_not_given_are_not_shown(surveyed, table, plane):
    shares = table[["step", "block", "leakage"]]
    only = {
        "spectrum angles": GeometryExplorer(surveyed),
        "frame map": GeometryExplorer(steps=table),
        "map": GeometryExplorer(steps=shares.to_dict("records")),
        "slice": GeometryExplorer(slices={3: plane, 7: plane}),
    }
    for parts, explorer in only.items():
        assert [*explorer._parts] == parts.split()
        assert isinstance(explorer.still(), go.Figure)
    only["slice"].step = 7
    assert only["slice"].slice[0] == 7
    single = survey({"facts": random_gradients(3)})
    assert [*GeometryExplorer(single)._parts] == ["spectrum"]
    assert GeometryExplorer(single).readings.keys() == {"energy of facts kept", "kept by chance", "effective rank"}


def test_bad_input_is_refused_with_what_to_do(surveyed, table):
    with pytest.raises(ValueError, match="got none of them"):
        GeometryExplorer()
    with pytest.raises(ValueError, match="block_history"):
        GeometryExplorer(steps=pd.DataFrame({"step": [1]}))
    with pytest.raises(ValueError, match="the rows of one run"):
        BlockSteps(pd.concat([table, table]))
    with pytest.raises(ValueError, match="in the scope of the training"):
        GeometryExplorer(surveyed, table.assign(block="all").drop_duplicates(["step", "block"]))
    with pytest.raises(traitlets.TraitError, match="3 finite coordinates for 'a'"):
        Frame({"a": [1, 2]})
    with pytest.raises(traitlets.TraitError, match="3 finite coordinates"):
        Frame({"a": [1, 2, np.nan]})


def test_a_run_brings_its_own_table(tmp_path, table):
    with Run.start(tmp_path, {"seed": 0}, slug="projected") as run:
        table.astype({"block": "category"}).to_parquet(run.file("blocks.parquet"))
    with Run.start(tmp_path, {"seed": 1}, slug="plain") as plain:
        pass
    explorer = GeometryExplorer.from_run(run)
    assert explorer.blocks == BLOCKS[:3] and explorer.steps.steps == [1, 2, 4] and explorer.survey is None
    kept = [(block, 7 + i, d, 3.0 - d + i) for i, block in enumerate(reversed(BLOCKS)) for d in (1, 2)]
    spectrum = pd.DataFrame(kept, columns=["block", "n_params", "direction", "singular_value"])
    spectrum.astype({"block": "category"}).to_parquet(run.file("spectrum.parquet"))
    explorer = GeometryExplorer.from_run(run)
    explorer.block = BLOCKS[1]
    number = [*reversed(BLOCKS)].index(BLOCKS[1])
    assert explorer.spectrum["all references"].tolist() == [2.0 + number, 1.0 + number]
    assert explorer.survey.blocks == tuple(reversed(BLOCKS)) and explorer.survey.sizes[0] == 7
    assert (explorer.domain, explorer.against, explorer.rank) == ("all references", "", 2)
    explorer.rank = 1  # with one domain there are no angles to draw
    assert explorer.kept_energy["all references"] == pytest.approx(
        (2 + number) ** 2 / ((2 + number) ** 2 + (1 + number) ** 2)
    )
    assert explorer.still().data
    with pytest.raises(FileNotFoundError, match="GradientProjection"):
        GeometryExplorer.from_run(plain)


def test_shown_twice_it_has_no_more_observers_or_widgets_and_closed_none(surveyed, table, plane, monkeypatch):
    monkeypatch.setattr("workbench.views.explorers.live.picture", lambda figure, scale: None)
    known = {*ipywidgets.Widget.widgets}
    explorer = GeometryExplorer(surveyed, table, {2: plane})

    def observers():
        parts = [explorer, *explorer.children[0].children, *explorer._parts.values()]
        return [{name: len(found) for name, found in part._trait_notifiers.items()} for part in parts]

    made, before = {*ipywidgets.Widget.widgets}, observers()
    for _ in range(2):
        explorer._ipython_display_()
    assert {*ipywidgets.Widget.widgets} == made and observers() == before
    slider = explorer.children[0].children[0]
    explorer.close()
    left = {*ipywidgets.Widget.widgets} - known
    kinds = {type(ipywidgets.Widget.widgets[name]).__name__ for name in left}
    assert kinds <= {
        "PlotlyLibrary",
        "LayoutModel",
        "Layout",
        "SliderStyle",
        "DescriptionStyle",
        "HTMLStyle",
        "PlayStyle",
    }
    slider.value = "layers.0.b"
    assert explorer.block == "layers.0.a"  # unlinked


def test_text_from_data_is_escaped_wherever_it_is_shown(table, plane):
    named = survey({ATTACK: random_gradients(3), "other": random_gradients(3, seed=4)})
    rows = table.assign(block=table["block"].replace("layers.0.a", ATTACK))
    explorer = GeometryExplorer(named, slices={1: plane})
    assert "<img" not in explorer._words.value and "&lt;img" in explorer._words.value
    for part in (*plots(explorer).values(), *plots(GeometryExplorer(steps=rows)).values()):
        assert "<img" not in part._json
    assert "<img" not in json.dumps(explorer.still().to_plotly_json(), default=str)


def test_the_still_picture_holds_every_part_on_axes_of_its_own(explorer):
    explorer.block, explorer.step = "layers.0.b", 4
    still = explorer.still()
    kinds = [trace.type for trace in still.data]
    assert {"scatter", "heatmap", "contour", "mesh3d", "cone"} <= {*kinds} and kinds.count("heatmap") == 2
    domains = [(axis.domain, still.layout[f"yaxis{name[5:]}"].domain) for name, axis in axes(still, "xaxis")]
    assert len({*domains}) == len(domains) == 4
    (scene,) = [axis.domain for _, axis in axes(still, "scene")]
    rectangles = [*domains, (scene.x, scene.y)]
    for i, (across, up) in enumerate(rectangles):
        assert 0 <= across[0] < across[1] <= 1 and 0 <= up[0] < up[1] <= 1
        for other_across, other_up in rectangles[:i]:
            assert min(across[1], other_across[1]) <= max(across[0], other_across[0]) or min(up[1], other_up[1]) <= max(
                up[0], other_up[0]
            )
    texts = " ".join(note.text for note in still.layout.annotations)
    assert "layers.0.b" in texts and "facts" in texts and REALISED in texts


def axes(figure, beginning):
    named = [(name, figure.layout[name]) for name in sorted(figure.layout) if name.startswith(beginning)]
    # Without the one that a template brings:
    return [(name, axis) for name, axis in named if getattr(axis.domain, "x", axis.domain)]


def test_tiles_keep_data_and_put_shapes_and_notes_where_they_belong():
    one = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="line", showlegend=True, line_color="#123456"))
    one.add_hline(3.5)
    one.add_annotation(text="note", x=0.5, y=1, xref="paper", yref="paper")
    whole = tiled([one, one])
    assert [list(trace.y) for trace in whole.data] == [[3, 4], [3, 4]]
    first, second = (note for note in whole.layout.annotations if note.text == "note")
    for note, (_, axis) in zip((first, second), axes(whole, "xaxis"), strict=True):
        assert note.x == pytest.approx(sum(axis.domain) / 2)
    assert {shape.yref for shape in whole.layout.shapes} == {trace.yaxis for trace in whole.data}
    assert {shape.xref.split()[1] for shape in whole.layout.shapes} == {"domain"}
    assert sum("#123456" in note.text and "line" in note.text for note in whole.layout.annotations) == 2

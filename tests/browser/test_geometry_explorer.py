"""The geometry explorer as its user sees it: moved by keyboard and pointer, turned, cleared, in both themes."""

import itertools
import json
import math
import time

import pytest
from playwright.sync_api import expect

SETUP = """
import numpy as np, pandas as pd, torch
from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.landscape import LossPlane
from workbench.geometry.survey import survey
import workbench as wb
torch.manual_seed(0)
blocks = [f"model.layers.{i}" for i in range(6)]
def gradients():
    return ReferenceGradients(("d",) * 5, {f"{block}.weight": torch.randn(5, 40) for block in blocks})
domains = {"facts": gradients(), "<img src=x onerror=document.title=1>": gradients(), "refusals": gradients()}
rows = [
    {"step": step, "block": block, "gradient_energy": 0.36, "removed_energy": 0.36, "leakage": 0.5,
     "step_u1": 0.3, "step_u2": 0.4 * step / 8, "realised_u1": 0.3, "realised_u2": 0.4 * step / 8}
    for step in range(1, 9) for block in blocks
]
xs = np.linspace(-1, 1, 5)
slices = {step: LossPlane(xs, xs, {"refusals": np.outer(xs, xs) + step}) for step in (2, 5)}
"""
MAKE = """
seen = survey(domains, "layer", domains["facts"].mean("d"))
explorer = wb.views.explorers.GeometryExplorer(seen, pd.DataFrame(rows), slices)
explorer
"""
PIXEL = "() => [...document.querySelector('.workbench-frame canvas').getContext('2d').getImageData(3, 3, 1, 1).data]"


@pytest.fixture
def notebook(lab):
    opened = lab.new(SETUP, MAKE).run()
    drawn(opened.output(1))
    return opened


def drawn(output):
    """Wait until every part is drawn."""
    expect(output.locator(".workbench-plot[data-drawn]")).to_have_count(4, timeout=60_000)
    expect(output.locator(".workbench-frame canvas[data-points]")).to_have_count(1)


def points(output):
    """Where tips and axes lie on the canvas, [x, y, depth] from the origin."""
    found = json.loads(output.locator(".workbench-frame canvas").get_attribute("data-points"))
    start = found.pop("origin")
    return {name: [value - first for value, first in zip(at, start, strict=True)] for name, at in found.items()}


def arrive(notebook, yaw, pitch):
    """Wait until the kernel knows how the frame is turned: the page tells it only now and then while it turns."""
    until = time.monotonic() + 20
    turned = "[explorer._parts['frame'].yaw, explorer._parts['frame'].pitch]"
    while (at := notebook.value(turned)) != pytest.approx([yaw, pitch]):
        assert time.monotonic() < until, f"expected {[yaw, pitch]}, got {at}"


def dot(one, other):
    return sum(x * y for x, y in zip(one, other, strict=True))


def lengths(output):
    """Of the axes as they lie in space, after checking that they stand at right angles."""
    axes = [points(output)[name] for name in ("u₁", "u₂", "remainder")]
    for one, other in itertools.combinations(axes, 2):
        assert abs(dot(one, other)) < 1e-6 * math.sqrt(dot(one, one) * dot(other, other))
    return [math.sqrt(dot(axis, axis)) for axis in axes]


def test_the_sliders_move_all_that_depends_on_them(lab, notebook):
    output = notebook.output(1)
    assert notebook.slide("Layer", 2, output) == "layers.2"
    assert notebook.slide("Step", 3, output) == "5"
    notebook.slide("Rank", 1, output)
    assert notebook.value("[explorer.block, explorer.step, explorer.rank]") == ["model.layers.2", 5, 5]
    expect(output.locator(".workbench-frame-title")).to_have_text("Step 5 in layers.2, at unit length")
    titles = output.locator(".workbench-plot .gtitle")
    expect(titles.nth(0)).to_contain_text("layers.2")
    expect(titles.nth(1)).to_contain_text("rank 5")
    expect(titles.nth(3)).to_contain_text("step 5")
    expect(output.locator(".workbench-frame li").last).to_have_text(
        "the realised step: u₁ 0.300, u₂ 0.250, remainder 0.921"
    )
    output.get_by_label("Domain").select_option("refusals")
    expect(titles.nth(1)).to_contain_text("refusals")
    lab.pictures("geometry-explorer", output)
    assert not lab.complaints


def test_the_frame_turns_by_keys_and_pointer_and_its_axes_stay_at_right_angles(lab, notebook):
    output = notebook.output(1)
    canvas = output.locator(".workbench-frame canvas")
    first, sizes = points(output), lengths(output)
    canvas.focus()
    for keys in ("ArrowLeft", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        canvas.press(keys)
        assert lengths(output) == pytest.approx(sizes)
        assert points(output)["remainder"][0] == pytest.approx(0)  # it stands upright however the frame is turned
    arrive(notebook, 0.25 + 2 * math.pi / 36, 0.42 + math.pi / 36)
    box = canvas.bounding_box()
    notebook.page.mouse.move(box["x"] + 150, box["y"] + 150)
    notebook.page.mouse.down()
    notebook.page.mouse.move(box["x"] + 210, box["y"] + 120, steps=5)
    notebook.page.mouse.up()
    assert lengths(output) == pytest.approx(sizes)
    arrive(notebook, 0.25 + 2 * math.pi / 36 - 0.6, 0.42 + math.pi / 36 - 0.3)
    output.get_by_role("button", name="Turn back").click()
    assert points(output) == {name: pytest.approx(at, abs=1e-6) for name, at in first.items()}
    # What the arrows are, read from where they are drawn: a descent of .6 along u₁, whose projection stands upright.
    u1, up = first["u₁"], first["remainder"]
    descent, kept = first["descent −g"], first["−g, projected"]
    assert dot(descent, u1) / dot(u1, u1) == pytest.approx(0.6) and dot(descent, up) / dot(up, up) == pytest.approx(
        0.8 / 1.15
    )
    assert [value - 0.6 * along for value, along in zip(descent, u1, strict=True)] == pytest.approx(kept)
    with notebook.page.expect_download() as saved:
        output.get_by_role("button", name="Save PNG").click()
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")


def test_a_click_into_the_map_goes_to_its_block_and_step(lab, notebook):
    plot = notebook.output(1).locator(".workbench-plot").nth(2)
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    notebook.page.mouse.click(box["x"] + box["width"] * 6.5 / 8, box["y"] + box["height"] * 3.5 / 6)
    expect(notebook.output(1).locator(".workbench-frame-title")).to_contain_text("Step 7 in layers.3")
    assert notebook.value("[explorer.block, explorer.step]") == ["model.layers.3", 7]


@pytest.mark.slow
def test_shown_twice_both_follow_and_a_cleared_one_leaves_nothing(lab):
    notebook = lab.new(SETUP, MAKE, "explorer").run()
    drawn(notebook.output(1))
    drawn(notebook.output(2))
    watching = "{name: len(found) for name, found in explorer._trait_notifiers.items()}"
    before = notebook.value(watching)
    notebook.slide("Layer", 1, notebook.output(1))
    for number in (1, 2):
        expect(notebook.output(number).locator(".workbench-frame-title")).to_contain_text("layers.1")
    notebook.page.evaluate("() => panel.content.widgets[2].model.clearExecution()")
    expect(notebook.output(2).locator(".workbench-plot")).to_have_count(0)
    notebook.slide("Layer", 1, notebook.output(1))
    expect(notebook.output(1).locator(".workbench-frame-title")).to_contain_text("layers.2")
    assert notebook.value(watching) == before and not lab.complaints


def test_markup_in_names_is_text_and_the_canvas_follows_the_theme(lab, notebook):
    output = notebook.output(1)
    notebook.value("setattr(explorer, 'domain', explorer.survey.domains[1])")
    expect(output.locator(".workbench-plot .gtitle").nth(1)).to_contain_text("<img src=x")
    expect(output.locator("img[src='x']")).to_have_count(0)
    assert notebook.page.title() != "1"
    light = notebook.page.evaluate(PIXEL)
    lab.theme("dark")
    assert sum(light[:3]) == 3 * 255 > sum(notebook.page.evaluate(PIXEL)[:3]) + 600

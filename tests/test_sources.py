"""A figure, and every file made of it, says which runs it shows and what drew it; its text stays text."""

import json
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from needs import needs_browser

from workbench.views import images, projection_trace, safety_utility, save_figure, source_of, spectrum
from workbench.views.sources import signed

ATTACK = '<img src=x onerror="document.title=1"></metadata><script>1</script>]]>'
PIXEL = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), (b"IEND", b"")]
)


@pytest.fixture
def table() -> pd.DataFrame:
    row = {"technique": "plain", "pipeline": "sft", "model": "micro", "utility": 0.5, "safety": 0.9}
    rows = [{**row, "run_id": run, "label": ATTACK, "status": "completed"} for run in ("a", ATTACK)]
    return pd.DataFrame([*rows, {**row, "run_id": "lost", "label": "x", "status": "failed"}])


def test_a_figure_knows_its_runs_and_what_drew_it(table):
    assert source_of(safety_utility(table, group="technique", focus=True)) == {
        "function": "safety_utility",
        "arguments": {"table": f"DataFrame of shape {table.shape}", "group": "technique", "focus": True},
        "run_ids": ["a", ATTACK],
    }
    histories = {run: pd.DataFrame({"step": [0], "leakage": [0.1], "run_id": run}) for run in ("b", "c")}
    assert source_of(projection_trace(histories))["run_ids"] == ["b", "c"]
    told = source_of(spectrum({"facts": np.ones(3)}, rank=2))
    assert told["arguments"] == {"singular_values": {"facts": "ndarray of shape (3,)"}, "rank": 2}
    assert source_of(go.Figure()) is None and source_of(go.Figure(layout={"meta": "mine"})) is None


def test_every_point_that_stands_for_a_run_holds_its_id(table):
    points = [t for t in safety_utility(table).data if t.customdata is not None]
    assert [id for t in points for id in t.customdata] == ["a", ATTACK]


def test_a_png_stays_a_png_with_its_source_inside(table, tmp_path):
    figure = safety_utility(table)
    marked = signed(PIXEL, figure)
    kinds, rest = [], marked[8:]
    while rest:
        size = struct.unpack(">I", rest[:4])[0]
        kinds.append(rest[4:8])
        assert struct.unpack(">I", rest[8 + size : 12 + size])[0] == zlib.crc32(rest[4 : 8 + size])
        rest = rest[12 + size :]
    assert kinds == [b"IHDR", b"zTXt", b"IEND"]
    (tmp_path / "a.png").write_bytes(marked)
    assert source_of(tmp_path / "a.png") == source_of(figure)
    (tmp_path / "b.png").write_bytes(PIXEL)
    assert source_of(tmp_path / "b.png") is None and signed(PIXEL, go.Figure()) == PIXEL


def test_json_round_trips_and_other_suffixes_are_refused(table, tmp_path):
    figure = safety_utility(table)
    path = save_figure(figure, tmp_path / "deep" / "a.json")
    assert source_of(path) == source_of(figure) and len(json.loads(path.read_text())["data"]) == len(figure.data)
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.json, got .*a\.pdf"):
        save_figure(figure, tmp_path / "a.pdf")


@needs_browser
def test_an_svg_is_well_formed_traceable_and_holds_markup_as_text(table, tmp_path):
    figure = safety_utility(table)
    path = save_figure(figure, tmp_path / "a.svg")
    root = ElementTree.parse(path).getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert root.tag.endswith("svg") and not {"img", "image", "script", "foreignObject"} & names
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]
    written = "".join(
        text.strip() for element in root.iter() if element.tag.endswith("text") for text in element.itertext()
    )
    assert "<img" in written.replace(" ", "")
    assert source_of(path) == source_of(figure)


@needs_browser
def test_a_slide_has_the_pixels_of_a_wall(table, tmp_path):
    path = save_figure(safety_utility(table, on="slide"), tmp_path / "a.png", scale=5 / 3)
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1600, 900)
    assert source_of(path)["arguments"]["on"] == "slide"


def test_without_a_browser_nothing_is_written(table, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.warns(UserWarning, match=r"got .*none\. Run `plotly_get_chrome`"):
        assert images.save_figure(safety_utility(table), tmp_path / "a.svg") is None
    assert not [*tmp_path.iterdir()]

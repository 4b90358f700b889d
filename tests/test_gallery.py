"""The gallery: pictures of executed notebooks under their captions, and the page as it is committed."""

import base64
import importlib.util
import re
import struct
import subprocess
import sys
import zlib

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SCRIPT = ROOT / "docs" / "gallery.py"
GALLERY = ROOT / "docs" / "gallery"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(width):
    """A black picture of one line."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, 1, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(1 + 3 * width))}
    chunks[b"IEND"] = b""
    tail = [
        struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data)) for k, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(tail)


def width_of(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">I", content[16:20])[0]


def drawn(width, title=None):
    """A cell that left a picture, and the figure with a title or without."""
    layout = {} if title is None else {"title": title}
    figure = {"application/vnd.plotly.v1+json": {"data": [], "layout": layout}}
    data = {"image/png": base64.b64encode(png(width)).decode(), **figure}
    return new_code_cell("wb.views.show(figure)", outputs=[new_output("display_data", data)])


@pytest.fixture
def executed(tmp_path):
    cells = [
        new_markdown_cell("# One: what is it?\n\nA [question](../docs/a.md#b)\nof two lines.\n\nNot this."),
        drawn(1, {"text": "Tax <b>of</b> size,<br>p &lt; .05 [*]"}),
        new_markdown_cell("Prose alone."),
        new_markdown_cell("## Where is it?\n\nThere."),
        drawn(2),
        drawn(3, "Title"),
        new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]),
    ]
    path = tmp_path / "runs" / "01_one-20260101T000000000Z.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_pictures_stand_under_the_heading_above_them_and_the_figures_title(gallery, executed, tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "01_one-9.png").write_bytes(b"of an earlier gallery")
    for name in ("explorer-pairs.png", "explorer-tradeoff.png", "explorer-of-mine.png"):
        (folder / name).write_bytes(b"a screenshot")
    page = gallery.write_gallery({ROOT / "notebooks" / "01_one.ipynb": executed}, folder)
    assert [width_of(folder / f"01_one-{k}.png") for k in (1, 2, 3)] == [1, 2, 3]
    assert not (folder / "01_one-9.png").exists()
    text = page.read_text(encoding="utf-8")
    assert (
        "## [One: what is it?](../../notebooks/01_one.ipynb)\n\nA [question](../../notebooks/../docs/a.md#b) of two"
        in text
    )
    assert r"![Tax of size, p \< .05 \[\*\]](01_one-1.png)" in text and "![Title](01_one-3.png)" in text
    assert "![Where is it?](01_one-2.png)\n\n**Where is it?**\n" in text and "**Where is it?** Title\n" in text
    shown = re.findall(r"\]\((explorer\S+)\)", text)
    assert shown == ["explorer-tradeoff.png", "explorer-pairs.png", "explorer-of-mine.png"]
    assert text.index("explorer-of-mine.png") < text.index("01_one-1.png")


def test_the_newest_finished_copy_is_taken_and_a_missing_one_is_named(gallery, executed):
    newer = executed.with_name("01_one-20260102T000000000Z.ipynb")
    newer.write_bytes(executed.read_bytes())
    executed.with_name("01_one-20260103T000000000Z.partial.ipynb").write_bytes(executed.read_bytes())
    assert gallery.copy_of(ROOT / "notebooks" / "01_one.ipynb", executed.parent) == newer
    done = subprocess.run([sys.executable, SCRIPT, executed.parent], capture_output=True, text=True)
    assert done.returncode == 1 and "00_tour.ipynb" in done.stderr and "Traceback" not in done.stderr


def test_the_committed_page_shows_every_notebook_and_pictures_that_are_there():
    text = (GALLERY / "README.md").read_text(encoding="utf-8")
    linked = {(GALLERY / path).resolve() for path in re.findall(r"^## \[.*\]\((.+)\)$", text, re.MULTILINE)}
    assert linked == set((ROOT / "notebooks").glob("*.ipynb"))
    pictures = re.findall(r"^!\[.*\]\((.+)\)$", text, re.MULTILINE)
    assert sorted(pictures) == sorted(path.name for path in GALLERY.glob("*.png"))
    assert all((GALLERY / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert sum((GALLERY / name).stat().st_size for name in pictures) < 3e6, "draw fewer or smaller pictures"

"""The gallery page: what the cells of the notebooks draw, as pictures that GitHub shows.

    python docs/gallery.py                 # runs every notebook with its defaults; finished runs are used again
    python docs/gallery.py runs/notebooks  # takes the newest executed copy of each notebook in a folder

No outputs are committed with the notebooks: this is where their pictures are. `explorer-*.png` in the gallery's folder
are screenshots: they are shown first, and left as they are. Where Pillow is installed (`pip install pillow`) pictures
take a quarter of the space: commit those.
"""

import argparse
import base64
import html
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
EXPLORERS = {  # screenshots in this order, each with heading and caption; others follow, called by their files
    "explorer-tradeoff.png": ("Trade-off explorer", "Filter runs, compare two of them, read all at equal safety."),
    "explorer-geometry.png": ("Geometry explorer", "Spectrum, angles, the projection in 3-D and the measured loss."),
    "explorer-pairs.png": ("Pairs browser", "Anchors with positives and negatives, entities marked."),
    "explorer-monitor.png": ("Training monitor", "Loss, leakage and scores while a cell trains."),
}
FIGURE = "application/vnd.plotly.v1+json"


def main() -> None:
    """Take or make the executed notebooks, then write pictures and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executed", type=Path, nargs="?", help="a folder of executed notebooks; none: run them")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where records of new runs go")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gallery")
    options = parser.parse_args()
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    try:
        copies = [copy_of(s, options.executed) if options.executed else execute(s, options.runs_dir) for s in sources]
    except (OSError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(write_gallery(dict(zip(sources, copies, strict=True)), options.output))


def execute(source: Path, runs_dir: Path) -> Path:
    """Run a notebook with its defaults."""
    import workbench as wb

    return wb.run_notebook(source, runs_dir=runs_dir)


def copy_of(source: Path, folder: Path) -> Path:
    """The newest finished copy of a notebook in a folder, as `python -m workbench run` leaves them.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sorted(p for p in folder.glob(f"{source.stem}-*.ipynb") if not p.stem.endswith(".partial"))
    if not found:
        what = f"expected an executed copy of {source.name} in {folder}, got none"
        raise FileNotFoundError(f"{what}: run `python -m workbench run {source.relative_to(ROOT)}`.")
    return found[-1]


def write_gallery(copies: dict[Path, Path], folder: Path) -> Path:
    """Write the pictures of executed notebooks and the page that shows them.

    Args:
        copies: The executed copy of each notebook.
        folder: Where the page `README.md` and the pictures `<notebook>-<number>.png` go. Pictures of earlier galleries
            are removed, but for `explorer-*.png`.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.glob("*.png")) - set(folder.glob("explorer-*.png")):
        old.unlink()
    page = ["# Gallery", "", *INTRODUCTION, *explorers(folder)]
    for source, copy in copies.items():
        notebook = nbformat.read(copy, as_version=4)
        title, question = opening(notebook.cells[0].source)
        page += [f"## [{title}](../../notebooks/{source.name})", "", question, ""]
        for number, (heading, caption, picture) in enumerate(pictures(notebook.cells), 1):
            name = f"{source.stem}-{number}.png"
            (folder / name).write_bytes(smaller(picture))
            page += shown(name, heading, caption)
    path = folder / "README.md"
    path.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")
    return path


INTRODUCTION = [
    "What the cells of the notebooks draw with their default parameters, in the micro-world. Committed notebooks hold",
    "no outputs; `make gallery` runs them and writes this page.",
    "",
]


def explorers(folder: Path) -> list[str]:
    """The part of the page with the screenshots that lie in the folder."""
    there = {path.name for path in folder.glob("explorer-*.png")}
    order = [name for name in EXPLORERS if name in there] + sorted(there - set(EXPLORERS))
    lines = [line for name in order for line in shown(name, *EXPLORERS.get(name, (name.removesuffix(".png"),)))]
    return ["## Explorers", "", *lines] if lines else []


def opening(text: str) -> tuple[str, str]:
    """Title and first paragraph of a notebook, its links made for this page."""
    title, _, rest = text.partition("\n")
    paragraph = " ".join(rest.strip().split("\n\n")[0].split())
    return title.removeprefix("# ").strip(), re.sub(r"\]\((?!https?://)", "](../../notebooks/", paragraph)


def pictures(cells: list[nbformat.NotebookNode]) -> Iterator[tuple[str, str, bytes]]:
    """The PNG pictures that cells left, each with the heading above it and the title of the figure, or ""."""
    heading = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^##+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                yield heading, plain(title_of(data)), base64.b64decode(data["image/png"])


def title_of(data: dict) -> str:
    """The title of a plotly figure, or nothing."""
    title = data.get(FIGURE, {}).get("layout", {}).get("title") or ""
    return title if isinstance(title, str) else title.get("text") or ""


def plain(markup: str) -> str:
    """A plotly title without its tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def smaller(picture: bytes) -> bytes:
    """A PNG with a palette of 256 colours, such that no pixel changes visibly; without Pillow, as it is."""
    try:
        from PIL import Image
    except ImportError:
        return picture
    pixels, small = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    few = pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True)
    return small.getvalue()


def shown(name: str, heading: str, caption: str = "") -> list[str]:
    """The lines of the page that show a picture under its heading and caption."""
    bold, text = (re.sub(r"([\\`*_\[\]<>])", r"\\\1", part) for part in (heading, caption))
    told = [f"**{bold}**"] * bool(bold) + [text] * bool(text)
    return [f"![{text or bold}]({name})", "", " ".join(told), ""]


if __name__ == "__main__":
    main()

"""What the browser tests are written with: JupyterLab as its user sees it.

A test takes the fixture `lab`, a fresh page of JupyterLab in headless Chromium:

    def test_the_layer_slider_moves_the_spectrum(lab):
        notebook = lab.open("05_gradient_projection", smoke=True).run()  # a shipped notebook with parameters changed
        notebook = lab.new("import workbench as wb", "explorer = ...", "explorer").run()  # or cells of one's own
        shown = notebook.output(2)                  # what the third cell shows, a playwright Locator
        notebook.slide("Layer", 2, shown)           # two steps with the arrow keys; returns the slider's reading
        assert notebook.value("explorer.layer") == 2  # asked from the kernel, as JSON
        lab.click_point(shown, "plain", 0)          # a point of a plotly figure; `hover_point` returns what it tells
        shown.get_by_role("button", name="Stop").click()
        expect(shown).to_contain_text("stopped")    # playwright waits for what is expected
        lab.pictures("geometry-explorer", shown)    # light, dark and narrow, among the artifacts
        assert lab.complaints == []                 # errors of scripts and of the console

`notebook.find(text)` finds a cell by its source, for numbers change when a notebook does. `run` waits for all cells and
fails with the traceback of one that failed; `start(number)` and `wait()` are for acting while a cell runs. Nothing is
timed. A test without a mark runs in `make test` too and so must be short; the others are marked
`pytest.mark.slow` and run by `make browser` alone.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nbformat
from nbconvert.filters import strip_ansi
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

SECONDS = 1000  # playwright counts in milliseconds
PATIENCE = 120 * SECONDS  # with what must come some time, on a machine that does other things too
DESKTOP = {"width": 1440, "height": 1000}
NARROW = {"width": 700, "height": 1000}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# What the browser and JupyterLab say whatever is opened.
HARMLESS = ("GPU stall due to ReadPixels", "WebGL", "willReadFrequently", "favicon", "to activate")
PLOTLY = "application/vnd.plotly.v1+json"
JSON = "__import__('json').dumps"
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium(executable: str) -> Iterator[BrowserContext]:
    """A headless Chromium whose pages share a cache."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*sandbox, "--enable-unsafe-swiftshader"])
        context = browser.new_context(viewport=DESKTOP)
        context.set_default_timeout(PATIENCE)
        yield context
        browser.close()


class Lab:
    """JupyterLab in a page of the browser.

    Attributes:
        page: playwright's page.
        folder: The served copy of the folder of notebooks; records go to its sibling `runs`.
        complaints: Errors and warnings of the browser's console, and errors of scripts, so far.
    """

    def __init__(self, page: Page, folder: Path, artifacts: Path):
        self.page, self.folder, self.artifacts = page, folder, artifacts
        self.complaints: list[str] = []
        page.on("console", lambda said: self._hear(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._hear(error.stack or str(error)))

    def _hear(self, text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            self.complaints.append(text)

    def load(self, address: str) -> "Lab":
        """Open JupyterLab, in the light theme, and wait until it stands."""
        self.page.goto(address)
        self.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        self._wait_for_splash()
        return self.theme("light")

    def theme(self, name: Literal["light", "dark"]) -> "Lab":
        """Change JupyterLab's theme."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[name])
        self.page.wait_for_selector(f"body[data-jp-theme-name='{THEMES[name]}']", state="attached")
        self._wait_for_splash()
        return self

    def _wait_for_splash(self) -> None:
        """JupyterLab takes its splash away twice, an error, where the theme changes again before it is gone."""
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def open(self, name: str, **parameters: Any) -> "Notebook":
        """Open a copy of a shipped notebook, named by its stem, with other literals in its cell of parameters."""
        notebook = nbformat.read(self.folder / f"{name}.ipynb", 4)
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        for parameter, value in parameters.items():
            line = rf"^({parameter}: .+? = )[^#\n]*"
            cell.source, n_found = re.subn(line, lambda found, v=value: f"{found[1]}{v!r}  ", cell.source, flags=re.M)
            assert n_found == 1, f"expected one parameter {parameter!r} in {name}, got {n_found}"
        path = self.folder / f"{name}.copy.ipynb"
        nbformat.write(notebook, path)
        return self._show(path)

    def new(self, *cells: str, name: str = "new") -> "Notebook":
        """Open a new notebook of these code cells."""
        path = self.folder / f"{name}.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        made = nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(made, path)
        return self._show(path)

    def _show(self, path: Path) -> "Notebook":
        opening = "path => jupyterapp.commands.execute('docmanager:open', {path}).then(() => null)"
        self.page.evaluate(opening, f"notebooks/{path.name}")
        return Notebook(self, path.name)

    def point(self, figure: Locator, trace: str, number: int) -> tuple[float, float]:
        """Where a point of a named trace of a plotly figure lies on the page; the figure is scrolled into view."""
        plot = self.plot(figure)
        plot.scroll_into_view_if_needed()
        found = plot.evaluate(POINT, [trace, number])
        assert isinstance(found, list), f"expected a trace {trace!r} with a point {number}, got {found}"
        return found[0], found[1]

    def still(self, figure: Locator) -> Locator:
        """The still twin that a piece of the page shows until the pointer enters it; not visible where it has."""
        self.page.mouse.move(0, 0)  # off the figure, so that it does not change while it is looked at
        figure.scroll_into_view_if_needed()
        plot, still = figure.locator(".js-plotly-plot").first, figure.locator(".jp-RenderedPlotly img").first
        expect(plot.or_(still).filter(visible=True).first).to_be_visible()
        return still

    def plot(self, figure: Locator) -> Locator:
        """The interactive plotly figure in a piece of the page; the pointer turns the still twin into it."""
        still = self.still(figure)
        if still.is_visible() and (box := still.bounding_box()):
            self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        plot = figure.locator(".js-plotly-plot").first
        expect(plot.locator(".main-svg").first).to_be_visible()
        return plot

    def hover_point(self, figure: Locator, trace: str, number: int) -> str:
        """Lay the pointer on a point and return what the figure then tells."""
        self.page.mouse.move(*self.point(figure, trace, number))
        told = figure.locator(".hoverlayer .hovertext")
        expect(told.first).to_be_visible()
        return "\n".join(told.all_text_contents())

    def click_point(self, figure: Locator, trace: str, number: int) -> None:
        """Click on a point."""
        self.page.mouse.click(*self.point(figure, trace, number))

    def marks(self, figure: Locator) -> int:
        """How many lines, points, bars and areas are drawn in the panels of a figure, its axes and legends aside."""
        return int(self.plot(figure).evaluate(MARKS))

    def ink(self, piece: Locator) -> float:
        """The share of a piece's pixels that are not of its commonest colour: 0 where it is blank."""
        picture = piece.screenshot()
        return float(self.page.evaluate(INK, list(picture)))

    def picture(self, name: str, piece: Locator | None = None) -> Path:
        """Write a picture of a piece of the page, or of the page, to the artifacts."""
        path = self.artifacts / f"{name}.png"
        if piece is None:
            self.page.screenshot(path=path)
            return path
        window = self.page.viewport_size or DESKTOP
        height = (piece.bounding_box() or {"height": 0})["height"] + 300  # with what stands above and below a notebook
        self.page.set_viewport_size({"width": window["width"], "height": max(window["height"], int(height))})
        piece.screenshot(path=path)
        self.page.set_viewport_size({"width": window["width"], "height": window["height"]})
        return path

    def pictures(self, name: str, piece: Locator) -> list[Path]:
        """Write pictures of a piece in the light theme, in the dark theme, and on a narrow page."""
        made = [self.theme(theme).picture(f"{name}-{theme}", piece) for theme in ("dark", "light")]
        with self.narrow():
            return [*made, self.picture(f"{name}-narrow", piece)]

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Make the window narrow for a while, and put the file browser away."""
        self.page.set_viewport_size(NARROW)
        self.page.evaluate("() => jupyterapp.shell.collapseLeft()")
        try:
            yield
        finally:
            self.page.evaluate("() => jupyterapp.shell.expandLeft()")
            self.page.set_viewport_size(DESKTOP)


class Notebook:
    """An opened notebook, from when its kernel is ready."""

    def __init__(self, lab: Lab, name: str):
        self.lab, self.page = lab, lab.page
        self.page.wait_for_function(READY, arg=f"notebooks/{name}")

    @property
    def cells(self) -> Locator:
        """The cells of the notebook, as they are shown."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell")

    def find(self, text: str) -> int:
        """The number of the first cell whose source holds this text."""
        return next(number for number, source in enumerate(self.page.evaluate(SOURCES)) if text in source)

    def figures(self) -> list[int]:
        """The numbers of the cells that show a plotly figure."""
        kinds = [[kind for output in outputs for kind in output.get("data", {})] for outputs in self.outputs()]
        return [number for number, shown in enumerate(kinds) if PLOTLY in shown]

    def output(self, number: int) -> Locator:
        """The output of a cell, counted from 0 over all cells; a negative number counts from the end."""
        return self.cells.nth(number).locator(".jp-Cell-outputArea")

    def start(self, number: int | None = None) -> "Notebook":
        """Begin to run a cell, or all of them, and do not wait."""
        name = "notebook:run-all-cells" if number is None else "notebook:run-cell"
        if number is not None:
            self.page.evaluate("number => { panel.content.activeCellIndex = number }", number)
        self.page.evaluate(RUN, name)
        return self

    def wait(self, seconds: float = 900) -> "Notebook":
        """Wait until what was started has run; fail with the traceback where a cell failed."""
        self.page.wait_for_function("() => window.ran !== null", timeout=seconds * SECONDS)
        assert not self.failures(), "\n".join(self.failures())
        return self

    def run(self, number: int | None = None, seconds: float = 900) -> "Notebook":
        """Run a cell, or all of them, to the end."""
        return self.start(number).wait(seconds)

    def outputs(self) -> list[list[dict[str, Any]]]:
        """The outputs of each cell in nbformat's form; of a markdown cell, none."""
        return list(self.page.evaluate(OUTPUTS))

    def failures(self) -> list[str]:
        """Tracebacks: of cells that failed, and of callbacks that wrote theirs among the outputs."""
        failed = []
        for output in (output for outputs in self.outputs() for output in outputs):
            text = "".join(output.get("traceback", [])) + "".join(output.get("text", []))
            if output["output_type"] == "error" or "Traceback (most recent call last)" in text:
                failed.append(strip_ansi(text))
        return failed

    def value(self, expression: str) -> Any:
        """The value of an expression in the kernel, which must be JSON; a busy kernel is waited for."""
        reply = self.page.evaluate(ASK, f"{JSON}({expression})")
        assert reply["status"] == "ok", f"{expression}: {reply.get('ename')}: {reply.get('evalue')}"
        return json.loads(eval(reply["data"]["text/plain"], {"__builtins__": {}}))

    def slide(self, label: str, steps: int, piece: Locator | None = None) -> str:
        """Move the slider with this label by keyboard, to the right or (negative steps) to the left.

        Returns:
            What is read beside it.
        """
        named = self.page.locator(".widget-label").get_by_text(label, exact=True)
        slider = (piece or self.cells).locator(".widget-slider", has=named).first
        handle = slider.locator(".noUi-handle").first
        handle.focus()
        for _ in range(abs(steps)):
            handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
        return slider.locator(".widget-readout").text_content() or ""

    def broken_links(self) -> list[str]:
        """The links of the text to files that are not there, or that JupyterLab cannot reach."""
        return list(self.page.evaluate(BROKEN_LINKS))

    def close(self) -> None:
        """Shut the kernel down and close the notebook without saving."""
        self.page.evaluate("() => panel.sessionContext.shutdown().then(() => panel.dispose())")


READY = """async (path) => {
  window.panel = jupyterapp.shell.currentWidget;
  if (panel?.context?.path !== path) return false;
  await panel.sessionContext.ready;
  return panel.sessionContext.session?.kernel?.status === "idle";
}"""
RUN = """name => {
  window.ran = null;
  jupyterapp.commands.execute(name).then((well) => { window.ran = well ?? true; }, () => { window.ran = false; });
}"""
SOURCES = "() => [...panel.content.model.cells].map((cell) => cell.sharedModel.source)"
OUTPUTS = "() => [...panel.content.model.cells].map((cell) => cell.outputs?.toJSON() ?? [])"
BROKEN_LINKS = """async () => {
  const links = [...panel.node.querySelectorAll(".jp-MarkdownOutput a[href]")].map((link) => link.href.split("#")[0]);
  const local = [...new Set(links)].filter((link) => link.startsWith(location.origin));
  const answers = await Promise.all(local.map((link) => fetch(link)));
  return answers.filter((answer) => !answer.ok).map((answer) => new URL(answer.url).pathname);
}"""
ASK = """async (expression) => {
  const content = { code: "", silent: false, store_history: false, user_expressions: { asked: expression } };
  const reply = await panel.sessionContext.session.kernel.requestExecute(content).done;
  return reply.content.user_expressions.asked;
}"""
POINT = """(plot, [name, number]) => {
  const trace = plot._fullData.find((one) => one.name === name && one.visible === true && one.x?.length > number);
  if (!trace) return plot._fullData.map((one) => one.name);
  const axis = (letter) => plot._fullLayout[letter + "axis" + (trace[letter + "axis"] ?? letter).slice(1)];
  const at = (letter) => { const a = axis(letter); return a._offset + a.d2p(trace[letter][number]); };
  const box = plot.getBoundingClientRect();
  return [box.x + at("x"), box.y + at("y")];
}"""
MARKS = """(plot) => {
  const drawn = plot.querySelectorAll(".cartesianlayer .mlayer :is(path, image), .gl-container canvas");
  const size = (one) => { const box = one.getBoundingClientRect(); return box.width + box.height; };
  return [...drawn].filter((one) => size(one) > 0).length;
}"""
INK = """async (bytes) => {
  const picture = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
  const canvas = new OffscreenCanvas(picture.width, picture.height), pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const counts = new Map();
  for (const colour of new Uint32Array(pen.getImageData(0, 0, picture.width, picture.height).data.buffer))
    counts.set(colour, (counts.get(colour) ?? 0) + 1);
  return 1 - Math.max(...counts.values()) / (picture.width * picture.height);
}"""

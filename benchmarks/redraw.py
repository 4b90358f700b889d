"""Milliseconds from a key or a choice to what it draws, kernel included: explorers in JupyterLab, in headless Chromium.

No ratio, since what counts is what a hand feels: a tenth of a second at most.
"""

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, Settings
from tests.browser.lab import Lab, Notebook, chromium
from tests.browser.server import serving
from workbench.views import find_browser

TURNS = 10, 8  # of each control, with its key and back again; the last one would meet its end

RUNS = """
import numpy as np, pandas as pd
import workbench as wb

drawn = np.random.default_rng(0)


def run(number):
    technique, seed = f"technique {number % 27}", number // 27
    ends = {"utility": 0.8 + 0.2 * drawn.random(), "safety": 0.9 + 0.1 * drawn.random(), "over_refusal": drawn.random()}
    starts = {"utility": 1.0, "safety": 0.0, "over_refusal": 0.0}
    way = [{"step": 16 * i} | {k: (1 - i / 10) * starts[k] + i / 10 * v for k, v in ends.items()} for i in range(11)]
    who = {"label": technique, "technique": technique, "pipeline": ("sft", "dpo")[number % 2], "model": f"b{seed % 5}"}
    starts = {f"base.{name}": value for name, value in starts.items()}
    return {"run_id": str(number), "seed": seed, "status": "completed", "trajectory": way, **who, **starts, **ends}


explorer = wb.views.explorers.TradeoffExplorer(pd.DataFrame(run(number) for number in range(200)))
explorer
"""
STEPS = """
import numpy as np, pandas as pd, torch
import workbench as wb
from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.landscape import LossPlane
from workbench.geometry.survey import survey

torch.manual_seed(0)
blocks = [f"model.layers.{i}" for i in range(50)]
domains = {
    name: ReferenceGradients((name,) * 16, {f"{block}.weight": torch.randn(16, 400) for block in blocks})
    for name in ("facts", "sums", "refusals")
}
measured = ("gradient_energy", "removed_energy", "leakage", "step_u1", "step_u2", "realised_u1", "realised_u2")
values = np.random.default_rng(0).uniform(0.1, 0.6, (300 * 50, len(measured)))
table = pd.DataFrame(values, columns=measured)
table["step"], table["block"] = np.repeat(range(1, 301), 50), blocks * 300
xs = np.linspace(-1, 1, 15)
slices = {step: LossPlane(xs, xs, {"refusals": np.outer(xs, xs) + step}) for step in (1, 150, 300)}
seen = survey(domains, "layer", domains["facts"].mean("facts"))
explorer = wb.views.explorers.GeometryExplorer(seen, table, slices)
explorer
"""
GROUPS = """
import workbench as wb

rows = wb.load_portraits("micro").pairs(400, 0).to_list()
browser = wb.views.explorers.PairsBrowser(rows)
browser
"""
BACK = {
    "ArrowLeft": "ArrowRight",
    "ArrowRight": "ArrowLeft",
    "ArrowDown": "ArrowUp",
    "Shift+ArrowDown": "Shift+ArrowUp",
    " ": " ",
}
# What is drawn, and what is moved: by name, its place and the key that moves it.
PLOTS = ".workbench-plot, .workbench-frame canvas"
EXPLORERS: Mapping[str, tuple[str, str, Mapping[str, tuple[str, str]]]] = {
    "trade-off, 200 runs of 27 techniques": (
        RUNS,
        f"{PLOTS}, .workbench-text-beside",
        {
            "equal safety": (".widget-slider:has-text('Equal safety') .noUi-handle", "ArrowLeft"),
            "trajectories": (".widget-checkbox:has-text('Trajectories') input", " "),
            "filter": ("select[multiple]", "ArrowDown"),
            "filter, ever more": ("select[multiple]", "Shift+ArrowDown"),
        },
    ),
    "geometry, 50 layers × 300 steps": (
        STEPS,
        PLOTS,
        {
            "layer": (".widget-slider:has-text('Layer') .noUi-handle", "ArrowRight"),
            "rank": (".widget-slider:has-text('Rank') .noUi-handle", "ArrowRight"),
            "step": (".widget-slider:has-text('Step') .noUi-handle", "ArrowRight"),
        },
    ),
    "pairs, 400 groups": (
        GROUPS,
        ".widget-html-content:has(.workbench-pairs)",
        {"page": (".widget-slider:has-text('Page') .noUi-handle", "ArrowRight")},
    ),
}


def run(settings: Settings) -> Iterator[Row]:
    """One row for each explorer and control."""
    browser = find_browser()
    if browser is None:
        yield {"size": "all", "skipped": "needs Chrome or Chromium"}
        return
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as address, chromium(browser) as context:
        for name, (cell, drawn, controls) in EXPLORERS.items():
            lab = Lab(context.new_page(), Path(folder) / "checkout" / "notebooks", Path(folder)).load(address)
            notebook = lab.new(cell).run()
            for control, (place, key) in controls.items():
                times = _times(notebook, place, key, drawn)
                spread = {"median ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}
                yield {"size": name, "control": control, **spread, "turns": {"ms": times}}
            notebook.close()
            lab.page.close()


def _times(notebook: Notebook, place: str, key: str, drawn: str) -> list[float]:
    shown = notebook.output(0)
    shown.locator(drawn).first.wait_for()
    notebook.page.wait_for_timeout(2000)  # the first drawings of all parts are over
    shown.locator(place).first.focus()
    return [
        _timed(notebook, pressed, drawn) for pressed, n in zip((key, BACK[key]), TURNS, strict=True) for _ in range(n)
    ]


def _timed(notebook: Notebook, key: str, drawn: str) -> float:
    """From the key to the last of the drawings that follow it: the end is where nothing is drawn for half a second."""
    notebook.page.evaluate(WATCH, drawn)
    notebook.page.keyboard.press(key)
    notebook.page.wait_for_function("() => watched.last && performance.now() - watched.last > 500")
    measured: Any = notebook.page.evaluate("() => watched.last - watched.first")
    return float(measured)


# Drawings tell their end by an attribute, data-drawn; a page of HTML by its new children.
WATCH = """(drawn) => {
  window.watched?.stop();
  const watched = { first: null, last: null };
  const begin = () => { watched.first ??= performance.now(); };
  for (const kind of ["keydown", "change"]) addEventListener(kind, begin, { capture: true, once: true });
  const observer = new MutationObserver(() => { if (watched.first) watched.last = performance.now(); });
  for (const one of document.querySelectorAll(drawn))
    observer.observe(one, one.dataset.drawn ? { attributeFilter: ["data-drawn"] } : { childList: true, subtree: true });
  watched.stop = () => observer.disconnect();
  window.watched = watched;
}"""

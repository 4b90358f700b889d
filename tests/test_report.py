"""The page of a folder of runs: it says what the table says, asks for nothing, and lets text from data be text."""

import base64
import hashlib
import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from needs import BROWSER, needs_browser

from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.subspace import Subspace
from workbench.study.runs import Run, load_runs
from workbench.views import safety_utility, source_of
from workbench.views.kept_geometry import geometry_figures
from workbench.views.report import write_report

T2 = 4.302653  # Student's t for 95 % and two degrees of freedom, from a printed table
ATTACK = '<img src=x onerror="document.title=1">'
BREAKOUT = "</script><script>document.title=2</script>"


def run(label: str, seed: int, utility: float, safety: float = 0.9, **more) -> dict:
    names = {"run_id": f"{label}-{seed}", "status": "completed", "label": label, "technique": label, "pipeline": "sft"}
    way = [{"step": 0, "utility": 1.0, "safety": 0.0}, {"step": 10, "utility": utility, "safety": safety}]
    rates = {"utility": utility, "safety": safety, "base.utility": 1.0, "base.safety": 0.0}
    return names | {"model": "micro", "seed": seed, "lr": 0.001, "trajectory": way} | rates | more


@pytest.fixture
def table() -> pd.DataFrame:
    """Three plain runs (mean utility .5), one replay, one that failed."""
    plain = [run("plain", seed, 0.4 + seed / 10, lr=0.001 * (seed + 1)) for seed in range(3)]
    failed = run("plain", 9, np.nan, np.nan, status="failed", **{"base.utility": np.nan})
    return pd.DataFrame([*plain, run("replay", 0, 0.9), failed])


class Elements(HTMLParser):
    """Tags with attributes, and what scripts hold, as a browser would read the page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(path: Path) -> dict:
    return json.loads(Elements(path.read_text(encoding="utf-8")).scripts[0])


@pytest.fixture
def page(table, tmp_path) -> Path:
    """A report about runs whose texts attack it."""
    table = table.astype({"lr": object})
    table.loc[3, ["label", "technique"]] = ATTACK + BREAKOUT
    table.loc[3, "lr"] = ATTACK
    more = go.Figure(go.Scatter(x=[1], y=[2], name="plain"), layout={"width": 500, "height": 300})
    return write_report(table, tmp_path / "new" / "report.html", figures={BREAKOUT: more}, title=ATTACK)


def test_the_page_holds_plotly_once_and_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("* plotly.js v") == 1
    elements = Elements(text)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 3 and not {"img", "link", "iframe", "object", "base"} & {*tags}
    assert not [attrs for _, attrs in elements.tags if {"src", "onerror", "onclick", "onload"} & attrs.keys()]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and not re.search(r"[A-Z]+_(LIGHT|DARK)|FONT|NEUTRAL", style)
    assert [p.name for p in page.parent.iterdir()] == ["report.html"]


def test_the_policy_admits_exactly_the_scripts_of_the_page(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    policy = next(attrs["content"] for _, attrs in elements.tags if "http-equiv" in attrs)
    runnable = [elements.scripts[1], elements.scripts[2]]  # the first is JSON
    wanted = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in runnable}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == wanted
    assert "default-src 'none'" in policy and "http" not in policy


def test_the_page_tells_the_table(table, tmp_path):
    path = write_report(table, tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    plain = [cell for cell in re.findall(r"<tr>(.*?)</tr>", text) if "</span>plain<" in cell]
    half = T2 * 0.1 / 3**0.5
    # utility, and the tax, since the base has 1
    assert plain[0].count(f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]") == 2
    assert '<td class="number" data-value="0.4">0.400</td>' in text and "<td>failed</td>" in text


def test_every_run_has_all_its_parameters(table, tmp_path):
    told = data_of(write_report(table, tmp_path / "report.html"))["parameters"]
    rows = [{told["names"][n]: told["values"][v] for n, v in zip(p[::2], p[1::2], strict=True)} for p in told["of"]]
    assert [row["lr"] for row in rows] == ["0.001", "0.002", "0.003", "0.001", "0.001"]
    assert rows[3] == {
        **dict.fromkeys(("label", "technique"), "replay"),
        **{"pipeline": "sft", "model": "micro", "seed": "0", "status": "completed", "lr": "0.001"},
    }
    assert len({*told["values"]}) == len(told["values"])


def test_figures_of_either_theme_follow_the_page(table, tmp_path):
    dark = safety_utility(table, theme="dark", trajectories=60)
    path = write_report(table, tmp_path / "report.html", figures={"again": dark})
    drawn = [json.loads(figure["wide"]) for figure in data_of(path)["figures"]]
    told = [figure["layout"].pop("meta")["workbench"]["arguments"] for figure in drawn]
    assert drawn[0] == drawn[1] and told[1]["theme"] == "dark" and "theme" not in told[0]
    assert "width" not in drawn[0]["layout"]  # it fills its box
    assert dark.layout.width == 720  # the caller's figure is left alone
    assert data_of(path)["config"]["showSendToCloud"] is False


def test_a_crowd_of_pipelines_is_shown_pipeline_by_pipeline(tmp_path):
    rows = [run(f"technique {i}", 0, 0.5, pipeline=way) for i in range(20) for way in ("sft", "dpo")]
    path = write_report(pd.DataFrame(rows), tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert "<h2>Pipeline dpo</h2>" in text and "<h2>Pipeline sft</h2>" in text
    assert len(data_of(path)["figures"]) == 2 and all(figure["narrow"] for figure in data_of(path)["figures"])


def test_runs_without_safety_have_a_page_too(table, tmp_path):
    spoken = {"portraits/toxicity": 0.1, "portraits/faithfulness": 0.8}
    path = write_report(table.drop(columns="safety").assign(**spoken), tmp_path / "spoken.html")
    text = path.read_text(encoding="utf-8")
    (figure,) = data_of(path)["figures"]
    assert "<h2>Toxicity and faithfulness</h2>" in text and "toxicity_faithfulness" in figure["wide"]
    assert "<th>Safety</th>" not in text and "<th>Faithfulness</th>" in text and "<td>0.800 [0.800, 0.800]</td>" in text
    bare = write_report(table[["run_id", "status", "label", "technique", "lr"]], tmp_path / "bare.html")
    assert not data_of(bare)["figures"] and len(data_of(bare)["parameters"]["of"]) == len(table)


def test_the_page_names_the_environment_of_the_records(table, tmp_path):
    record = {"run_id": "a", "parameters": {}, "parameters_hash": "", "status": "completed", "scores": {}}
    record["environment"] = {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "git_sha": "abc123"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    paths = [str(tmp_path), str(tmp_path / "gone")] + [None] * 3
    text = write_report(table.assign(path=paths), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<footer>python 3.11.7; torch 2.13.0; git_sha abc123</footer>" in text


def test_the_geometry_is_what_the_folders_keep(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for seed in range(2):
        made = Run.start(
            tmp_path, {"technique": "update_projection", "pipeline": "sft", "seed": seed}, slug="projected"
        )
        for step in (1, 2):
            made.log({"step": step, "leakage": 0.1 * (seed + step), "removed_energy": 0.5, "random_floor": 0.01})
        made.finish(scores={"utility": 0.6, "safety": 0.9})
        gradients = ReferenceGradients(("facts", "sums", "format"), {"w": torch.randn(3, 20, generator=generator)})
        subspace = Subspace.fit(gradients, None, "tensor")
        subspace.save(made.path / f"capability {seed}.safetensors")
        spectrum = {
            "block": pd.Categorical(["w", "w"]),
            "n_params": 20,
            "direction": [1, 2],
            "singular_value": [seed + 1.0, 0.5],
        }
        pd.DataFrame(spectrum).to_parquet(made.path / "spectrum.parquet")
    (tmp_path / "other.safetensors").write_bytes(b"not one")
    shown = dict(geometry_figures(load_runs(tmp_path)))
    trace, last, first, second, angles = shown.values()
    assert list(last.data[0].y) == [1.0, 0.5]  # of the first run: one technique, one pipeline
    assert "end of update_projection, sft" in [*shown][1]
    line = next(t for t in trace.data if t.name == "update_projection")
    assert list(line.x) == [1, 2] and list(line.y) == pytest.approx([0.15, 0.25])  # means of .1, .2 and .2, .3
    assert len(first.data[0].x) == len(second.data[0].x) == 3
    assert source_of(angles)["function"] == "angles_heatmap" and "Angles between" in [*shown][-1]
    assert not [*geometry_figures(load_runs(tmp_path).drop(columns="path"))]


def test_a_folder_of_failures_and_broken_files_has_a_page(tmp_path):
    with pytest.raises(RuntimeError), Run.start(tmp_path, {"technique": "plain"}, slug="failed"):
        raise RuntimeError("out of luck")
    assert "<td>failed</td>" in write_report(load_runs(tmp_path), tmp_path / "failed.html").read_text()
    made = Run.start(tmp_path, {"technique": "plain"}, slug="done")
    made.finish(scores={"utility": 0.6, "safety": 0.9})
    made.file("spectrum.parquet").write_bytes(b"PAR1 cut")
    assert not [*geometry_figures(load_runs(tmp_path))]


def driven(page: Path, act: str) -> str:
    """The page in a browser after some steps, as its title; its policy would not let the test's script in."""
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    moved = page.with_name("driven.html")
    moved.write_text(
        text.replace(policy[0], "").replace("</body>", f"<script>(() => {{{act}}})();</script></body>"),
        encoding="utf-8",
    )
    return re.search(r"<title>(.*?)</title>", dom(moved))[1]


def dom(path: Path) -> str:
    """The page after its scripts ran, as Chromium writes it out."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    command = [str(BROWSER), *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@needs_browser
def test_in_a_browser_the_plot_is_drawn_and_the_attack_is_text(page):
    text = dom(page)
    body = text[text.index("<body") :]
    assert 'class="main-svg"' in body and 'class="scatterlayer' in body
    assert f"<title>{html.escape(ATTACK, quote=False)}</title>" in text
    assert "<img" not in body.replace(Elements(body).scripts[1], "")


@needs_browser
def test_in_a_browser_the_runs_sort_search_and_open(page):
    act = """
    const column = [...document.querySelectorAll("#runs th")].findIndex((head) => head.textContent === "Utility");
    const rows = () => [...document.getElementById("runs").tBodies[0].rows].filter((row) => !row.hidden);
    const shown = () => {
      document.querySelectorAll("#runs th button")[column].click();
      return rows().map((row) => row.cells[column].textContent).join(" ");
    };
    const field = document.getElementById("search");
    const find = (words) => {
      field.value = words;
      field.dispatchEvent(new Event("input"));
      return document.getElementById("count").textContent;
    };
    const told = [find("PLAIN-"), shown(), shown(), find("plain lr=0.002 seed=1"), find("lr=0.00 nothing")];
    dispatchEvent(new KeyboardEvent("keydown", { key: "/" }));
    told.push(document.activeElement === field);
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    told.push(document.getElementById("count").textContent);
    find("onerror");
    rows()[0].querySelector("button").click();
    const list = document.querySelector("#runs dl");
    told.push(list.textContent.includes("<img src=x onerror"), list.querySelectorAll("img").length);
    rows()[0].querySelector("button").click();
    told.push(document.querySelectorAll("#runs dl").length);
    document.title = told.join(" | ");
    """
    assert driven(page, act) == (
        "4 of 5 runs | 0.400 0.500 0.600 – | – 0.600 0.500 0.400 | 1 of 5 runs | 0 of 5 runs | true | 5 runs | "
        "true | 0 | 0"
    )

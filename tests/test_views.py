"""Figures and pages say what the table says: their data are compared with values worked out by hand."""

import base64
import hashlib
import html
import json
import os
import re
import struct
import subprocess
import sys
import uuid
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from workbench.study.runs import Run, load_runs
from workbench.views import figures, images, plane, theme
from workbench.views.plane import safety_utility, trajectories
from workbench.views.report import write_report

T2 = 4.302653  # Student's t for 95 % and two degrees of freedom, from a printed table
ATTACK = '<img src=x onerror="document.title=1">'
BREAKOUT = "</script><script>document.title=2</script>"
BROWSER = images.find_browser()
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="pictures are drawn by Chrome or Chromium, a system package that is not installed"
)


def run(label: str, technique: str, seed: int, utility: float, safety: float, over: float, way=(), **more) -> dict:
    steps = [
        {"step": 10 * i, "utility": u, "safety": s, "over_refusal": o} for i, (u, s, o) in enumerate([(1, 0, 0), *way])
    ]
    names = {"run_id": f"{technique}-{seed}", "status": "completed", "label": label, "technique": technique}
    rates = {"utility": utility, "safety": safety, "over_refusal": over}
    base = {"base.utility": 1.0, "base.safety": 0.0, "base.over_refusal": 0.0}
    defaults = {"pipeline": "sft", "model": "micro", "seed": seed, "lr": 0.001, "wall_seconds": 2.0 + seed}
    return {**names, **defaults, **rates, **base, "trajectory": steps, **more}


@pytest.fixture
def table() -> pd.DataFrame:
    """Three plain runs (mean utility .5, safety .9), one replay and two of update projection, one that failed."""
    return pd.DataFrame(
        [
            run("plain", "plain", 0, 0.4, 0.9, 1.0, [(0.8, 0.5, 0.5), (0.4, 0.9, 1.0)]),
            run("plain", "plain", 1, 0.5, 1.0, 0.8, [(0.5, 1.0, 0.8)], lr=0.002),
            run("plain", "plain", 2, 0.6, 0.8, 0.6, [(0.6, 0.6, 0.6)]),
            run("replay, half", "replay", 0, 0.9, 0.7, 0.1, [(0.9, 0.7, 0.1)]),
            run("update, refresh 1", "update_projection", 0, 0.8, 0.95, 0.5, [(0.8, 0.95, 0.5)]),
            run("update, refresh 1", "update_projection", 1, 0.9, 0.95, 0.3, [(0.9, 0.95, 0.3)]),
            run("plain", "plain", 9, np.nan, np.nan, np.nan, status="failed"),
        ]
    )


def named(figure: go.Figure, name: str) -> go.Scatter:
    found = [trace for trace in figure.data if trace.name == name]
    assert found, f"no trace {name!r} among {[trace.name for trace in figure.data]}"
    return found[0]


def strings(value: object) -> list[str]:
    """All text of a figure, hovers and names included."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [text for part in parts for text in strings(part)]


# the plane


def test_means_and_error_bars_are_those_worked_out_by_hand(table):
    mark = named(safety_utility(table), "plain")
    assert (mark.x[0], mark.y[0]) == (pytest.approx(0.5), pytest.approx(0.9))
    half = T2 * 0.1 / 3**0.5  # the standard deviation of .4, .5, .6 and of .8, .9, 1 is .1
    for bar in (mark.error_x, mark.error_y):
        assert [bar.array[0], bar.arrayminus[0]] == pytest.approx([half, half], rel=1e-5)


def test_with_several_bases_each_counts_once(table):
    more = pd.DataFrame([run("plain", "plain", 7, 0.1, 0.3, 0.0, model="other")])
    figure = safety_utility(pd.concat([table, more]))
    mark = named(figure, "plain")
    assert (mark.x[0], mark.y[0]) == (pytest.approx((0.5 + 0.1) / 2), pytest.approx((0.9 + 0.3) / 2))
    assert "over bases" in figure.layout.title.text
    assert "over runs" in safety_utility(table).layout.title.text


def test_one_run_has_a_mark_without_bars(table):
    mark = named(safety_utility(table), "replay, half")
    assert (mark.x[0], mark.y[0]) == (0.9, 0.7)
    assert mark.error_x.array is None and mark.error_y.array is None


def test_every_completed_run_is_a_small_mark_that_tells_which_it_is(table):
    dots = next(t for t in safety_utility(table).data if t.marker.size == 5 and t.legendgroup == "plain")
    assert sorted(zip(dots.x, dots.y, strict=True)) == [(0.4, 0.9), (0.5, 1.0), (0.6, 0.8)]
    text = dots.hovertext[list(dots.x).index(0.5)]
    assert all(part in text for part in ("plain-1", "seed 1", "base micro", "utility 0.500", "lr = 0.002"))


def test_trajectories_start_at_the_base_and_part_between_runs(table):
    figure = safety_utility(table)
    way = next(t for t in figure.data if t.mode == "lines+markers" and t.legendgroup == "plain" and t.xaxis == "x")
    assert list(way.x) == [1, 0.8, 0.4, None, 1, 0.5, None, 1, 0.6, None]
    assert list(way.y) == [0, 0.5, 0.9, None, 0, 1.0, None, 0, 0.6, None]
    assert "step 10" in way.hovertext[1]
    assert not [t for t in safety_utility(table, trajectories=False).data if t.mode == "lines+markers"]


def test_the_base_is_a_star_from_the_record_or_else_from_step_0(table):
    star = named(safety_utility(table), "base model, before alignment")
    assert (star.marker.symbol, list(star.x), list(star.y)) == ("star", [1.0], [0.0])
    unrecorded = table.drop(columns=[name for name in table if name.startswith("base.")])
    unrecorded.at[0, "trajectory"] = [{"step": 0, "utility": 0.4, "safety": 0.6}]
    again = named(safety_utility(unrecorded), "base model, before alignment")
    assert (again.x[0], again.y[0]) == (pytest.approx(0.9), pytest.approx(0.1))  # over six runs


def test_the_front_joins_the_means_that_none_betters(table):
    front = named(safety_utility(table), "Pareto front of the means")
    assert list(front.x)[1:] == pytest.approx([0.85, 0.85, 0.9, 0.9])
    assert list(front.y)[:-1] == pytest.approx([0.95, 0.95, 0.7, 0.7])


def test_crossings_of_a_safety_are_interpolated_along_each_run(table):
    figure = safety_utility(table, matched_safety=0.7)
    marks = [t for t in figure.data if t.marker.symbol == "triangle-down" and t.x[0] is not None]
    plain = next(t for t in marks if t.marker.color == theme.colour_of("plain"))
    # .8 → .4 between safety .5 and .9 is .6 at .7; 1 → .5 between 0 and 1 is .65; the third run never gets there
    assert plain.x[0] == pytest.approx((0.6 + 0.65) / 2)
    assert plain.y[0] == 0.7 and "2 of 3 runs" in plain.hovertext[0]
    assert figure.layout.shapes[0].y0 == 0.7


def test_the_second_panel_shows_over_refusal_on_a_reversed_axis(table):
    figure = safety_utility(table)
    mark = next(t for t in figure.data if t.yaxis == "y2" and t.name == "plain")
    assert (mark.x[0], mark.y[0]) == (pytest.approx(0.5), pytest.approx(0.8))
    low, high = figure.layout.yaxis2.range
    assert low > high and figure.layout.xaxis2.matches == "x"
    alone = safety_utility(table.drop(columns="over_refusal"))
    assert {t.yaxis for t in alone.data} == {"y"}


def test_axes_hold_the_data_and_end_where_rates_end(table):
    for axis in (safety_utility(table).layout.xaxis, safety_utility(table).layout.yaxis):
        assert axis.range[0] >= -0.03 and axis.range[1] <= 1.03
        assert axis.range[0] <= 0.4 and axis.range[1] >= 1


def test_the_papers_points_are_its_own_and_cited(table):
    layer = named(safety_utility(table, paper=True), plane.PAPER_NAME)
    places = zip(np.round(layer.x, 6), np.round(layer.y, 6), strict=True)
    points = dict(zip(places, layer.marker.symbol, strict=True))
    assert len(points) == 16
    assert points[(0.55, 0.878)] == "diamond"  # OGPSA, SFT→DPO
    assert points[(0.553, 0.726)] == "square-open"  # DPO alone
    assert "2602.07892" in layer.name and "other" in layer.name and "0.3" in layer.name


def test_several_pipelines_have_symbols_and_share_the_colour(table):
    table.loc[2, "pipeline"] = "dpo"
    figure = safety_utility(table)
    marks = [t for t in figure.data if t.marker.size == 13 and t.legendgroup == "plain" and t.yaxis == "y"]
    assert {t.marker.symbol for t in marks} == {"circle", "square"}
    assert {t.marker.color for t in marks} == {theme.colour_of("plain")}
    legend = [t.name for t in figure.data if t.showlegend]
    assert legend.count("plain") == 1 and {"SFT", "DPO"} <= {*legend}


def test_technique_is_the_key_where_there_is_no_label(table):
    assert {"plain", "replay", "update_projection"} <= {
        t.name for t in safety_utility(table.drop(columns="label")).data
    }


def test_the_table_of_load_runs_is_drawn_as_it_comes(tmp_path):
    for seed, status in enumerate(("completed", "completed", "failed")):
        made = Run.start(tmp_path, {"technique": "plain", "pipeline": "sft", "seed": seed}, slug="plain")
        made.log({"step": 0, "evaluation": True, "utility": 1.0, "safety": 0.0})
        made.log({"step": 5, "evaluation": True, "utility": 0.6, "safety": 0.9})
        scores = {"utility": 0.6 + seed / 10, "safety": 0.9} if status == "completed" else {}
        made.finish(status, scores=scores, base_scores={"utility": 1.0, "safety": 0.0})
    loaded = load_runs(tmp_path)
    assert named(safety_utility(loaded, matched_safety=0.45), "plain").x[0] == pytest.approx(0.65)
    assert list(named(trajectories(loaded), "plain").y) == [1.0, 0.6]
    assert "0.350 [" in write_report(loaded, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.iloc[:0], "none among 0 rows"),
        (lambda t: t.assign(status="interrupted"), "none among 7 rows"),
        (lambda t: t.drop(columns="safety"), "without safety"),
        (lambda t: t.drop(columns=["label", "technique"]), "without technique"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(table, change, told):
    with pytest.raises(ValueError, match=f"expected .*{told}.*: "):
        safety_utility(change(table))


def test_trajectories_are_means_by_step_with_bands_where_runs_are_several(table):
    figure = trajectories(table, ["utility"])
    line = named(figure, "plain")
    assert list(line.x) == [0, 10, 20]
    assert list(line.y) == pytest.approx([1.0, (0.8 + 0.5 + 0.6) / 3, 0.4])
    band = next(t for t in figure.data if t.fill == "toself" and t.legendgroup == "plain")
    half = T2 * np.std([0.8, 0.5, 0.6], ddof=1) / 3**0.5
    assert list(band.x) == [0, 10, 10, 0]  # step 20 has one run
    assert band.y[1] - band.y[2] == pytest.approx(2 * half, rel=1e-5)
    with pytest.raises(ValueError, match="got none in 6 completed runs"):
        trajectories(table, ["toxicity"])


# colours


def test_colours_do_not_depend_on_the_rows_or_on_what_else_is_drawn(table):
    def colours(rows: pd.DataFrame) -> dict:
        return {t.name: t.marker.color for t in safety_utility(rows).data if t.marker.size == 13}

    all_runs = colours(table)
    assert colours(table.iloc[::-1]) == all_runs
    assert colours(table[table["technique"] == "replay"]) == {"replay, half": all_runs["replay, half"]}
    assert len(set(all_runs.values())) == 3


def test_settings_of_a_family_differ_and_keep_its_hue_first():
    labels = {"projected, rank 1": "gradient_projection", "projected, rank 4": "gradient_projection", "plain": "plain"}
    looks = theme.styles(labels)
    assert looks == theme.styles(dict(reversed(labels.items())))
    assert looks["projected, rank 1"].colour == theme.colour_of("gradient_projection")
    assert len({(look.colour, look.dash) for look in looks.values()}) == 3


@pytest.mark.parametrize(
    ("technique", "family"),
    [
        ("update projection, per tensor, refresh 1", "update_projection"),
        ("gradient_projection+merge", "gradient_projection"),
        ("OGPSA, refresh 10", "gradient_projection"),
        ("gradient projection + restore", "restore"),
        ("plain, validated merging", "merge"),
        ("A-GEM", "conflict"),
        ("gem_gradient", "conflict"),
        ("pcgrad", "conflict"),
        ("safegrad+merge", "conflict"),
        ("ewc+merge", "ewc"),
        ("confidence_weighting", "confidence"),
        ("lora+merge", "lora"),
        ("merge_hma", "merge"),
        ("HMA, 2 parts", "merge"),
        ("brand new", "brand new"),
    ],
)
def test_a_label_belongs_to_the_family_that_shapes_it(technique, family):
    assert theme.family_of(technique) == family


def test_an_unknown_technique_keeps_its_colour_in_another_process():
    names = [f"brand new {i}" for i in range(12)]
    code = f"from workbench.views import theme; print(*map(theme.colour_of, {names}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == [theme.colour_of(name) for name in names]


@pytest.mark.parametrize("page", theme.PAGE.values())
@pytest.mark.parametrize("colour", [theme.NEUTRAL, *theme.SPARE, *(colour for colour, _ in theme.FAMILIES.values())])
def test_every_colour_keeps_a_contrast_of_3_on_both_pages(colour, page):
    def luminance(tone: str) -> float:
        parts = np.array([int(tone[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_themes_differ_and_others_are_refused(table):
    assert theme.template("dark").layout.paper_bgcolor != theme.template("light").layout.paper_bgcolor
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        safety_utility(table, theme="blue")


# the other figures


def test_projection_trace_puts_zeros_on_the_logarithmic_axis_and_tells_them():
    rows = pd.DataFrame({"step": [0, 1], "leakage": [0.2, 0.0], "removed_energy": [0.5, 0.25], "random_floor": 0.01})
    figure = figures.projection_trace({"update projection": rows, "plain": rows[["step", "leakage"]]})
    leakage, energy = (t for t in figure.data if t.name == "update projection" and t.line.dash != "dot")
    assert list(leakage.y) == [0.2, figures.SMALLEST] and "leakage 0, step 1" in leakage.hovertext[1]
    assert list(energy.y) == [0.5, 0.25] and energy.yaxis == "y2"
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis2.type != "log"
    floor = [t for t in figure.data if t.line.dash == "dot" and t.x[0] is not None]
    assert [list(t.y) for t in floor] == [[0.01, 0.01]]
    with pytest.raises(ValueError, match=r"history of 'run', got \['step', 'loss'\]"):
        figures.projection_trace(pd.DataFrame({"step": [0], "loss": [1.0]}))


def test_block_heatmap_keeps_blocks_from_first_to_last():
    values = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["layer 0", "layer 1"], columns=[0, 10])
    figure = figures.block_heatmap(values, "Removed energy", "share")
    assert figure.data[0].z.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert (list(figure.data[0].y), figure.layout.yaxis.autorange) == (["layer 0", "layer 1"], "reversed")
    with pytest.raises(ValueError, match=r"got shape \(0, 0\)"):
        figures.block_heatmap(pd.DataFrame(), "nothing")


def test_spectrum_marks_the_rank_after_the_last_kept_direction():
    figure = figures.spectrum({"facts": [4.0, 2.0, 0.0]}, {"facts": [1.0, 1.0, 1.0]}, rank=2)
    line, floor = figure.data
    assert list(line.x) == [1, 2, 3] and list(line.y)[:2] == [4, 2] and np.isnan(line.y[2])
    assert floor.line.dash == "dot" and floor.line.color == line.line.color
    assert figure.layout.shapes[0].x0 == 2.5


@pytest.mark.parametrize(("n", "written"), [(12, True), (13, False)])
def test_angles_are_written_into_the_cells_while_they_fit(n, written):
    names = [str(i) for i in range(n)]
    heat = figures.angles_heatmap(np.eye(n), names, names).data[0]
    assert (heat.texttemplate is not None) == written
    assert (heat.zmin, heat.zmax) == (0, 1) and heat.z.tolist() == np.eye(n).tolist()
    with pytest.raises(ValueError, match="for the given names, got"):
        figures.angles_heatmap(np.eye(n), names, names[1:])


def test_projection_frame_draws_arrows_to_their_coordinates_at_equal_scale():
    figure = figures.projection_frame({"gradient": (3, 4, 12), "nothing": (0, 0, 0)})
    (cone,) = (t for t in figure.data if t.type == "cone")  # nothing has no direction
    assert (cone.x[0], cone.y[0], cone.z[0]) == (3, 4, 12)
    assert [cone.u[0], cone.v[0], cone.w[0]] == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    shaft = named(figure, "gradient")
    assert (shaft.x[0], shaft.y[0], shaft.z[0]) == (0, 0, 0)
    assert np.cross([shaft.x[1], shaft.y[1], shaft.z[1]], [3, 4, 12]) == pytest.approx([0, 0, 0])
    assert figure.layout.scene.aspectmode == "data"
    with pytest.raises(ValueError, match=r"3 finite coordinates .* for 'flat'"):
        figures.projection_frame({"flat": (1, 2)})


def test_loss_slices_share_the_plane_and_mark_theta():
    grid = np.arange(6.0).reshape(2, 3)
    figure = figures.loss_slice([-1, 0, 1], [0, 1], {"safety": grid, "reference": grid + 1})
    contours = [t for t in figure.data if t.type == "contour"]
    assert [t.z.tolist() for t in contours] == [grid.tolist(), (grid + 1).tolist()]
    assert [(t.x[0], t.y[0]) for t in figure.data if t.type == "scatter"] == [(0, 0), (0, 0)]
    with pytest.raises(ValueError, match=r"of shape \(3, 2\), got \(2, 3\)"):
        figures.loss_slice([0, 1], [-1, 0, 1], {"safety": grid})


# text from data is inert


def test_markup_in_labels_is_escaped_in_every_figure(table):
    table = table.assign(label=ATTACK, model=ATTACK, pipeline=ATTACK, run_id=ATTACK, lr=[ATTACK, *"abcdef"])
    rows = pd.DataFrame({"step": [0], "leakage": [0.2]})
    drawn = [
        safety_utility(table, matched_safety=0.7),
        trajectories(table),
        figures.projection_trace({ATTACK: rows}),
        figures.block_heatmap(pd.DataFrame([[1.0]], index=[ATTACK], columns=[ATTACK]), ATTACK, ATTACK),
        figures.spectrum({ATTACK: [1.0]}, {ATTACK: [1.0]}),
        figures.angles_heatmap([[1.0]], [ATTACK], [ATTACK], ATTACK),
        figures.projection_frame({ATTACK: (1, 1, 1)}, ATTACK),
        figures.loss_slice([0, 1], [0, 1], {ATTACK: np.eye(2)}),
    ]
    for figure in drawn:
        content = figure.to_plotly_json()
        for trace in content["data"]:
            trace.pop("legendgroup", None)  # a key, never shown
        shown = "\n".join(strings(content))
        assert "&lt;img" in shown and "<img" not in shown


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


@pytest.fixture
def page(table, tmp_path) -> Path:
    """A report about runs whose texts attack it."""
    table.loc[3, "label"] = ATTACK + BREAKOUT
    table.loc[0, "lr"] = 0.125
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
    assert "url(" not in style and "@import" not in style
    assert [p.name for p in page.parent.iterdir()] == ["report.html"]


def test_the_policy_admits_exactly_the_scripts_of_the_page(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    policy = next(attrs["content"] for _, attrs in elements.tags if "http-equiv" in attrs)
    runnable = [elements.scripts[1], elements.scripts[2]]  # the first is JSON
    wanted = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in runnable}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == wanted
    assert "default-src 'none'" in policy and "http" not in policy


def test_the_page_tells_the_table(page):
    text = page.read_text(encoding="utf-8")
    plain = [cell for cell in re.findall(r"<tr>(.*?)</tr>", text) if "</span>plain<" in cell]
    half = T2 * 0.1 / 3**0.5
    assert f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]" in plain[0]  # utility, and the tax, since the base has 1
    assert plain[0].count(f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]") == 2
    assert '<td class="number" data-value="0.4">0.400</td>' in text
    assert "<dt>lr</dt><dd>0.125</dd>" in text
    assert "<td>failed</td>" in text
    assert html.escape(ATTACK) in text


def test_figures_of_either_theme_follow_the_page(table, tmp_path):
    dark = safety_utility(table, theme="dark")
    path = write_report(table, tmp_path / "report.html", figures={"again": dark})
    data = json.loads(Elements(path.read_text(encoding="utf-8")).scripts[0])
    assert data["figures"][0] == data["figures"][1]
    assert "width" not in json.loads(data["figures"][0])["layout"]  # it fills its box
    assert dark.layout.width == 940  # the caller's figure is left alone
    assert data["config"]["showSendToCloud"] is False


def test_the_page_names_the_environment_of_the_records(table, tmp_path):
    record = {"run_id": "a", "parameters": {}, "parameters_hash": "", "status": "completed", "scores": {}}
    record["environment"] = {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "git_sha": "abc123"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    paths = [str(tmp_path), str(tmp_path / "gone")] + [None] * 5
    text = write_report(table.assign(path=paths), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<footer>python 3.11.7; torch 2.13.0; git_sha abc123</footer>" in text


def dom(path: Path) -> str:
    """The page after its scripts ran, as Chromium writes it out."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    command = [str(BROWSER), *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_browser
def test_in_a_browser_the_plot_is_drawn_and_the_attack_is_text(page):
    text = dom(page)
    body = text[text.index("<body") :]
    assert 'class="main-svg"' in body and 'class="scatterlayer' in body
    assert f"<title>{html.escape(ATTACK, quote=False)}</title>" in text
    assert "<img" not in body.replace(Elements(body).scripts[1], "")


@needs_browser
def test_in_a_browser_the_runs_sort_and_search(page):
    text = page.read_text(encoding="utf-8")
    act = """
    const shown = () => {
      document.querySelectorAll("#runs th button")[4].click();
      const rows = [...document.getElementById("runs").tBodies[0].rows].filter((row) => !row.hidden);
      return rows.map((row) => row.cells[4].textContent).join(" ");
    };
    const field = document.getElementById("search");
    field.value = "PLAIN-";
    field.dispatchEvent(new Event("input"));
    document.title = shown() + " | " + shown();
    """
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    text = text.replace(policy[0], "").replace("</body>", f"<script>{act}</script></body>")
    driven = page.with_name("driven.html")
    driven.write_text(text, encoding="utf-8")
    assert "<title>0.400 0.500 0.600 – | – 0.600 0.500 0.400</title>" in dom(driven)


# pictures


@needs_browser
def test_a_png_has_the_size_of_the_figure_and_no_browser_is_left(tmp_path):
    mark = uuid.uuid4().hex
    code = (
        "import sys, plotly.graph_objects as go; from workbench.views.images import save_png\n"
        "figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={'width': 300, 'height': 200})\n"
        "print(save_png(figure, sys.argv[1] + '/deep/a.png')); save_png(figure, sys.argv[1] + '/b.png', scale=1)"
    )
    environment = os.environ | {"WORKBENCH_TEST_MARK": mark}
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == str(tmp_path / "deep" / "a.png") and not ended.stderr
    for name, size in (("deep/a.png", (600, 400)), ("b.png", (300, 200))):
        head = (tmp_path / name).read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) == size
    left = [p for p in Path("/proc").glob("[0-9]*/environ") if os.access(p, os.R_OK) and mark.encode() in read(p)]
    assert not left


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process that ended meanwhile
        return b""


def test_without_a_browser_a_warning_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.warns(UserWarning, match=r"got .*none\. Run `plotly_get_chrome`"):
        assert images.save_png(go.Figure(), tmp_path / "a.png") is None
    assert not (tmp_path / "a.png").exists()


def test_show_puts_the_interactive_figure_and_the_picture_in_one_output(monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: displayed.append((bundle, raw)))
    monkeypatch.setattr(images, "picture", lambda figure, scale: b"picture")
    monkeypatch.setattr(type(pio.renderers), "default", "plotly_mimetype")
    images.show(go.Figure(go.Scatter(y=[1, 2])))
    ((bundle, raw),) = displayed
    assert raw and base64.b64decode(bundle["image/png"]) == b"picture"
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "scatter"


def test_show_without_a_picture_leaves_the_display_to_plotly(monkeypatch):
    shown = []
    monkeypatch.setattr(images, "picture", lambda figure, scale: None)
    monkeypatch.setattr(go.Figure, "show", lambda figure, config: shown.append(config))
    images.show(go.Figure())
    assert shown == [theme.CONFIG]

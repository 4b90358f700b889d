"""Figures and pages say what the table says: their data are compared with values worked out by hand."""

import base64
import os
import struct
import subprocess
import sys
import uuid
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from figure_texts import shown_text
from needs import needs_browser

from workbench.study.runs import Run, load_runs
from workbench.study.tradeoff import hypervolume
from workbench.views import figures, images, palette, plane, theme
from workbench.views.plane import safety_utility, trajectories
from workbench.views.report import write_report
from workbench.views.texts import text_table

T2 = 4.302653  # Student's t for 95 % and two degrees of freedom, from a printed table
ATTACK = '<img src=x onerror="document.title=1">'
BREAKOUT = "</script><script>document.title=2</script>"


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
    found = [trace for trace in figure.data if str(trace.name).split("<br>hyper")[0] == name]
    assert found, f"no trace {name!r} among {[trace.name for trace in figure.data]}"
    return found[0]


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


def test_the_hypervolume_is_that_of_the_means_to_the_point_it_names(table):
    names = [t.name for t in safety_utility(table).data if str(t.name).startswith("Pareto")]
    # Plain .5 / .9 / .8, replay .9 / .7 / .1, projection .85 / .95 / .4, and the corner of a model worth nothing.
    means = pd.DataFrame({"utility": [0.5, 0.9, 0.85], "safety": [0.9, 0.7, 0.95], "over_refusal": [0.8, 0.1, 0.4]})
    plane = hypervolume(means, {"utility": 0, "safety": 0})
    assert plane == pytest.approx(0.85 * 0.95 + 0.05 * 0.7)  # by hand
    whole = hypervolume(means, {"utility": 0, "safety": 0, "over_refusal": 1}, ["over_refusal"])
    told = f"hypervolume {plane:.3f} above utility 0, safety 0;<br>{whole:.3f} with over-refusal, below 1"
    assert names == [f"Pareto front of the means<br>{told}"]
    shade = next(t for t in safety_utility(table).data if t.fill == "toself" and t.legendgroup == "front")
    assert max(shade.x) == pytest.approx(0.9) and max(shade.y) == pytest.approx(0.95)


def test_techniques_are_named_beside_the_plane_where_lines_do_not_cross(table):
    figure = safety_utility(table)
    key = [t for t in figure.data if t.mode == "lines+markers+text"]
    assert {t.text[1].strip() for t in key} == {"plain", "replay, half", "update, refresh 1"}
    heights = sorted(t.y[0] for t in key)
    assert all(high - low > 0.03 for low, high in pairwise(heights)) and heights[0] >= 0 and heights[-1] <= 1
    leaders = {t.legendgroup: t for t in figure.data if t.mode == "lines" and t.xaxis == "x2" and len(t.x) == 2}
    for one, other in combinations(leaders.values(), 2):
        (x1, x2), (y1, y2) = (sorted([one.x[0], other.x[0]]), (one, other))
        at = [np.interp(x2, t.x, t.y) for t in (y1, y2)]  # where both have begun
        assert (at[0] - at[1]) * (y1.y[1] - y2.y[1]) >= 0
        assert one.x[1] == other.x[1] == figure.layout.xaxis2.range[1] and x1 <= x2
    assert not [t for t in safety_utility(table, on="column").data if t.mode == "lines+markers+text"]


def test_a_focus_says_what_it_leaves_out(table):
    far = pd.concat([table, pd.DataFrame([run("plain", "plain", s, 0.5, 0.9, 0.8) for s in range(20, 60)])])
    far.iloc[0, far.columns.get_loc("utility")] = 0.0
    figure = safety_utility(far, focus=True)
    axes = {"utility": figure.layout.xaxis, "safety": figure.layout.yaxis, "over_refusal": figure.layout.yaxis2}
    done = far[far["status"] == "completed"]
    inside = [done[name].between(*sorted(axis.range)) for name, axis in axes.items()]
    n = int((~np.logical_and.reduce(inside)).sum())
    told = figure.layout.title.text.replace("<br>", " ")
    assert n >= 1 and not inside[0].iloc[0] and f"Outside the axes: {n} of {len(done)} runs." in told
    assert "Outside" not in safety_utility(far).layout.title.text


@pytest.mark.parametrize("on", theme.SIZES)
def test_figures_fit_what_they_are_read_on(table, on):
    layout = safety_utility(table, on=on).layout
    if on == "slide":
        assert (layout.width, layout.height) == (960, 540)
    if on == "column":
        assert layout.width == 340 and layout.yaxis.domain[0] > layout.yaxis2.domain[1]
    assert layout.template.layout.font.size == pytest.approx(14 * theme.SIZES[on].font)
    with pytest.raises(ValueError, match="page, slide, column, got 'wall'"):
        safety_utility(table, on="wall")


def test_ways_may_be_of_some_runs_and_the_title_says_so(table):
    figure = safety_utility(table, trajectories=2)
    ways = [t for t in figure.data if t.marker.size == 3 and t.xaxis == "x"]
    assert sum([*t.x].count(None) for t in ways) == 2 and "of 2 of 6 runs" in figure.layout.title.text.replace(
        "<br>", " "
    )


def test_crossings_of_a_safety_are_interpolated_along_each_run(table):
    figure = safety_utility(table, matched_safety=0.7)
    marks = [t for t in figure.data if t.marker.symbol == "triangle-down" and t.x[0] is not None]
    plain = next(t for t in marks if t.marker.color == palette.colour_of("plain"))
    # .8 → .4 between safety .5 and .9 is .6 at .7; 1 → .5 between 0 and 1 is .65; the third run never gets there
    assert plain.x[0] == pytest.approx((0.6 + 0.65) / 2)
    assert plain.y[0] == 0.7 and "2 of 3 runs" in plain.hovertext[0]
    (line,) = [t for t in figure.data if t.line.dash == "dash" and t.legendgroup == "crossing"]
    assert [*line.y] == [0.7, 0.7] and [*line.x] == [*figure.layout.xaxis.range]


def test_the_second_panel_shows_over_refusal_on_a_reversed_axis(table):
    figure = safety_utility(table)
    mark = next(t for t in figure.data if t.yaxis == "y2" and t.name == "plain")
    assert (mark.x[0], mark.y[0]) == (pytest.approx(0.5), pytest.approx(0.8))
    low, high = figure.layout.yaxis2.range
    assert low > high and figure.layout.xaxis2.range == figure.layout.xaxis.range
    alone = safety_utility(table.drop(columns="over_refusal"))
    assert {t.yaxis for t in alone.data} == {"y", "y2"} and not alone.layout.yaxis2.visible  # the key


def test_axes_hold_the_data_and_end_where_rates_end(table):
    for axis in (safety_utility(table).layout.xaxis, safety_utility(table).layout.yaxis):
        assert axis.range[0] >= -0.04 and axis.range[1] <= 1.04
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
    assert {t.marker.color for t in marks} == {palette.colour_of("plain")}
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


# themes


def test_themes_differ_and_others_are_refused(table):
    assert theme.template("dark").layout.paper_bgcolor != theme.template("light").layout.paper_bgcolor
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        safety_utility(table, theme="blue")


# the other figures


def test_projection_trace_puts_zeros_on_the_logarithmic_axis_and_tells_them():
    rows = pd.DataFrame({"step": [0, 1], "leakage": [0.2, 0.0], "removed_energy": [0.5, 0.25], "random_floor": 0.01})
    figure = figures.projection_trace({"update projection": rows, "plain": rows[["step", "leakage"]]})
    leakage, energy = (t for t in figure.data if t.name == "update projection" and t.line.dash != "dot")
    assert (
        list(leakage.y) == [0.2, figures.SMALLEST]
        and leakage.text[1] == "0"
        and "%{text}, step %{x}" in leakage.hovertemplate
    )
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
        go.Figure(figure.to_plotly_json())  # checks every value, which drawing leaves out
        assert "&lt;img" in shown_text(figure) and "<img" not in shown_text(figure)


# pictures


@needs_browser
def test_texts_with_characters_that_xml_forbids_are_drawn():
    told = theme.safe("nul\0, bell\a, none\ufffe; tab\t, ç, 👩")
    assert told == "nul\ufffd, bell\ufffd, none\ufffd; tab\t, ç, 👩"
    assert images.picture(go.Figure(go.Scatter(x=[1], y=[1], text=[told], mode="text")), 1)


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


# tables of texts


def test_a_table_of_texts_shows_them_whole_from_the_left_and_lets_no_markup_act():
    long = "word " * 100
    table = text_table([{"answer": ATTACK, f"<b>{long}": "two\nlines, $5 or $6"}, {"answer": long}])
    html = table.to_html()
    assert "<img" not in html and html.count("&lt;img") == 1 and "<b>" not in html
    assert html.count(long) == 2 and "two\nlines" in html and "pre-wrap" in html
    assert "mathjax_ignore" in html and "text-align: left" in html
    assert "row_heading" not in html  # a number says nothing
    named = text_table(pd.DataFrame({"n": [1]}, index=[ATTACK])).to_html()
    assert "row_heading" in named and "<img" not in named
    assert named.count("<tr") == 2 and "nan" not in text_table([{"a": "x"}, {"b": None}]).to_html()
    listed = text_table(pd.DataFrame({"texts": [[ATTACK, "two"]], "n": [0.1234567]}).rename_axis("<u>n</u>")).to_html()
    assert "<img" not in listed and "<u>" not in listed and "&gt;\ntwo" in listed and "0.123457" in listed

"""The trade-off explorer: what it shows is what the table says, every control is a trait, and no text is markup."""

import json
import re

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from traitlets import TraitError

from workbench.study.runs import Run, load_runs
from workbench.study.tradeoff import interval, matched_safety
from workbench.views.explorers.tradeoff import TradeoffExplorer

ATTACK = '<img src=x onerror="window.attacked=1">'
WAYS = {
    "plain": [(1.0, 0.0, 0.0), (0.8, 0.5, 0.5), (0.4, 0.9, 1.0)],
    "replay": [(1.0, 0.0, 0.0), (0.9, 0.8, 0.2)],
    "ogpsa": [(1.0, 0.0, 0.0), (0.7, 0.6, 0.4)],
}


def run(technique: str, seed: int, pipeline: str = "sft", **more) -> dict:
    names = ("utility", "safety", "over_refusal")
    way = [{"step": 10 * i, **dict(zip(names, point, strict=True))} for i, point in enumerate(WAYS[technique])]
    end = {name: way[-1][name] + 0.01 * seed for name in names}
    base = {f"base.{name}": way[0][name] for name in names}
    who = {"run_id": f"{technique}-{pipeline}-{seed}", "status": "completed", "label": f"{technique}, as it is"}
    what = {"technique": technique, "pipeline": pipeline, "model": "micro", "seed": seed, "lr": 0.1 + 0.1 * seed}
    return {**who, **what, **base, **end, "stages": ["sft"], "trajectory": way, **more}


def rows() -> list[dict]:
    nothing = {"utility": np.nan, "safety": np.nan, "over_refusal": np.nan, "trajectory": []}
    return [
        *(run("plain", seed) for seed in (0, 1, 2)),
        *(run("replay", seed) for seed in (0, 1)),
        *(run("ogpsa", seed, "dpo") for seed in (0, 1)),
        run("replay", 2, trajectory=[]),
        run("plain", 3, status="failed", **nothing),
        run("ogpsa", 3, "dpo", safety=np.nan),
    ]


@pytest.fixture
def table() -> pd.DataFrame:
    """Seven runs with trajectories, one without, one that failed, one without safety."""
    return pd.DataFrame(rows(), index=range(2, 12))


@pytest.fixture
def explore():
    made = []

    def make(table, **traits) -> TradeoffExplorer:
        made.append(TradeoffExplorer(table, **traits))
        return made[-1]

    yield make
    for explorer in made:
        explorer.close()


def drawn_ids(explorer: TradeoffExplorer) -> list[str]:
    """The runs with a small mark in the upper panel."""
    marks = [t for t in explorer._plot.figure["data"] if "customdata" in t and t["yaxis"] == "y"]
    return [run for trace in marks for run in trace["customdata"]]


def texts(explorer: TradeoffExplorer) -> dict[str, str]:
    parts = ("status", "missing", "key", "comparison", "opened")
    return {name: getattr(explorer, f"_{name}").value for name in parts}


# filters


def test_filters_leave_the_rows_that_match_all_of_them_failed_ones_included(table, explore):
    explorer = explore(table)
    pd.testing.assert_frame_equal(explorer.filtered, table)
    explorer.technique = ("plain, as it is", "replay, as it is")
    pd.testing.assert_frame_equal(explorer.filtered, table[table.technique.isin(["plain", "replay"])])
    explorer.seed = (2, 3)
    assert explorer.filtered["run_id"].tolist() == ["plain-sft-2", "replay-sft-2", "plain-sft-3"]
    assert drawn_ids(explorer) == ["plain-sft-2", "replay-sft-2"]
    explorer._show_all()
    pd.testing.assert_frame_equal(explorer.filtered, table)


def test_what_cannot_be_drawn_is_counted_and_listed_with_its_reason(table, explore):
    explorer = explore(table)
    assert set(drawn_ids(explorer)) == set(table.run_id) - {"plain-sft-3", "ogpsa-dpo-3"}
    told = texts(explorer)
    assert "10 of 10 runs match, 8 drawn. Not drawn: 1 failed, 1 without utility or safety." in told["status"]
    assert re.findall(r"(?:plain|ogpsa|replay)-\w+-\d", told["missing"]) == ["plain-sft-3", "ogpsa-dpo-3"]
    assert ("plain, as it is, sft, seed 3 (failed)", "plain-sft-3") in control(explorer, "Run A").options


def test_where_nothing_matches_a_line_says_so_and_nothing_breaks(table, explore):
    explorer = explore(table, technique=("replay, as it is",), pipeline=("dpo",))
    assert explorer.filtered.empty and explorer.matched.empty and drawn_ids(explorer) == []
    assert "No run matches these filters" in texts(explorer)["status"]
    assert isinstance(explorer.still(), go.Figure)
    explorer.matched_safety = 0.3
    explorer.focus = True
    explorer.pipeline = ()
    assert len(drawn_ids(explorer)) == 3 and "No run" not in texts(explorer)["status"]


def test_a_table_of_failures_alone_is_shown_as_such(table, explore):
    explorer = explore(table[table.status == "failed"])
    assert drawn_ids(explorer) == [] and "1 of 1 runs match, 0 drawn. Not drawn: 1 failed." in texts(explorer)["status"]


def test_a_filter_with_one_value_has_no_list_and_a_changed_list_is_a_changed_trait(table, explore):
    explorer = explore(table)
    assert {name for name in ("Technique", "Pipeline", "Seed", "Base") if control(explorer, name)} == {
        *("Technique", "Pipeline", "Seed")
    }
    control(explorer, "Pipeline").value = ("dpo",)
    assert explorer.pipeline == ("dpo",) and set(explorer.filtered.pipeline) == {"dpo"}
    explorer.seed = (0,)
    assert control(explorer, "Seed").value == (0,)
    one = explore(table[table.seed == 0])
    assert control(one, "Seed") is None and len(drawn_ids(one)) == 3


def control(explorer: TradeoffExplorer, description: str) -> ipywidgets.Widget | None:
    found, boxes = [], [explorer]
    while boxes:
        box = boxes.pop()
        boxes += [child for child in box.children if isinstance(child, ipywidgets.Box)]
        found += [child for child in box.children if getattr(child, "description", "") == description]
    return found[0] if found else None


# equal safety


def test_at_equal_safety_values_are_those_worked_out_by_hand(table, explore):
    matched = explore(table, matched_safety=0.7).matched.set_index("group")
    # plain: from (.8, .5) to (.4, .9) at safety .5 and .9, halfway; replay: 7/8 of the way from (1, 0) to (.9, .2)
    assert matched.loc["plain, as it is", "utility"] == pytest.approx(0.6)
    assert matched.loc["plain, as it is", "over_refusal"] == pytest.approx(0.75)
    assert matched.loc["replay, as it is", "utility"] == pytest.approx(1 - 0.1 * 7 / 8)
    columns = ["runs", "with_trajectory", "reached"]
    assert matched.loc["replay, as it is", columns].tolist() == [3, 2, 2]
    assert matched.loc["ogpsa, as it is", columns].tolist() == [2, 2, 0]
    assert np.isnan(matched.loc["ogpsa, as it is", "utility"])


@pytest.mark.parametrize("safety", [0.0, 0.55, 1.0])
def test_at_equal_safety_means_and_intervals_are_the_study_s(table, explore, safety):
    rest = {"trajectory": [{"step": 0, "safety": 0.0, "utility": 0.9, "over_refusal": 0.1}, *WAYS_LATER]}
    several = pd.concat([table, pd.DataFrame([run("plain", 7, **rest)])])
    matched = explore(several, matched_safety=safety).matched.set_index("group")
    read = matched_safety(several[several.label == "plain, as it is"].query("status == 'completed'"), safety)
    expected = interval(read["utility"])
    names = ["utility", "utility.low", "utility.high", "utility.n"]
    np.testing.assert_allclose(matched.loc["plain, as it is", names].astype(float), expected, equal_nan=True)


WAYS_LATER = [{"step": 10, "safety": 1.0, "utility": 0.5, "over_refusal": 0.3}]


def test_the_slider_moves_what_lies_over_the_plane_and_leaves_the_plane(table, explore):
    explorer = explore(table)
    figure, n_over = explorer._plot._json, len(explorer._plot.over)
    for safety in (0.1, 0.5, 0.95):
        explorer.matched_safety = safety
        line = explorer._plot.over[0]
        assert line["y"] == [safety, safety] and len(explorer._plot.over) == n_over
        crossings = set(explorer._plot.over[1]["x"])
        reached = explorer.matched.dropna(subset="utility")
        assert crossings == set(reached["utility"].round(6)) and f"At safety {safety:.2f}" in texts(explorer)["key"]
    explorer.run_a = "plain-sft-0"
    explorer.technique = ("plain, as it is",)
    assert len(explorer._plot.over) == n_over and explorer._plot._json != figure
    explorer.technique = ()
    assert explorer._plot._json == figure


# the plane


def test_large_marks_are_the_means_of_the_filtered_runs(table, explore):
    explorer = explore(table, technique=("plain, as it is",))
    large = [t for t in explorer._plot.figure["data"] if "error_x" in t]
    mean, low, high, _ = interval(table["utility"].iloc[:3])
    assert [t["x"] for t in large] == [[pytest.approx(mean, abs=1e-6)]] * 2
    assert large[0]["error_x"]["array"] == [pytest.approx(high - mean, abs=1e-6)]
    assert large[0]["error_x"]["arrayminus"] == [pytest.approx(mean - low, abs=1e-6)]
    explorer.seed = (0,)
    large = [t for t in explorer._plot.figure["data"] if "error_x" in t]
    assert large[0]["x"] == [0.4] and large[0]["error_x"]["array"] == [0.0]


def test_axes_can_be_any_scores_and_marks_stay_where_they_are_while_filters_change(table, explore):
    explorer = explore(table)
    ranges = explorer._plot.figure["layout"]["yaxis2"]["range"]
    assert ranges[0] > ranges[1], "less over-refusal is better, and up"
    explorer.technique = ("replay, as it is",)
    assert explorer._plot.figure["layout"]["yaxis2"]["range"] == ranges
    explorer.focus = True
    assert explorer._plot.figure["layout"]["xaxis"]["range"] == pytest.approx([0.88, 0.94])
    explorer.x, explorer.y, explorer.beside = "over_refusal", "utility", None
    layout = explorer._plot.figure["layout"]
    assert "yaxis2" not in layout and "Over-refusal" in layout["xaxis"]["title"]["text"]
    small = next(t for t in explorer._plot.figure["data"] if "customdata" in t)
    assert small["x"] == pytest.approx(table.query("technique == 'replay'").over_refusal.tolist())
    explorer.still()


def test_safety_across_is_a_choice_like_any_other(table, explore):
    explorer = explore(table, x="safety", y="utility", beside="over_refusal", matched_safety=0.5)
    upright = [t for t in explorer._plot.over if t["mode"] == "lines" and t["x"] == [0.5, 0.5]]
    assert len(upright) == 2  # in each panel
    marks = [t for t in explorer._plot.over if t.get("hovertext")]
    assert len(marks) == 2 and all({*t["x"]} == {0.5} for t in marks)
    explorer.y, explorer.run_a = "safety", "plain-sft-0"
    assert explorer.record["run_id"] == "plain-sft-0"


def test_the_still_picture_follows_the_controls(table, explore):
    explorer = explore(table, beside=None)
    titles = [axis.title.text for axis in explorer.still().select_yaxes()]
    assert len(titles) == 1 and "Safety" in titles[0]
    explorer.beside, explorer.run_a, explorer.focus = "over_refusal", "replay-sft-0", True
    still = explorer.still()
    assert tuple(still.layout.xaxis.range) == tuple(explorer._plot.figure["layout"]["xaxis"]["range"])
    named = {trace.name for trace in still.data if trace.showlegend}
    assert named == {f"{m.group}, {m.pipeline}" for m in explorer._shown().means.itertuples()}
    assert any("A" in str(trace.text) for trace in still.data if trace.mode == "markers+text")


def test_the_json_of_a_figure_holds_no_value_that_json_does_not_know(table, explore):
    explorer = explore(table, run_a="ogpsa-dpo-3", run_b="plain-sft-3")
    for text in (explorer._plot._json, json.dumps(explorer._plot.over)):
        assert "NaN" not in text and "Infinity" not in text


# two runs, and one


def test_the_comparison_tells_what_differs_and_by_how_much(table, explore):
    explorer = explore(table)
    assert explorer.comparison.empty
    explorer.run_a, explorer.run_b = "plain-sft-0", "plain-sft-1"
    compared = explorer.comparison
    assert set(compared.index[compared.differs]) == {"seed", "lr", "utility", "safety", "over_refusal"}
    assert compared.loc["utility"].tolist() == ["score", 0.4, pytest.approx(0.41), True, pytest.approx(0.01)]
    assert compared.loc["lr", ["kind", "A", "B"]].tolist() == ["parameter", 0.1, 0.2]
    assert compared.loc["stages", "A"] == ["sft"] and not compared.loc["stages", "differs"]
    told = texts(explorer)["comparison"]
    assert told.count("≠") == 5 and f"The same in both: {len(compared) - 5} values" in told


def test_a_table_from_parquet_is_compared_like_the_one_it_was(table, explore, tmp_path):
    whole = table.assign(domains=[["facts", "sums"]] * len(table)).drop(columns="trajectory")
    whole.to_parquet(tmp_path / "runs.parquet")
    chosen = {"run_a": "plain-sft-0", "run_b": "plain-sft-1"}
    read = explore(pd.read_parquet(tmp_path / "runs.parquet"), **chosen)
    assert read.comparison["differs"].to_dict() == explore(whole, **chosen).comparison["differs"].to_dict()
    read.opened = "plain-sft-0"
    assert not read.comparison.loc["domains", "differs"] and "facts" in read._opened.value


def test_what_one_run_lacks_differs_and_what_both_lack_is_left_out(table, explore):
    table["decay"] = [0.5] + [np.nan] * (len(table) - 1)
    explorer = explore(table, run_a="plain-sft-0", run_b="plain-sft-1")
    assert explorer.comparison.loc["decay", "differs"]
    explorer.run_a = "plain-sft-2"
    assert "decay" not in explorer.comparison.index
    explorer.run_a = "plain-sft-1"
    assert (
        not explorer.comparison.differs.any() and "Nothing that was recorded differs" in texts(explorer)["comparison"]
    )


def test_clicks_take_a_run_as_a_and_as_b_by_turns_and_open_its_record(table, explore):
    explorer = explore(table)
    for times, (run_id, a, b) in enumerate(
        [
            ("plain-sft-0", "plain-sft-0", None),
            ("replay-sft-1", "plain-sft-0", "replay-sft-1"),
            ("plain-sft-2", "plain-sft-2", "replay-sft-1"),
            ("plain-sft-2", "plain-sft-2", "plain-sft-2"),
        ]
    ):
        explorer._plot.chosen = {"value": run_id, "times": times}
        assert (explorer.run_a, explorer.run_b, explorer.opened) == (a, b, run_id)
        assert explorer.record["run_id"] == run_id and run_id in texts(explorer)["opened"]
    explorer.next_choice = "B"
    explorer._plot.chosen = {"value": "ogpsa-dpo-0", "times": 9}
    assert explorer.run_b == "ogpsa-dpo-0"
    rings = explorer._plot.over[4]
    assert rings["text"] == ["<b>A</b>", "<b>B</b>"] and rings["x"] == [0.42, 0.7]


def test_the_record_is_what_the_run_s_folder_holds_its_error_included(tmp_path, explore):
    parameters = {"label": "plain", "technique": "plain", "pipeline": "sft", "model": "micro", "seed": 0, "rank": 4}
    with Run.start(tmp_path, parameters, slug="plain") as done:
        done.log({"step": 0, "evaluation": True, "utility": 1.0, "safety": 0.0})
        done.finish(scores={"utility": 0.9, "safety": 0.8}, base_scores={"utility": 1.0, "safety": 0.0})
    with pytest.raises(RuntimeError), Run.start(tmp_path, parameters | {"seed": 1}, slug="plain"):
        raise RuntimeError(f"the disk was full {ATTACK}")
    table = load_runs(tmp_path)
    explorer = explore(table, opened=done.record["run_id"])
    assert explorer.record == Run.load(done.path).record and explorer.record["parameters"]["rank"] == 4
    failed = table.loc[table.status == "failed", "run_id"].item()
    explorer.opened = failed
    told = texts(explorer)["opened"]
    assert explorer.record["status"] == "failed" and "the disk was full" in told and "<img" not in told
    explorer.opened = None
    assert explorer.record is None and texts(explorer)["opened"] == ""
    gone = explore(table.assign(path=str(tmp_path / "gone")), opened=failed)
    assert gone.record["status"] == "failed" and gone.record["rank"] == 4


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:0], "expected a table with at least one run, got an empty one"),
        (lambda t: t.drop(columns=["label", "technique"]), r"expected the columns \['technique'\]"),
        (lambda t: t.drop(columns="safety"), r"expected the columns \['safety'\]"),
        (lambda t: pd.concat([t, t]), "expected every run once, got 'plain-sft-0' twice"),
    ],
)
def test_tables_that_cannot_be_explored_are_refused(table, change, message):
    with pytest.raises(ValueError, match=message):
        TradeoffExplorer(change(table))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("technique", ("plian",)), ("pipeline", ("rlhf",)), ("seed", (17,)), ("x", "utilty"), ("beside", "harm")),
        *(("run_a", "nobody"), ("opened", "nobody"), ("matched_safety", 1.5), ("next_choice", "C")),
    ],
)
def test_traits_refuse_what_the_table_does_not_have(table, explore, name, value):
    explorer = explore(table)
    before = getattr(explorer, name)
    with pytest.raises(TraitError):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_over_refusal_that_was_not_measured_has_no_panel(table, explore):
    explorer = explore(table.drop(columns=["over_refusal", "base.over_refusal"]))
    assert explorer.beside is None and "yaxis2" not in explorer._plot.figure["layout"]


# widgets


def test_text_of_a_table_is_never_markup(table, explore):
    names = {"label": table["label"] + ATTACK, "pipeline": f"sft{ATTACK}", "model": ATTACK, f"p{ATTACK}": ATTACK}
    attacked = table.assign(**names, error=ATTACK)
    explorer = explore(attacked, run_a="plain-sft-0", run_b="replay-sft-0", opened="plain-sft-3")
    for text in [*texts(explorer).values(), explorer._plot._json, json.dumps(explorer._plot.over)]:
        assert "<img" not in text
    assert "&lt;img" in texts(explorer)["comparison"] and "&lt;img" in explorer._plot._json


def test_showing_twice_adds_neither_observers_nor_widgets_and_closing_leaves_none(table):
    before = {*ipywidgets.Widget.widgets}
    explorer = TradeoffExplorer(table)
    explorer._picture = lambda: None  # of the still figure, which is no widget

    def counts() -> tuple[int, int, int]:
        watched = [
            explorer,
            explorer._plot,
            *(child for box in explorer.children for child in getattr(box, "children", [])),
        ]
        n = sum(len(calls) for one in watched for kinds in one._trait_notifiers.values() for calls in kinds.values())
        return n, len(ipywidgets.Widget.widgets), len(explorer._plot._msg_callbacks.callbacks)

    first = counts()
    for _ in range(2):
        explorer._ipython_display_()
    assert counts() == first
    explorer.close()
    shared = [ipywidgets.Widget.widgets[name] for name in {*ipywidgets.Widget.widgets} - before]
    assert {type(one).__name__ for one in shared} <= {"PlotlyLibrary", "LayoutModel", "Layout"} | STYLES


STYLES = {f"{name}Style" for name in ("Description", "Button", "HTML", "Slider", "Checkbox", "ToggleButtons")}

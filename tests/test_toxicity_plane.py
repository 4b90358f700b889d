"""The toxicity–faithfulness plane and the tax by size say what their table says."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figure_texts import shown_text

from workbench.study.tradeoff import over_bases, summarise
from workbench.views import model_size, toxicity_faithfulness
from workbench.views.faithfulness_plane import KNEE

ATTACK = '<img src=x onerror="document.title=1">'


def run(label: str, seed: int, greedy: tuple, sampled: tuple, utility: float = 0.8, **more) -> dict:
    names = {"run_id": f"{label}-{seed}", "status": "completed", "label": label, "technique": "plain", "seed": seed}
    scores: dict = {"utility": utility, "base.utility": 1.0, "lr": 0.001 * (seed + 1)}
    for suite, (toxicity, faithfulness) in {"portraits": greedy, "portraits_sampled": sampled}.items():
        scores |= {f"{suite}/toxicity": toxicity, f"{suite}/faithfulness": faithfulness}
        scores |= {f"base.{suite}/toxicity": 0.5, f"base.{suite}/faithfulness": 0.6}
    return names | {"pipeline": "contrastive", "model": "micro"} | scores | more


@pytest.fixture
def table() -> pd.DataFrame:
    """Likelihood on two bases, parting and filtered data once, a run that failed; no safety anywhere."""
    return pd.DataFrame(
        [
            run("likelihood", 0, (0.00, 0.7), (0.04, 0.6), 0.7),
            run("likelihood", 1, (0.02, 0.9), (0.08, 0.8), 0.9),
            run("likelihood", 2, (0.05, 0.5), (0.20, 0.4), 0.5, model="other"),
            run("parting", 0, (0.0, 0.85), (0.01, 0.8)),
            run("filtered data", 0, (0.0, 0.95), (0.005, 0.9), pipeline="sft"),
            run("likelihood", 9, (np.nan, np.nan), (np.nan, np.nan), np.nan, status="failed"),
        ]
    )


def large(trace: go.Scatter) -> bool:
    """Whether a trace is a mean, with a text to hover for."""
    return trace.hovertext is not None and "<br>mean of" in trace.hovertext[0]


def mean(figure: go.Figure, label: str, axis: str = "x") -> go.Scatter:
    (mark,) = [t for t in figure.data if large(t) and t.name == label and t.xaxis == axis]
    return mark


def shown(placed: float) -> float:
    """The share that lies at a place of the axis."""
    return KNEE * np.sinh(placed)


@pytest.mark.parametrize(("axis", "suite"), [("x", "portraits"), ("x2", "portraits_sampled")])
def test_means_and_bars_are_those_of_summarise_over_bases(table, axis, suite):
    done = table[table["status"] == "completed"]
    names = [f"{suite}/toxicity", f"{suite}/faithfulness"]
    summary = summarise(over_bases(done, names, ["label"]), "label", names).loc["likelihood"]
    mark = mean(toxicity_faithfulness(table), "likelihood", axis)
    across, up = summary[names[0]], summary[names[1]]
    assert [shown(mark.x[0]), mark.y[0]] == pytest.approx([across["mean"], up["mean"]])
    ends = [shown(mark.x[0] + mark.error_x.array[0]), shown(mark.x[0] - mark.error_x.arrayminus[0])]
    assert ends == pytest.approx([across["high"], across["low"]])
    assert mark.error_y.array[0] == pytest.approx(up["high"] - up["mean"])
    assert mean(toxicity_faithfulness(table), "parting", axis).error_x.array is None


def test_toxicity_is_reversed_on_the_scale_that_its_axis_names(table):
    layout = toxicity_faithfulness(table).layout
    for axis in (layout.xaxis, layout.xaxis2):
        assert axis.range[0] > axis.range[1] and axis.range == layout.xaxis.range
        assert [shown(value) for value in axis.tickvals] == pytest.approx([float(text) for text in axis.ticktext])
        title = axis.title.text.replace("<br>", " ")
        assert "hateful, lower is better →" in title and "linear below 0.02, logarithmic" in title
    assert layout.yaxis.range == layout.yaxis2.range
    assert [note.text for note in layout.annotations] == ["Greedy answers", "Sampled answers"]
    assert "over bases" in layout.title.text


def test_every_completed_run_is_a_small_mark_that_tells_which_it_is(table):
    (dots,) = [
        t
        for t in toxicity_faithfulness(table).data
        if t.marker.size == 5 and t.legendgroup == "likelihood" and t.xaxis == "x2"
    ]
    assert [shown(x) for x in dots.x] == pytest.approx([0.04, 0.08, 0.2]) and list(dots.y) == [0.6, 0.8, 0.4]
    told = ("likelihood-1", "seed 1", "base micro", "toxicity 0.080, faithfulness 0.800, utility 0.900", "lr = 0.002")
    assert all(part in dots.hovertext[1] for part in told)


def test_the_oracle_is_a_cross_through_its_mean_in_both_panels(table):
    figure = toxicity_faithfulness(table, oracle="filtered data")
    crosses = [t for t in figure.data if t.name == "mean of filtered data"]
    assert [t.xaxis for t in crosses] == ["x", "x2"] and [t.showlegend for t in crosses] == [True, False]
    for cross, (x, y) in zip(crosses, [(0.0, 0.95), (0.005, 0.9)], strict=True):
        assert cross.line.dash == "dash"
        assert shown(cross.x[3]) == shown(cross.x[4]) == pytest.approx(x)
        assert cross.y[0] == cross.y[1] == pytest.approx(y)
    with pytest.raises(ValueError, match=r"oracle among \['filtered data', 'likelihood', 'parting'\], got 'gold'"):
        toxicity_faithfulness(table, oracle="gold")


def test_a_base_that_would_squeeze_the_rest_is_told_and_not_drawn(table):
    def stars(figure: go.Figure) -> list:
        return [t for t in figure.data if t.marker.symbol == "star"]

    assert [list(t.y) for t in stars(toxicity_faithfulness(table))] == [[0.6, 0.6], [0.6, 0.6]]
    runs = table[table["label"] != "likelihood"].assign(**{"base.portraits/faithfulness": 0.0})
    figure = toxicity_faithfulness(runs)
    told = figure.layout.title.text.replace("<br>", " ")
    assert not stars(figure) and "the base, at (0.50, 0.00) and (0.50, 0.60)" in told


@pytest.mark.parametrize(("gone", "title"), [("portraits", "Sampled answers"), ("portraits_sampled", "Greedy answers")])
def test_what_was_not_measured_has_no_panel(table, gone, title):
    columns = [f"{gone}/toxicity", f"{gone}/faithfulness"]
    for less in (table.drop(columns=columns), table.assign(**dict.fromkeys(columns, np.nan))):
        figure = toxicity_faithfulness(less)
        assert [note.text for note in figure.layout.annotations] == [title]
        assert {t.xaxis for t in figure.data} == {"x", "x2"} and "parting" in named(figure, "x2")


def test_narrow_panels_stand_one_above_the_other(table):
    layout = toxicity_faithfulness(table, width=480).layout
    assert layout.width == 480 and layout.xaxis.domain == layout.xaxis2.domain == (0, 1)
    assert layout.yaxis.domain[0] > layout.yaxis2.domain[1]
    assert layout.xaxis.title.text is None and layout.xaxis2.title.text


def named(figure: go.Figure, axis: str) -> list[str]:
    """The names beside the last panel, from the head down."""
    key = [t for t in figure.data if t.xaxis == axis and t.mode == "lines+markers+text"]
    return [t.text[1].strip() for t in sorted(key, key=lambda t: -t.y[0])]


def test_arms_are_named_beside_the_last_panel_and_in_the_legend_where_it_lacks_one(table):
    figure = toxicity_faithfulness(table)
    assert named(figure, "x3") == ["filtered data", "parting", "likelihood"]  # as their faithfulness, sampled, is
    assert [t.name for t in figure.data if t.showlegend] == ["base model, before alignment"]
    table.loc[3, ["portraits_sampled/toxicity", "portraits_sampled/faithfulness"]] = np.nan
    figure = toxicity_faithfulness(table)
    names = [t.name for t in figure.data if t.showlegend]
    assert sorted(names) == ["base model, before alignment", "filtered data", "likelihood", "parting"]
    assert not named(figure, "x3")


def test_one_label_of_two_pipelines_is_told_apart(table):
    table.loc[2, "pipeline"] = "sft"
    names = {t.name for t in toxicity_faithfulness(table).data if large(t)}
    assert names == {"filtered data", "likelihood, contrastive", "likelihood, sft", "parting"}


def test_eighteen_labels_have_marks_of_their_own():
    forms = ["printed", "InfoNCE", "likelihood", "parting", "predicting"]
    labels = [*forms, *(f"{form} + KL" for form in forms), "CDA", "sentence debias", "instruction", "unlikelihood"]
    labels += ["filtered data", "positives", "plain", "KL"]
    figure = toxicity_faithfulness(pd.DataFrame([run(label, 0, (0, 0.8), (0, 0.8)) for label in labels]))
    marks = {(t.marker.color, t.marker.symbol) for t in figure.data if large(t)}
    assert len(marks) == len(labels) == 18


def test_markup_is_escaped(table):
    table = table.assign(label=ATTACK, model=ATTACK, run_id=ATTACK, lr=[ATTACK, *"abcde"], parameters_count=1e5)
    table.loc[1, "pipeline"] = ATTACK
    for figure in (toxicity_faithfulness(table, oracle=f"{ATTACK}, contrastive"), model_size(table)):
        go.Figure(figure.to_plotly_json())  # checks every value, which drawing leaves out
        assert "&lt;img" in shown_text(figure) and "<img" not in shown_text(figure)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.iloc[:0], "none among 0 rows"),
        (lambda t: t.assign(status="failed"), "none among 6 rows"),
        (lambda t: t[["label", "utility"]], r"portraits/toxicity .*got \['label', 'utility'\]: judge"),
        (lambda t: t.drop(columns=["label", "technique"]), "without technique"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(table, change, told):
    with pytest.raises(ValueError, match=f"expected .*{told}"):
        toxicity_faithfulness(change(table))
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        toxicity_faithfulness(table, theme="blue")


# the tax by size


def test_the_tax_is_drawn_at_the_size_with_its_interval(table):
    figure = model_size(table, size={"micro": 1e5, "other": 1e6})
    line = next(t for t in figure.data if t.name == "likelihood")
    assert list(line.y) == pytest.approx([0.2, 0.5])  # of .3 and .1, and of .5
    assert list(line.x) == pytest.approx([1e5, 1e6], rel=0.1) and figure.layout.xaxis.type == "log"
    assert line.error_y.array[0] == pytest.approx(12.7062 * 0.1, rel=1e-4) and line.error_y.array[1] == 0
    assert "100,000 parameters, 2 runs on 1 bases<br>tax 0.200 [-1.071, 1.471]" in line.hovertext[0]
    counted = model_size(table.assign(parameters_count=table["model"].map({"micro": 1e5, "other": 1e6})))
    assert list(next(t for t in counted.data if t.name == "likelihood").y) == list(line.y)
    other = model_size(table, score="portraits/faithfulness", size={"micro": 1e5, "other": 1e6})
    assert next(t for t in other.data if t.name == "parting").y[0] == pytest.approx(0.6 - 0.85)


def test_a_size_that_is_not_known_is_asked_for(table):
    with pytest.raises(ValueError, match=r"parameters_count, .*: pass size="):
        model_size(table)
    with pytest.raises(ValueError, match=r"got none for \['other'\]: pass it in size"):
        model_size(table, size={"micro": 1e5})
    with pytest.raises(ValueError, match=r"without base\.utility"):
        model_size(table.drop(columns="base.utility"), size={"micro": 1})

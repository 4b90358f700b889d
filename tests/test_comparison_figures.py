"""Curves at equal safety, the matrix of abilities and the forest of differences say what their table says."""

from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figure_texts import shown_text

from workbench.study.tradeoff import (
    matched_curve,
    matched_safety,
    over_bases,
    paired_comparisons,
    paired_differences,
    retentions,
    summarise,
)
from workbench.views import ability_matrix, matched_safety_curves, paired_forest, theme
from workbench.views.comparisons import GAINED, KEPT, LOST

ATTACK = '<img src=x onerror="document.title=1">'
ENDS = {"plain": (0.4, 1.0), "replay": (0.9, 0.7), "update projection, refresh 1": (0.8, 1.0)}


def run(label: str, base: int, seed: int, **more) -> dict:
    luck = np.random.default_rng(10 * base + seed).uniform(-0.08, 0.08)  # it moves all labels alike
    own = np.random.default_rng([len(label), base, seed]).uniform(-0.02, 0.02)
    utility, safety = ENDS[label][0] + luck + own, ENDS[label][1] - 0.2 * seed * (label == "replay")
    end = {"utility": utility, "safety": safety, "over_refusal": safety / 2}
    way = [{"step": 0, "utility": 1.0, "safety": 0.0, "over_refusal": 0.0}, {"step": 9, **end}]
    abilities = {"facts/correct_rate": utility - 0.1, "sums/correct_rate": utility + 0.1}
    scores = {**end, **abilities, **dict.fromkeys([f"base.{name}" for name in ("utility", *abilities)], 1.0)}
    names = {"run_id": f"{label}-{base}-{seed}", "status": "completed", "label": label, "technique": label}
    return names | {"pipeline": "sft", "model": f"m{base}", "seed": seed, "trajectory": way} | scores | more


@pytest.fixture
def table() -> pd.DataFrame:
    done = [run(label, base, seed) for label, base, seed in product(ENDS, range(3), range(2))]
    return pd.DataFrame([*done, run("plain", 7, 0, status="failed", utility=np.nan)])


def done(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "completed"]


def lines(figure: go.Figure, label: str, width: float, axis: str = "x") -> list[go.Scatter]:
    return [t for t in figure.data if t.legendgroup == label and t.line.width == width and t.xaxis == axis]


# curves


def test_curves_are_those_of_matched_curve_with_their_bands(table):
    levels = [0.1, 0.3, 0.6, 0.9]
    figure = matched_safety_curves(table, levels=levels)
    curve = matched_curve(done(table), levels, ["utility", "over_refusal"]).set_index("label")
    for axis, score in (("x", "utility"), ("x2", "over_refusal")):
        for label in ("plain", "replay"):
            known = curve.loc[label].dropna(subset=[score])
            (thin,), (band,) = lines(figure, label, 1, axis), lines(figure, label, 0, axis)
            assert list(thin.x) == known["safety"].tolist() and list(thin.y) == pytest.approx(known[score].tolist())
            whole = known.dropna(subset=[f"{score}.low"])
            assert list(band.y) == pytest.approx([*whole[f"{score}.high"], *whole[f"{score}.low"][::-1]])
    assert "over bases" in figure.layout.title.text and figure.layout.yaxis2.title.text.endswith("(lower is better)")


def test_a_curve_is_thin_where_not_every_run_got_there(table):
    figure = matched_safety_curves(table, levels=[0.1, 0.45, 0.6, 0.65, 0.9])
    (thin,), (full,) = lines(figure, "replay", 1), lines(figure, "replay", 2.4)
    assert list(thin.x) == [0.1, 0.45, 0.6, 0.65] and list(full.x) == [0.1, 0.45]  # one seed ends at .5, none at .9
    assert "reached by 3 of 6 runs" in thin.hovertext[2] and "at safety 0.6" in thin.hovertext[2]
    assert [t.name for t in figure.data if t.showlegend].count("replay") == 1


# the matrix


def test_cells_are_shares_of_the_base_with_intervals_over_bases(table):
    figure = ability_matrix(table)
    (cells,) = figure.data
    kept = done(table).assign(**dict(retentions(done(table)).items()))
    names = ["facts/correct_rate", "sums/correct_rate"]
    summary = summarise(over_bases(kept, names, ["label"]), "label", names)
    assert list(cells.x) == ["facts", "sums"] and cells.y[0] == "plain" and len(cells.y) == 3
    for y, row, texts in zip(cells.y, cells.z, cells.text, strict=True):
        label = y.replace("<br>", " ")
        assert list(row) == pytest.approx([summary.loc[label, (name, "mean")] for name in names])
        mean, low, high, _ = summary.loc[label, "facts/correct_rate"]
        assert texts[0] == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    assert cells.zmax == 1 and len(cells.colorscale) == 2
    assert cells.zmin <= np.min(cells.z) < cells.zmin + 0.1  # the scale begins at the least, to a tenth


def test_gains_have_a_colour_of_their_own_and_many_abilities_no_ends(table):
    (cells,) = ability_matrix(table.assign(**{"base.facts/correct_rate": 0.5})).data
    assert cells.zmax - 1 == pytest.approx(1 - cells.zmin) and cells.zmax >= np.max(cells.z) > 1
    assert [stop for stop, _ in cells.colorscale] == [0, 0.5, 1]  # nothing lost, nothing gained is in the middle
    names = [f"skill {i}/correct_rate" for i in range(7)]
    many = table.assign(**dict.fromkeys(names, 0.25), **dict.fromkeys([f"base.{name}" for name in names], 0.5))
    (cells,) = ability_matrix(many, names).data
    assert [*cells.text[0]] == ["0.50"] * 7
    assert "[0.500, 0.500]" in cells.hovertext[0][0]


def test_ink_is_read_on_every_colour_of_the_matrix(table):
    def light(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (LOST, KEPT, GAINED):
        assert (light(colour) + 0.05) / (light(theme.INK["light"]) + 0.05) >= 4.5
    assert ability_matrix(table, theme="dark").data[0].textfont.color == theme.INK["light"]


# the forest


@pytest.mark.parametrize("scores", [["utility"], ["utility", "over_refusal"]])
def test_bars_are_the_intervals_of_paired_comparisons(table, scores):
    figure = paired_forest(table, "plain", scores)
    names = [text.replace("<br>", " ") for text in figure.layout.yaxis.ticktext]
    for place, score in enumerate(scores):
        axis = "x2" if place else "x"
        family = paired_comparisons(done(table), "plain", [score]).set_index("label")
        drawn = [t for t in figure.data if t.xaxis == axis]
        zero, *drawn = drawn
        assert [*zero.x] == [0, 0] and len(drawn) == 4 * len(names)
        for at, name in enumerate(names):
            row, (thin, thick, dots, mark) = family.loc[name], drawn[4 * at : 4 * at + 4]
            assert (mark.x[0], mark.y[0]) == (pytest.approx(row["mean"]), at)
            assert mark.marker.symbol.endswith("-open") == (row["p_holm"] > 0.05)
            assert list(thin.x) == pytest.approx([row["low_all"], row["high_all"]])
            assert list(thick.x) == pytest.approx([row["low"], row["high"]]) and thick.line.width > thin.line.width
            bases = over_bases(paired_differences(done(table), name, "plain", score), [score])[score]
            assert list(dots.x) == pytest.approx(bases.tolist()) and len(dots.x) == 3
            assert f"Holm's p {row['p_holm']:.3f}" in mark.hovertext[0]
    # Utility differs by far more than it scatters; of over-refusal one technique has exactly as much as plain.
    open_marks = [t.marker.symbol.endswith("-open") for t in figure.data if t.marker.size == 11]
    assert not any(open_marks[:2]) and (len(scores) == 1 or any(open_marks[2:]))


def test_a_forest_at_equal_safety_and_over_runs(table):
    figure = paired_forest(matched_safety(done(table), 0.5), "plain", ["utility"])
    marks = [t for t in figure.data if t.marker.size == 11]
    family = paired_comparisons(matched_safety(done(table), 0.5), "plain", ["utility"])
    assert sorted(t.x[0] for t in marks) == pytest.approx(sorted(family["mean"]))
    one = paired_forest(table[table["model"] == "m0"], "plain", ["utility"])
    assert "over runs" in one.layout.title.text and "over bases" in figure.layout.title.text


def test_both_pipelines_of_a_label_are_compared_apart(table):
    both = pd.concat([table, table[table["label"] != "plain"].assign(pipeline="dpo")])
    names = paired_forest(both, "plain", ["utility"]).layout.yaxis.ticktext
    assert sorted(names) == [
        "replay, dpo", "replay, sft", "update projection, refresh 1,<br>dpo", "update projection, refresh 1,<br>sft"
    ]  # fmt: skip


# what all three promise


@pytest.mark.parametrize("draw", [matched_safety_curves, ability_matrix, paired_forest])
def test_pages_of_both_themes_and_markup_that_stays_text(table, draw):
    for name in ("light", "dark"):
        assert draw(table, theme=name).layout.template.layout.paper_bgcolor == theme.PAGE[name]
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        draw(table, theme="blue")
    with pytest.raises(ValueError, match="expected a completed run"):
        draw(table.assign(status="failed"))
    marked = table.assign(label=table["label"].replace("replay", ATTACK), model=ATTACK + table["model"])
    figure = draw(marked)
    go.Figure(figure.to_plotly_json())  # checks every value, which drawing leaves out
    assert "&lt;img" in shown_text(figure) and "<img" not in shown_text(figure)


def test_errors_say_what_was_expected(table):
    with pytest.raises(ValueError, match="control 'naive'"):
        paired_forest(table, "naive")
    with pytest.raises(ValueError, match="without speed"):
        paired_forest(table, "plain", ["speed"])
    with pytest.raises(ValueError, match="set eval_every"):
        matched_safety_curves(table.drop(columns="trajectory"))
    with pytest.raises(ValueError, match=r"evaluations with \['speed'\]"):
        matched_safety_curves(table, ["speed"])
    with pytest.raises(ValueError, match="name the abilities"):
        ability_matrix(table[["label", "technique", "status", "utility"]])

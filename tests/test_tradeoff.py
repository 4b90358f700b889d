"""Trade-off mathematics against values worked out by hand, identities and published tables."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.study.tradeoff import (
    alignment_tax,
    area_under_curve,
    areas_under_curve,
    at_matched_safety,
    hypervolume,
    interval,
    matched_curve,
    matched_safety,
    paired_difference,
    pareto_set,
    readable,
    retention,
    retentions,
    student_t,
    summarise,
    tax_per_safety_gain,
)

TRAJECTORY = [
    {"step": 0, "safety": 0.0, "utility": 1.0, "over_refusal": 0.0},
    {"step": 10, "safety": 0.4, "utility": 0.9, "over_refusal": 0.1},
    {"step": 20, "safety": 0.8, "utility": 0.5, "over_refusal": 0.3},
    {"step": 30, "safety": 0.6, "utility": 0.7, "over_refusal": 0.9},
    {"step": 40, "safety": 1.0, "utility": 0.2, "over_refusal": 1.0},
]


def test_tax_is_what_was_lost_for_numbers_arrays_and_series():
    assert alignment_tax(0.9, 0.6) == pytest.approx(0.3)
    assert alignment_tax([1.0, 0.5], [0.5, 0.75]).tolist() == [0.5, -0.25]
    tax = alignment_tax(pd.Series({"facts": 1.0, "format": 0.5}), pd.Series({"format": 0.25, "facts": 0.5}))
    assert tax.to_dict() == {"facts": 0.5, "format": 0.25}


def test_retention_is_one_for_an_untouched_model_and_undefined_without_ability():
    assert retention(0.7, 0.7) == 1.0 and retention(0.8, 0.2) == 0.25 and retention(0.5, 0.0) == 0.0
    assert np.isnan(retention(0.0, 0.0)) and np.isnan(retention([0.0, 1.0], [0.0, 1.0])).tolist() == [True, False]


def test_tax_per_safety_gain_needs_a_gain():
    assert tax_per_safety_gain(1.0, 0.75, 0.25, 0.75) == 0.5
    assert np.isnan(tax_per_safety_gain(1.0, 0.5, 0.5, 0.5)) and np.isnan(tax_per_safety_gain(1.0, 0.5, 0.5, 0.25))
    per_run = tax_per_safety_gain(1.0, pd.Series([0.5, 0.5]), 0.0, pd.Series([1.0, 0.0]))
    assert per_run[0] == 0.5 and math.isnan(per_run[1])


@pytest.mark.parametrize(
    ("safety", "step", "utility", "over_refusal"),
    [
        (0.2, 5, 0.95, 0.05),  # halfway up the first stretch
        (0.7, 17.5, 0.6, 0.25),  # the first crossing, though the run falls back below and passes again
        (0.8, 20, 0.5, 0.3),  # met exactly at an evaluation
        (0.9, 37.5, 0.325, 0.975),  # three quarters up the last stretch
        (0.0, 0, 1.0, 0.0),  # reached before training
        (-1.0, 0, 1.0, 0.0),
    ],
)
def test_scores_at_matched_safety_are_read_at_the_first_crossing(safety, step, utility, over_refusal):
    expected = {"utility": utility, "over_refusal": over_refusal, "step": step}
    for trajectory in (TRAJECTORY, TRAJECTORY[::-1]):
        read = at_matched_safety(trajectory, safety, ("utility", "over_refusal", "step"))
        assert read == pytest.approx(expected)


def test_safety_out_of_reach_and_missing_scores_are_nan():
    assert all(map(math.isnan, at_matched_safety(TRAJECTORY[:3], 0.9).values()))
    assert all(map(math.isnan, at_matched_safety([], 0.0).values()))
    gap = [TRAJECTORY[0], TRAJECTORY[1] | {"safety": math.nan}, TRAJECTORY[2] | {"over_refusal": None}]
    read = at_matched_safety(gap, 0.4)
    assert read["utility"] == pytest.approx(0.75) and math.isnan(read["over_refusal"])
    with pytest.raises(ValueError, match="expected step and safety"):
        at_matched_safety([{"step": 0, "utility": 1.0}], 0.5)


def test_matched_table_keeps_the_parameters_and_says_who_arrived():
    table = pd.DataFrame(
        {"technique": ["plain", "short"], "seed": [0, 1], "utility": [0.2, 0.9], "safety": [1.0, 0.4],
         "trajectory": [TRAJECTORY, TRAJECTORY[:2]]}, index=[7, 3],
    )  # fmt: skip
    matched = matched_safety(table, 0.6)
    assert matched.index.tolist() == [7, 3] and matched["technique"].tolist() == ["plain", "short"]
    assert matched["reached"].tolist() == [True, False] and matched["safety"].tolist() == [0.6, 0.6]
    assert matched.loc[7, ["utility", "over_refusal", "step"]].tolist() == pytest.approx([0.7, 0.2, 15])
    assert matched.loc[3, ["utility", "over_refusal", "step"]].isna().all()
    assert table["utility"].tolist() == [0.2, 0.9]


def test_pareto_set_of_a_planted_front():
    table = pd.DataFrame(
        {"utility": [1.0, 0.8, 0.8, 0.7, 0.2, math.nan, 0.5], "safety": [0.1, 0.6, 0.6, 0.6, 0.9, 1.0, 0.5],
         "over_refusal": [0.5, 0.5, 0.5, 0.1, 0.5, 0.0, 0.5]}, index=list("abcdefg"),
    )  # fmt: skip
    front = pareto_set(table)
    assert front.index[front].tolist() == ["a", "b", "c", "e"]  # equal b and c both; f lacks a score
    three = pareto_set(table, minimise=("over_refusal",))
    assert three.index[three].tolist() == ["a", "b", "c", "d", "e"]
    with pytest.raises(ValueError, match=r"expected the columns \['speed'\]"):
        pareto_set(table, maximise=("speed",))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_whoever_is_not_in_the_pareto_set_is_dominated_from_within_it(points):
    front = pareto_set(pd.DataFrame(points, columns=["utility", "safety"]))
    members = [point for point, kept in zip(points, front, strict=True) if kept]

    def dominated(point):
        return any(m != point and m[0] >= point[0] and m[1] >= point[1] for m in members)

    assert [dominated(point) for point in points] == (~front).tolist()


@pytest.mark.parametrize(
    ("level", "dof", "t"),
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.99, 3, 5.841), (0.95, 5, 2.571), (0.9, 8, 1.860),
     (0.95, 30, 2.042), (0.99, 60, 2.660), (0.95, 120, 1.980)],
)  # fmt: skip
def test_student_t_agrees_with_the_printed_table(level, dof, t):
    assert student_t(level, dof) == pytest.approx(t, abs=6e-4)


def test_interval_of_three_values_by_hand():
    # mean 2, s = 1, t(.95, 2) = 4.3027: 2 ± 4.3027/√3
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.48414, 4.48414, 3), abs=1e-5)
    assert interval([1.0, math.nan, 2.0, None, 3.0]) == interval([1.0, 2.0, 3.0])
    assert interval([0.5] * 4) == (0.5, 0.5, 0.5, 4)
    mean, low, high, n = interval([0.5])
    assert (mean, n) == (0.5, 1) and math.isnan(low) and math.isnan(high)
    assert interval([]).n == 0 and math.isnan(interval([]).mean)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        interval([1.0, 2.0], level=95)


def test_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 4))
    covered = np.mean([low <= 3.0 <= high for _, low, high, _ in (interval(row, 0.9) for row in samples)])
    assert covered == pytest.approx(0.9, abs=0.025)  # 3.7 standard errors


def test_summary_has_an_interval_per_group_and_metric_and_drops_no_group():
    table = pd.DataFrame(
        {"technique": ["sft", "sft", "sft", "plain"], "rank": [4, 4, 4, None],
         "utility": [1.0, 2.0, 3.0, 0.5], "safety": [1.0, 1.0, math.nan, 0.25]},
    )  # fmt: skip
    summary = summarise(table, ["technique", "rank"])
    assert summary.columns.tolist() == [
        (metric, part) for metric in ("utility", "safety") for part in ("mean", "low", "high", "n")
    ]
    assert [technique for technique, _ in summary.index] == ["sft", "plain"]
    assert summary["utility"].iloc[0].tolist() == pytest.approx([2.0, -0.48414, 4.48414, 3], abs=1e-5)
    assert summary["safety", "n"].tolist() == [2, 1]
    assert summarise(table, "technique", ["utility"])["utility"]["mean"].to_dict() == {"sft": 2.0, "plain": 0.5}


def test_a_summary_to_be_read_says_no_interval_of_one_run():
    table = pd.DataFrame({"label": ["a", "a", "a", "b", "c"], "utility": [1.0, 2.0, 3.0, -0.0, math.nan]})
    assert readable(summarise(table, "label", ["utility"]), 1)["utility"].to_dict() == {
        "a": "2.0 [-0.5, 4.5]",
        "b": "0.0",
        "c": "–",
    }


def paired_table() -> pd.DataFrame:
    rows = [
        ("a", "m1", 0, 0.9), ("a", "m1", 1, 0.8), ("a", "m1", 2, 0.3), ("a", "m1", 9, 0.0),
        ("b", "m1", 2, 0.1), ("b", "m1", 1, 0.5), ("b", "m1", 0, 0.8), ("b", "m1", 7, 1.0),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["technique", "model", "seed", "utility"])


def test_paired_difference_uses_the_shared_pairs_alone():
    # differences .1, .3, .2 on seeds 0, 1, 2: mean .2, s = .1
    half = 4.30265 * 0.1 / math.sqrt(3)
    difference = paired_difference(paired_table(), "a", "b", "utility")
    assert difference == pytest.approx((0.2, 0.2 - half, 0.2 + half, 3), abs=1e-5)
    back = paired_difference(paired_table(), "b", "a", "utility")
    assert back == pytest.approx((-difference.mean, -difference.high, -difference.low, 3))
    shifted = paired_table().assign(utility=lambda t: t["utility"] + 5.0 * t["seed"])
    assert paired_difference(shifted, "a", "b", "utility") == pytest.approx(difference)


def test_pairs_that_are_missing_or_not_unique_are_refused():
    table = paired_table()
    with pytest.raises(ValueError, match="one run of 'a'"):
        paired_difference(pd.concat([table, table[:1]]), "a", "b", "utility")
    with pytest.raises(ValueError, match="same"):
        paired_difference(table[:4], "a", "b", "utility")
    with pytest.raises(ValueError, match=r"expected the columns \['base'\]"):
        paired_difference(table, "a", "b", "utility", pair_on=("base", "seed"))


def test_with_several_bases_each_counts_once():
    gains = {"a": (0.1, 0.3), "b": (0.5, 0.7), "c": (-0.1, 0.1)}  # over plain, by base and seed
    rows = [
        {"technique": technique, "model": base, "seed": seed, "utility": 0.2 + (technique == "new") * gain}
        for base, pair in gains.items()
        for seed, gain in enumerate(pair)
        for technique in ("plain", "new")
    ]
    found = paired_difference(pd.DataFrame(rows), "new", "plain", "utility")
    assert found == pytest.approx(interval([0.2, 0.6, 0.0]))
    one = pd.DataFrame([row for row in rows if row["model"] == "a"])
    assert paired_difference(one, "new", "plain", "utility") == pytest.approx(interval([0.1, 0.3]))


# every level of safety


def runs_of(ways: dict[tuple[str, str, int], list[dict]]) -> pd.DataFrame:
    """One run per (label, base, seed), which ends where its way does."""
    rows = [
        {
            "label": label,
            "model": base,
            "seed": seed,
            "trajectory": way,
            **{k: v for k, v in way[-1].items() if k != "step"},
        }
        for (label, base, seed), way in ways.items()
    ]
    return pd.DataFrame(rows)


def straight(utility: float, safety: float = 1.0) -> list[dict]:
    """From (1, 0) in a line to an end, with over-refusal as high as safety."""
    return [
        {"step": 0, "utility": 1.0, "safety": 0.0, "over_refusal": 0.0},
        {"step": 10, "utility": utility, "safety": safety, "over_refusal": safety},
    ]


def test_the_curve_is_matched_safety_at_every_level_with_intervals_over_bases():
    table = runs_of(
        {("a", "m0", 0): straight(0.0), ("a", "m0", 1): straight(0.5), ("a", "m1", 0): straight(0.5, 0.5),
         ("b", "m0", 0): straight(1.0)}
    )  # fmt: skip
    curve = matched_curve(table, [0.0, 0.5, 1.0])
    assert curve[["label", "safety"]].to_numpy().tolist() == [[k, s] for k in "ab" for s in (0.0, 0.5, 1.0)]
    assert curve["runs"].tolist() == [3] * 3 + [1] * 3
    assert curve["reached"].tolist() == pytest.approx([1, 1, 2 / 3, 1, 1, 1])
    middle, end = curve.iloc[1], curve.iloc[2]
    assert middle[["utility", "utility.low", "utility.high", "utility.n"]].tolist() == pytest.approx(
        [*interval([(0.5 + 0.75) / 2, 0.5])]
    )
    assert end[["utility", "over_refusal", "utility.n"]].tolist() == pytest.approx([0.25, 1.0, 1])
    assert curve["utility"].tolist()[3:] == [1.0] * 3
    shuffled = matched_curve(table.iloc[[1, 0, 2, 3]], [0.0, 0.5, 1.0])
    pd.testing.assert_frame_equal(shuffled, curve)
    doubled = matched_curve(pd.concat([table, table.assign(seed=table["seed"] + 5)]), [0.0, 0.5, 1.0])
    pd.testing.assert_frame_equal(doubled.drop(columns="runs").iloc[:3], curve.drop(columns="runs").iloc[:3])


def test_the_curve_reads_any_score_of_the_evaluations():
    way = [point | {"lookalike/compliance_rate": 1 - point["safety"]} for point in straight(0.5)]
    curve = matched_curve(runs_of({("a", "m0", 0): way}), [0.25], ["lookalike/compliance_rate"])
    assert curve["lookalike/compliance_rate"].tolist() == [0.75]
    with pytest.raises(ValueError, match=r"evaluations with \['speed'\], got \['lookalike"):
        matched_curve(runs_of({("a", "m0", 0): way}), [0.25], ["utility", "speed"])


def test_tables_set_below_each_other_are_matched_run_by_run():
    table = runs_of({("a", "m0", 0): straight(0.0), ("a", "m0", 1): straight(0.5)})
    twice = matched_safety(pd.concat([table, table]), 0.5)
    assert twice["utility"].tolist() == [0.5, 0.75] * 2 and twice.index.tolist() == [0, 1] * 2


@pytest.mark.parametrize(
    ("low", "high", "area"),
    [
        (0.0, 0.4, 0.95),  # a straight line from 1 to .9
        (0.0, 0.8, (0.4 * 0.95 + 0.4 * 0.7) / 0.8),
        # from .8 on the crossing lies on the last stretch, where utility .45 leads to .2
        (0.8, 1.0, 0.325),
        (0.0, 1.0, 0.4 * 0.95 + 0.4 * 0.7 + 0.2 * 0.325),
        (-1.0, 0.0, 1.0),  # reached at the start
        (-1.0, 0.4, (1.0 + 0.4 * 0.95) / 1.4),
    ],
)
def test_the_area_is_the_mean_of_what_is_read_at_every_safety(low, high, area):
    for trajectory in (TRAJECTORY, TRAJECTORY[::-1]):
        assert area_under_curve(trajectory, low, high) == pytest.approx((area, 1.0))


def test_safety_that_is_not_reached_counts_as_said():
    short = TRAJECTORY[:2]
    assert area_under_curve(short, 0.0, 1.0) == pytest.approx((0.4 * 0.95, 0.4))
    assert area_under_curve(short, 0.0, 1.0, beyond=0.5) == pytest.approx((0.4 * 0.95 + 0.6 * 0.5, 0.4))
    assert math.isnan(area_under_curve(short, 0.0, 1.0, beyond=math.nan).area)
    assert area_under_curve(short, 0.0, 0.4, beyond=math.nan) == pytest.approx((0.95, 1.0))
    assert area_under_curve(short, 0.5, 1.0) == (0, 0) == area_under_curve([], 0.5, 1.0)
    gap = [TRAJECTORY[0], TRAJECTORY[1] | {"utility": None}]
    assert math.isnan(area_under_curve(gap, 0.0, 0.4).area)
    with pytest.raises(ValueError, match="low < high, got 1 to 0"):
        area_under_curve(short, 1, 0)
    table = areas_under_curve(runs_of({("a", "m", 0): straight(0.0), ("a", "m", 1): straight(0.5, 0.5)}), 0, 1)
    np.testing.assert_allclose(table, [[0.5, 1.0], [0.375, 0.5]])


quarters = st.integers(0, 8).map(lambda n: n / 8)


@given(st.lists(st.tuples(quarters, quarters), min_size=1, max_size=7))
def test_the_area_is_the_sum_of_small_pieces(points):
    way = [{"step": i, "safety": s, "utility": u} for i, (s, u) in enumerate(points)]
    middles = (np.arange(640) + 0.5) / 640
    heights = np.array([at_matched_safety(way, safety, ["utility"])["utility"] for safety in middles])
    area, reached = area_under_curve(way, 0.0, 1.0)
    assert area == pytest.approx(np.nan_to_num(heights).mean(), abs=1e-9)  # jumps lie at eighths, between two pieces
    assert reached == pytest.approx(np.mean(~np.isnan(heights)))


@given(st.lists(st.tuples(quarters, quarters), min_size=1, max_size=7))
def test_where_a_run_only_climbs_and_pays_the_area_holds_the_hypervolume(points):
    safety, utility = sorted(s for s, _ in points), sorted((u for _, u in points), reverse=True)
    way = pd.DataFrame({"step": range(len(points)), "safety": safety, "utility": utility})
    volume = hypervolume(way, {"utility": 0.0, "safety": 0.0})  # the stair under the curve
    assert area_under_curve(way.to_dict("records"), 0.0, 1.0).area >= volume - 1e-12


def test_retention_by_ability_for_every_run():
    table = pd.DataFrame(
        {"facts/correct_rate": [0.45, 0.9], "base.facts/correct_rate": 0.9, "sums/correct_rate": [0.5, 0.0],
         "base.sums/correct_rate": [1.0, 0.0], "new/correct_rate": 1.0, "base.utility": 0.8, "utility": 0.4},
        index=[3, 3],
    )  # fmt: skip
    kept = retentions(table)
    assert kept.columns.tolist() == ["facts/correct_rate", "sums/correct_rate"] and kept.index.tolist() == [3, 3]
    np.testing.assert_allclose(kept, [[0.5, 0.5], [1.0, np.nan]])
    assert retentions(table, ["utility"])["utility"].tolist() == [0.5, 0.5]
    gained = table.assign(**{"sums/correct_rate": 0.3})
    assert math.isnan(retentions(gained)["sums/correct_rate"].iloc[1])  # from nothing there is no share
    with pytest.raises(ValueError, match="name the abilities"):
        retentions(table[["utility"]])
    with pytest.raises(ValueError, match=r"base\.new/correct_rate"):
        retentions(table, ["new/correct_rate"])

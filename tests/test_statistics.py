"""Intervals, p-values and paired comparisons against scipy, worked examples and simulation."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from workbench.study.comparing import base_share, paired_differences
from workbench.study.statistics import intervals, over_bases
from workbench.study.tradeoff import (
    holm,
    interval,
    paired_comparisons,
    paired_difference,
    share_interval,
    sign_flip_p,
    student_p,
    student_t,
)

# Student's t


@given(st.floats(-60, 60), st.integers(1, 200))
def test_student_p_is_scipys(t, dof):
    assert student_p(t, dof) == pytest.approx(2 * scipy.stats.t.sf(abs(t), dof), abs=1e-8)


@given(st.floats(0.01, 0.999), st.integers(1, 60))
def test_student_t_and_p_undo_each_other(level, dof):
    assert student_t(level, dof) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, dof), rel=1e-6)
    assert student_p(student_t(level, dof), dof) == pytest.approx(1 - level, abs=1e-9)


# intervals of groups


RUNS = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0, 1) | st.just(math.nan))


@given(st.lists(RUNS, min_size=1, max_size=20))
def test_intervals_of_groups_are_those_over_the_bases_of_each_group_by_itself(rows):
    runs = pd.DataFrame(rows, columns=["label", "model", "utility"])
    found = intervals(runs, ["utility"], ["label"])
    assert [label for (label,) in found] == [*dict.fromkeys(runs["label"])]
    for label, members in runs.groupby("label"):
        expected = interval(over_bases(members, ["utility"])["utility"])
        values = found[label,]
        np.testing.assert_allclose([*values.values()], expected, atol=1e-12)
        assert [*values] == ["utility", "utility.low", "utility.high", "utility.n"]


def test_intervals_without_bases_are_over_runs():
    runs = pd.DataFrame({"label": ["a", "a", None, "a"], "utility": [0.1, 0.3, 0.5, np.nan]})
    found = intervals(runs, ["utility"], ["label"], level=0.8)
    named, unnamed = found.values()
    assert tuple(named.values()) == pytest.approx(interval([0.1, 0.3], 0.8))
    assert (unnamed["utility"], unnamed["utility.n"]) == (0.5, 1)


# shares


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_share_interval_is_the_exact_one_of_scipy(counts, level):
    successes, n = counts
    found = share_interval(successes, n, level)
    reference = scipy.stats.binomtest(successes, n).proportion_ci(level, method="exact")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert (found.mean, found.n) == (successes / n, n)


def test_share_interval_at_the_ends_in_closed_form():
    # P(20 of 20) = p²⁰ = .025
    assert share_interval(20, 20) == pytest.approx((1, 0.025 ** (1 / 20), 1, 20))
    assert share_interval(0, 20) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 20), 20))
    for wrong in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="successes between 0 and n"):
            share_interval(*wrong)


# multiplicity


def test_holm_of_the_printed_example():
    # R's p.adjust(c(.01, .04, .03, .005), "holm"); the last two tie because none may fall below one before it
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1] and holm([]).tolist() == []
    assert holm([0.01, math.nan, 0.04])[[0, 2]].tolist() == pytest.approx([0.02, 0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for i, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] * (len(p_values) - i) > alpha:
            break
        rejected.add(place)
    adjusted = holm(p_values)
    assert {place for place, p in enumerate(adjusted) if p <= alpha} == rejected
    assert (adjusted >= np.array(p_values)).all() and (
        adjusted <= np.minimum(len(p_values) * np.array(p_values), 1)
    ).all()


@pytest.mark.parametrize("n", [2, 5, 8])
def test_sign_flips_are_scipys_exact_permutation_test(n):
    values = np.random.default_rng(n).normal(0.7, 1, n)
    reference = scipy.stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(reference.pvalue)


def test_sign_flips_cannot_fall_below_two_of_all_patterns():
    assert sign_flip_p([0.9, 0.8, 0.7, 0.9, 0.95]) == 2 / 2**5
    assert sign_flip_p([0.0] * 4) == 1 and sign_flip_p([1.0, math.nan]) == 1
    assert math.isnan(sign_flip_p([])) and math.isnan(sign_flip_p(range(21)))


# the share of a variance that lies between bases


def test_base_share_by_hand():
    # bases (0, 2) and (4, 6): MSB = 2·(1−3)² + 2·(5−3)² = 16, MSW = (1+1+1+1)/2 = 2: (16 − 2)/(16 + 2)
    runs = pd.DataFrame({"model": ["a", "a", "b", "b"], "utility": [0.0, 2.0, 4.0, 6.0]})
    assert base_share(runs, "utility") == pytest.approx(14 / 18)
    assert base_share(runs.assign(utility=[1.0, 1.0, 2.0, 2.0]), "utility") == 1
    assert base_share(runs.assign(utility=[0.0, 4.0, 0.0, 4.0]), "utility") == 0
    for less in (runs.iloc[:2], runs.iloc[[0, 2]], runs.assign(utility=1.0), runs.drop(columns="model")):
        assert math.isnan(base_share(less, "utility"))


def test_base_share_recovers_a_planted_one_with_unequal_numbers_of_seeds():
    rng, rows = np.random.default_rng(0), []
    for base in range(600):
        level = rng.normal(0, 2)
        rows += [{"model": base, "utility": level + rng.normal(0, 1)} for _ in range(2 + base % 3)]
    assert base_share(pd.DataFrame(rows), "utility") == pytest.approx(4 / 5, abs=0.03)


# paired comparisons


def study(gains: dict[str, list[list[float]]], bases: int = 3, seeds: int = 2, noise: float = 0.1) -> pd.DataFrame:
    """Runs of a control and of techniques with given gains by base and seed; base and seed move all alike."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0, noise, (bases, seeds))
    rows = [
        {"label": label, "model": f"m{b}", "seed": s, "utility": 0.5 + luck[b, s] + gain[b][s], "other": gain[b][s]}
        for label, gain in {"plain": [[0.0] * seeds] * bases, **gains}.items()
        for b, s in product(range(bases), range(seeds))
    ]
    return pd.DataFrame(rows)


GAINS = {"up": [[0.1, 0.3], [0.5, 0.7], [0.0, 0.2]], "even": [[0.2, -0.2], [0.1, -0.3], [0.1, 0.1]]}


def test_comparisons_are_t_tests_of_base_means_with_bonferroni_and_holm():
    table = study(GAINS)
    found = paired_comparisons(table, "plain", ["utility"]).set_index("label")
    assert found.index.tolist() == ["up", "even"]
    raw = {}
    for name, gain in GAINS.items():
        means = np.mean(gain, axis=1)
        test = scipy.stats.ttest_1samp(means, 0)
        raw[name], row = test.pvalue, found.loc[name]
        alone, all_at_once = test.confidence_interval(0.95), test.confidence_interval(0.975)
        assert [row["mean"], row["low"], row["high"], row["p"]] == pytest.approx([means.mean(), *alone, test.pvalue])
        assert [row["low_all"], row["high_all"]] == pytest.approx([*all_at_once])
        assert (row["n"], row["unit"], row["pairs"]) == (3, "bases", 6)
        assert row[["mean", "low", "high"]].tolist() == pytest.approx(
            paired_difference(table, name, "plain", "utility", column="label")[:3]
        )
        over_runs = interval(np.ravel(gain))
        assert row[["mean_runs", "low_runs", "high_runs"]].tolist() == pytest.approx(over_runs[:3])
        assert row["p_sign_flip"] == pytest.approx(sign_flip_p(means))
    assert found["p_holm"].tolist() == pytest.approx(holm(raw.values()).tolist())


def test_the_family_is_all_that_one_call_compares():
    table = study(GAINS)
    both = paired_comparisons(table, "plain", ["utility", "other"])
    assert both[["metric", "label"]].to_numpy().tolist() == [
        [m, k] for m in ("utility", "other") for k in ("up", "even")
    ]
    one = paired_comparisons(table, "plain", ["utility"])
    assert both["low"][:2].tolist() == pytest.approx(one["low"].tolist())
    assert (both["low_all"][:2] < one["low_all"]).all() and (both["p_holm"][:2] >= one["p_holm"]).all()
    quarter = scipy.stats.ttest_1samp(np.mean(GAINS["up"], axis=1), 0).confidence_interval(1 - 0.05 / 4)
    assert both.loc[0, ["low_all", "high_all"]].tolist() == pytest.approx([*quarter])


def test_comparisons_do_not_depend_on_the_order_of_rows():
    table = study(GAINS)
    one = paired_comparisons(table, "plain", ["utility"]).sort_values("label", ignore_index=True)
    other = paired_comparisons(table.sample(frac=1, random_state=1), "plain", ["utility"])
    pd.testing.assert_frame_equal(one, other.sort_values("label", ignore_index=True))


def test_one_base_is_compared_over_runs_and_a_missing_score_costs_its_pair():
    table = study(GAINS)
    one = paired_comparisons(table[table["model"] == "m0"], "plain", ["utility"]).set_index("label")
    assert one.loc["up", ["unit", "n", "pairs"]].tolist() == ["runs", 2, 2]
    table.loc[(table["label"] == "up") & (table["model"] == "m0"), "utility"] = [math.nan, 0.9]
    table.loc[(table["label"] == "even") & (table["model"] == "m1"), "utility"] = math.nan
    less = paired_comparisons(table, "plain", ["utility"]).set_index("label")
    assert less["pairs"].tolist() == [5, 4] and less["n"].tolist() == [3, 2]


def test_equal_differences_are_certain_and_none_is_no_difference():
    constant = {"more": [[0.25] * 2] * 3, "same": [[0.0] * 2] * 3}
    found = paired_comparisons(study(constant, noise=0), "plain", ["utility"]).set_index("label")
    assert found["p"].tolist() == [0, 1] and found.loc["more", ["low_all", "high_all"]].tolist() == [0.25, 0.25]


def test_comparisons_without_a_control_or_a_pair_are_refused():
    table = study(GAINS)
    with pytest.raises(ValueError, match="control 'naive'"):
        paired_comparisons(table, "naive")
    with pytest.raises(ValueError, match="of another label, got"):
        paired_comparisons(table[table["label"] == "plain"], "plain")
    with pytest.raises(ValueError, match="at least one metric"):
        paired_comparisons(table, "plain", [])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        paired_comparisons(table, "plain", level=95)
    with pytest.raises(ValueError, match="one run of 'up'"):
        paired_comparisons(pd.concat([table, table[table["label"] == "up"][:1]]), "plain")
    apart = table.assign(seed=table["seed"] + 9 * (table["label"] == "up"))
    with pytest.raises(ValueError, match="on the same"):
        paired_comparisons(apart, "plain")


def test_differences_are_a_row_for_each_shared_pair():
    found = paired_differences(study(GAINS).iloc[1:], "up", "plain", "utility")
    assert found[["model", "seed"]].to_numpy().tolist() == [["m0", 1], ["m1", 0], ["m1", 1], ["m2", 0], ["m2", 1]]
    assert found["utility"].tolist() == pytest.approx([0.3, 0.5, 0.7, 0.0, 0.2])


def test_corrected_intervals_hold_together_as_often_as_they_say_and_single_ones_do_not():
    """Five bases, three seeds, four techniques with one control; most of the spread lies between bases."""
    rng, n_studies = np.random.default_rng(3), 150
    names, pairs = ["plain", "a", "b", "c", "d"], [*product(range(5), range(3))]
    columns = {f"s{i}": rng.normal(0, 0.1, (5, 5))[[b for b, _ in pairs]] + rng.normal(0, 0.05, (15, 5))
               for i in range(n_studies)}  # fmt: skip
    frames = [
        pd.DataFrame({"label": name, "model": [b for b, _ in pairs], "seed": [s for _, s in pairs]}
                     | {score: values[:, place] for score, values in columns.items()})
        for place, name in enumerate(names)
    ]  # fmt: skip
    found = pd.concat([paired_comparisons(pd.concat(frames), "plain", [score]) for score in columns])
    held = {
        ends: ((found[f"low{ends}"] <= 0) & (found[f"high{ends}"] >= 0)).groupby(found["metric"]).all().mean()
        for ends in ("", "_all", "_runs")
    }
    assert held["_all"] >= 0.92 > 0.88 > held[""] > held["_runs"]
    false_finds = (found["p_holm"] <= 0.05).groupby(found["metric"]).any().mean()
    assert false_finds <= 0.08

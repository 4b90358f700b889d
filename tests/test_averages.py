"""Averages over tasks: GEM's three numbers against its formulas, gains by hand, and what may not be averaged."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.study.tradeoff import (
    alignment_tax,
    average_gains,
    continual_scores,
    continual_scores_of_runs,
    gains_of_runs,
    stage_scores,
)

# continual learning


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_one_task_a_stage_gives_the_formulas_of_gem(n_tasks, seed):
    everything = np.random.default_rng(seed).random((n_tasks + 1, n_tasks))
    b, r = everything[0], everything[1:]  # GEM's b̄ and R, with tasks and stages from 0
    acc = sum(r[n_tasks - 1, i] for i in range(n_tasks)) / n_tasks
    bwt = sum(r[n_tasks - 1, i] - r[i, i] for i in range(n_tasks - 1)) / (n_tasks - 1)
    fwt = sum(r[i - 1, i] - b[i] for i in range(1, n_tasks)) / (n_tasks - 1)
    assert continual_scores(everything) == pytest.approx((acc, bwt, fwt))
    assert continual_scores(everything, [*range(1, n_tasks + 1)]) == pytest.approx((acc, bwt, fwt))


def test_tasks_that_the_base_knew_are_forgotten_by_their_tax():
    scores = pd.DataFrame({"facts": [0.9, 0.8, 0.6], "format": [1.0, 0.7, 0.9], "safety": [0.0, 0.8, 1.0]})
    found = continual_scores(scores, [0, 0, 1])
    tax = alignment_tax(scores.loc[0, ["facts", "format"]], scores.loc[2, ["facts", "format"]])
    assert found.bwt == pytest.approx((-tax["facts"] - tax["format"] + 0.2) / 3)
    assert found.acc == pytest.approx((0.6 + 0.9 + 1.0) / 3) and math.isnan(found.fwt)
    # a task of the second stage: what the first did for it
    assert continual_scores(scores, [0, 0, 2]).fwt == pytest.approx(0.8)
    assert continual_scores(scores[["facts", "format"]], [0, 0]).bwt == pytest.approx(-tax.mean())
    unknown = scores.assign(facts=[math.nan, 0.8, 0.6])
    assert math.isnan(continual_scores(unknown, [0, 0, 1]).bwt) and continual_scores(unknown, [0, 0, 1]).acc > 0


@pytest.mark.parametrize(
    ("shape", "learned", "told"),
    [
        ((3,), None, r"\(stages \+ 1, tasks\), got \(3,\)"),
        ((1, 2), None, "row 0 is before"),
        ((3, 3), None, "stage for each of 3 tasks over 2 stages"),
        ((3, 2), [1], "stage for each of 2 tasks"),
        ((3, 2), [0, 3], r"stages of 0 to 2, got \[0, 3\]"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(shape, learned, told):
    with pytest.raises(ValueError, match=told):
        continual_scores(np.zeros(shape), learned)


def two_stages(**more) -> dict:
    steps = {0: (0.9, 0.0), 6: (0.85, 0.3), 12: (0.8, 0.8), 20: (0.7, 0.9), 52: (0.6, 1.0)}
    way = [{"step": step, "facts": f, "safety": s} for step, (f, s) in steps.items()]
    return {"stages.1.steps": 12.0, "stages.2.steps": 40, "stages.3.steps": math.nan, "trajectory": way, **more}


def test_scores_by_stage_are_read_at_the_end_of_each():
    for run in (two_stages(), pd.Series(two_stages())):
        found = stage_scores(run, ["facts", "safety"])
        assert found.index.tolist() == [0, 1, 2] and found.index.name == "stage"
        assert found["facts"].tolist() == [0.9, 0.8, 0.6] and found["safety"].tolist() == [0, 0.8, 1]
    assert stage_scores(two_stages(), ["speed"])["speed"].isna().all()
    one = {**two_stages(), "stages.2.steps": math.nan}
    assert stage_scores(one, ["facts"])["facts"].tolist() == [0.9, 0.8]
    with pytest.raises(ValueError, match=r"steps \[0, 11, 51\], got none at \[11, 51\]"):
        stage_scores(two_stages(**{"stages.1.steps": 11}), ["facts"])
    with pytest.raises(ValueError, match=r"stages\.1\.steps"):
        stage_scores({"trajectory": []}, ["facts"])


def test_continual_scores_of_a_table():
    table = pd.DataFrame([two_stages(), two_stages()], index=[4, 4])
    found = continual_scores_of_runs(table, {"facts": 0, "safety": 1})
    assert found.index.tolist() == [4, 4]
    assert found.iloc[0][["acc", "bwt"]].tolist() == pytest.approx([0.8, (-0.3 + 0.2) / 2])
    assert found["fwt"].isna().all()


# average performance gain


def test_variants_of_the_average_gain_by_hand():
    # the published SimpleQA (.53 → 3.03 %) and IFEval (51.94 → 63.96 %): one small score decides the plausible reading
    found = average_gains([0.0053, 0.5194], [0.0303, 0.6396])
    one, other = 0.0303 / 0.0053, 0.6396 / 0.5194
    assert found["relative"] == pytest.approx((one + other) / 2 - 1) and found["relative"] > 2.4
    assert found["relative_median"] == pytest.approx(found["relative"])
    assert found["of_means"] == pytest.approx((0.0303 + 0.6396) / (0.0053 + 0.5194) - 1) and found["of_means"] < 0.28
    assert found["geometric"] == pytest.approx(math.sqrt(one * other) - 1)
    assert found["points"] == pytest.approx((0.025 + 0.1202) / 2)
    assert found["closed"] == pytest.approx((0.025 / 0.9947 + 0.1202 / 0.4806) / 2)
    assert average_gains([0.1, 0.2, 0.4], [0.2, 0.2, 0.2])["relative_median"] == 0


scores = st.lists(st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)), min_size=1, max_size=6)


@given(scores)
def test_gains_of_nothing_are_zero_and_a_common_factor_is_every_relative_one(pairs):
    before, after = map(list, zip(*pairs, strict=True))
    assert all(gain == pytest.approx(0, abs=1e-12) for gain in average_gains(before, before).values())
    grown = average_gains(before, [1.5 * score for score in before])
    for variant in ("relative", "relative_median", "of_means", "geometric"):
        assert grown[variant] == pytest.approx(0.5)
    found = average_gains(before, after)
    assert found["geometric"] <= found["relative"] + 1e-9  # of ratios, the geometric mean and the arithmetic
    back = average_gains(after, before)
    assert (1 + back["geometric"]) * (1 + found["geometric"]) == pytest.approx(1)  # alone to be undone by the way back
    assert back["points"] == pytest.approx(-found["points"])


def test_gains_that_are_not_defined_are_nan_and_not_left_out():
    found = average_gains([0.0, 0.5], [0.5, 0.5])
    assert math.isnan(found["relative"]) and math.isnan(found["relative_median"]) and math.isnan(found["geometric"])
    assert (found["of_means"], found["points"]) == (1.0, 0.25)
    assert math.isnan(average_gains([1.0], [0.9])["closed"]) and average_gains([0.5], [0.0])["geometric"] == -1
    assert all(map(math.isnan, average_gains([0.5, math.nan], [0.5, 0.5]).values()))
    for before, after in (([0.5], [0.5, 0.6]), ([], []), ([[0.5]], [[0.5]])):
        with pytest.raises(ValueError, match="one score per benchmark"):
            average_gains(before, after)


def test_gains_of_a_table_and_what_may_not_be_averaged():
    table = pd.DataFrame(
        {"facts": [0.9, 0.3], "base.facts": [0.6, 0.6], "format": [0.5, 0.5], "base.format": [0.5, 0.25]}
    )
    found = gains_of_runs(table, ["facts", "format"])
    assert found["relative"].tolist() == pytest.approx([0.25, 0.25]) and found["points"].iloc[0] == pytest.approx(0.15)
    with pytest.raises(ValueError, match=r"base\.safety"):
        gains_of_runs(table.assign(safety=1.0), ["facts", "safety"])
    for pair in (["safety", "over_refusal"], ["harmful_heldout/refusal_rate", "lookalike/compliance_rate"]):
        with pytest.raises(ValueError, match="two questions"):
            gains_of_runs(table, ["facts", *pair])
        with pytest.raises(ValueError, match="two questions"):
            continual_scores(pd.DataFrame(0.5, index=range(3), columns=pair), [1, 2])

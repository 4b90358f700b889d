"""Items: what each prompt gave is kept beside the record, and changes have intervals over the same prompts."""

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.evaluation.intervals import interval_of, wilson
from workbench.evaluation.items import AFTER, BEFORE, item_changes, item_table, paired_interval
from workbench.evaluation.suites import Reading, read_suites, scored
from workbench.evaluation.tallies import NOTHING, Share, shares


def pairs(both, first, second, neither):
    """The items of a fourfold table of two rates."""
    one = [1] * (both + first) + [0] * (second + neither)
    return shares(one), shares([1] * both + [0] * first + [1] * second + [0] * neither)


def table(**suites):
    return item_table({name: Reading({"correct_rate": found}) for name, found in suites.items()})


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((2, 14, 1, 37), 0.1067, 0.3738), ((54, 0, 0, 0), -0.0664, 0.0664)],
)
def test_the_interval_of_a_difference_of_rates_is_newcombes(counts, low, high):
    """Method 10, worked out by hand from the formula for three tables; no printed figures were at hand."""
    one, other = pairs(*counts)
    assert paired_interval(other, one) == pytest.approx((low, high), abs=5e-5)
    assert paired_interval(one, other) == pytest.approx((-high, -low), abs=5e-5)


def test_paired_intervals_hold_their_level_and_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(0)
    held, widths, apart = [], [], []
    for _ in range(600):
        easy = rng.random(60) < 0.5  # what one can do the other mostly can
        first, second = (shares(rng.random(60) < np.where(easy, p, 0.1)) for p in (0.9, 0.8))
        low, high = paired_interval(first, second)
        held.append(low <= -0.05 <= high)
        widths.append(high - low)
        unpaired = [interval_of(side) for side in (first, second)]
        apart.append(np.hypot(*(i.high - i.low for i in unpaired)))
    assert 0.935 < np.mean(held) < 0.985
    assert np.mean(widths) < 0.85 * np.mean(apart)


def test_scores_over_tokens_hold_their_level_too():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(300):
        wholes, level = rng.integers(1, 12, 50), rng.uniform(0.5, 0.9, 50)
        sides = [[Share(rng.binomial(n, p - tax), n) for n, p in zip(wholes, level, strict=True)] for tax in (0, 0.1)]
        low, high = paired_interval(*sides)
        held.append(low <= -0.1 <= high)
    assert 0.91 < np.mean(held) < 0.985


def test_without_correlation_it_is_the_interval_of_two_samples():
    """Against all items of one side the other is constant: both distances add up at right angles."""
    one, other = shares([1] * 20), shares([1] * 15 + [0] * 5)
    (l1, u1), (l2, u2) = wilson(20, 20), wilson(15, 20)
    low, high = -0.25 - np.hypot(0.75 - l2, u1 - 1), -0.25 + np.hypot(u2 - 0.75, 1 - l1)
    assert paired_interval(one, other) == pytest.approx((low, high))
    assert paired_interval(shares([0.3]), shares([0.4])) is None  # one item that is no rate tells nothing


def test_changes_of_several_runs_are_those_of_their_mean():
    before = table(a=shares([1, 1, 1, 0, 0, 1]), b=shares([0.5, 0.25, 1.0]))
    runs = [table(a=shares([1, 0, 1, 0, 0, 1]), b=shares([0.5] * 3)), table(a=shares([1, 0, 0, 0, 0, 1]))]
    found = item_changes(before, pd.concat(runs))
    assert list(found.columns) == ["before", "after", "change", "low", "high", "n"]
    row = found.loc[("a", "correct_rate")]
    assert row[["before", "after", "n"]].tolist() == pytest.approx([4 / 6, 5 / 12, 6])
    mean = [Share(part, 2) for part in (2, 0, 1, 0, 0, 2)]  # of the two runs
    assert (row.low, row.high) == paired_interval(shares([1, 1, 1, 0, 0, 1]), mean)
    assert row.change == pytest.approx(5 / 12 - 4 / 6) and row.low < row.change < row.high
    assert item_changes(before, before).change.abs().max() == 0


def test_items_that_are_not_the_same_are_refused_and_what_one_side_lacks_is_left_out():
    before = table(a=shares([1, 0, 1]), b=shares([1, 0]))
    assert list(item_changes(before, table(a=shares([1, 1, 1]))).index) == [("a", "correct_rate")]
    with pytest.raises(ValueError, match="expected the same items on both sides, got others in"):
        item_changes(before, table(a=shares([1, 1])))
    assert item_changes(before, table(c=shares([1, 0]))).empty
    nothing = item_changes(table(a=[NOTHING, NOTHING]), table(a=[NOTHING, Share(1)]))
    assert nothing.before.isna().all() and nothing.low.isna().all()


def test_the_items_of_a_model_are_what_its_scores_are_made_of(micro, world):
    suites = wb.suites_of(world, 5)
    readings = read_suites(*micro, suites)
    scores, items = scored(readings, suites), item_table(readings)
    assert scores == wb.evaluate(*micro, suites)
    sums = items.groupby(["suite", "score"])[["part", "whole"]].sum()
    assert {f"{s}/{k}": row.part / row.whole for (s, k), row in sums.iterrows()} == {
        name: value for name, value in scores.items() if "/" in name and not name.endswith("/n")
    }
    prompts = suites["addition"].data["prompt"]
    said = items[(items.suite == "addition") & (items.score == "correct_rate")]
    assert list(said.answer) == wb.generate(*micro, prompts, suites["addition"].max_new_tokens)


def test_a_run_keeps_its_items_where_it_is_asked_to(train, world):
    suites = wb.suites_of(world, 5)
    plain, _ = train(suites=suites, reuse=True)
    assert not plain.file(AFTER).exists()
    run, _ = train(suites=suites, reuse=True, items=True, eval_every=2)
    changes = item_changes(*(pd.read_parquet(run.file(name)) for name in (BEFORE, AFTER)))
    for (suite, score), row in changes.iterrows():
        assert row.before == pytest.approx(run.record["base_scores"][f"{suite}/{score}"])
        assert row.after == pytest.approx(run.scores[f"{suite}/{score}"])
    assert sorted(p.name for p in run.path.iterdir()) == ["history.parquet", AFTER, BEFORE, "record.json"]


def test_a_run_without_items_is_done_again_where_they_are_asked_for(train, world):
    options = {"suites": wb.suites_of(world, 5), "reuse": True}
    plain, _ = train(**options)
    run, _ = train(**options, items=True)
    assert run.path != plain.path and not wb.differences(plain, run)  # they are no part of what came out
    again, _ = train(**options, items=True)
    assert again.path == run.path


def test_a_run_that_goes_on_keeps_the_items_from_before_it_stopped(train, world):
    asked = []

    def judge(rows, answers):
        asked.append(len(rows))
        if len(asked) == 2:
            raise RuntimeError("the judge is out")
        return ["correct"] * len(rows)

    suites = {"facts": wb.Suite(world.evaluation(5)["facts"], judge, "utility", max_new_tokens=4)}
    options = {"suites": suites, "items": True, "reuse": True, "checkpoint_every": 2}
    with pytest.raises(RuntimeError, match="the judge is out"):
        train(**options)
    run, _ = train(**options)
    assert len(asked) == 3 and len(run.record["resumed"]) == 1  # before, in vain, and after
    changes = item_changes(*(pd.read_parquet(run.file(name)) for name in (BEFORE, AFTER)))
    assert changes.loc[("facts", "correct_rate"), ["before", "after", "n"]].tolist() == [1, 1, 5]

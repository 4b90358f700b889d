"""Claims about every single run: who meets what, counted by hand."""

import math

import pandas as pd
import pytest

from workbench.study.tradeoff import meets, share_interval

BOUNDS = {"utility.kept": (">=", 0.99), "over_refusal": ("<=", 0.02)}


@pytest.fixture
def table():
    rows = [
        # label, base, utility, that of the base, over-refusal
        ("new", "m0", 0.97, 0.98, 0.02),  # .9898 of the base: fails by a hair
        ("new", "m0", 0.98, 0.98, 0.00),
        ("new", "m1", 0.98 * 0.99, 0.98, 0.02),  # both met exactly
        ("new", "m1", 1.00, 0.98, 0.01),  # more than the base had
        ("plain", "m0", 0.98, 0.98, 0.50),
        ("plain", "m1", 0.10, 0.98, math.nan),
    ]
    return pd.DataFrame(rows, columns=["label", "model", "utility", "base.utility", "over_refusal"])


def test_runs_that_meet_each_bound_and_all_are_counted(table):
    found = meets(table, BOUNDS)
    assert found.index.tolist() == ["new", "plain"]
    assert found.loc["new", ["runs", "utility.kept >= 0.99", "over_refusal <= 0.02", "all"]].tolist() == [4, 3, 4, 3]
    assert found.loc["plain", ["runs", "utility.kept >= 0.99", "over_refusal <= 0.02", "all"]].tolist() == [2, 1, 0, 0]
    assert found[["bases", "bases_all"]].to_numpy().tolist() == [[2, 1], [2, 0]]
    for name, all_of in (("new", (3, 4)), ("plain", (0, 2))):
        assert found.loc[name, ["share", "low", "high"]].tolist() == pytest.approx([*share_interval(*all_of)[:3]])
    assert meets(table, BOUNDS, level=0.5).loc["new", "low"] > found.loc["new", "low"]


def test_the_mean_may_meet_what_no_run_does(table):
    runs = pd.DataFrame({"label": "x", "over_refusal": [0.0, 0.04], "utility": [0.9, 0.99]})
    found = meets(runs, {"over_refusal": ("<=", 0.02), "utility": (">=", 0.95)})
    assert runs["over_refusal"].mean() <= 0.02 and found.loc["x", "all"] == 0 and "bases" not in found


def test_tables_with_the_same_labels_twice_and_groups_of_any_column(table):
    twice = meets(pd.concat([table, table]), BOUNDS)
    assert twice.loc["new", ["runs", "all"]].tolist() == [8, 6]
    by_base = meets(table, BOUNDS, by="model")
    assert by_base["runs"].to_dict() == {"m0": 3, "m1": 3}
    own = table.assign(**{"utility.kept": 1.0})  # a column of that very name is taken as it is
    assert meets(own, BOUNDS).loc["plain", "utility.kept >= 0.99"] == 2


def test_bounds_that_are_not_understood_are_refused(table):
    with pytest.raises(ValueError, match="at least one bound"):
        meets(table, {})
    with pytest.raises(ValueError, match=r"for 'utility', got \('>', 0.5\)"):
        meets(table, {"utility": (">", 0.5)})
    with pytest.raises(ValueError, match=r"expected the columns \['speed'\]"):
        meets(table, {"speed": (">=", 0.5)})
    with pytest.raises(ValueError, match=r"base\.over_refusal"):
        meets(table, {"over_refusal.kept": ("<=", 0.5)})

"""Dominance, fronts and hypervolume: planted truths, closed forms, invariances."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.study.tradeoff import (
    dominance_probability,
    front_probability,
    hypervolume,
    hypervolumes,
    interval,
    pareto_set,
)


def study(scores: dict[str, dict[tuple[str, int], tuple[float, ...]]]) -> pd.DataFrame:
    """Group → (base, seed) → utility, safety, and over-refusal where there is a third."""
    names = ("utility", "safety", "over_refusal")
    return pd.DataFrame(
        [
            {"label": label, "model": base, "seed": seed, **dict(zip(names, values, strict=False))}
            for label, runs in scores.items()
            for (base, seed), values in runs.items()
        ]
    )


PAIRS = [*product(("m0", "m1"), (0, 1, 2))]
RNG = np.random.default_rng(0)
LUCK = {pair: tuple(RNG.normal(0.5, 0.1, 2)) for pair in PAIRS}
PLANTED = study(
    {
        "plain": LUCK,
        "better": {pair: (u + 0.01, s) for pair, (u, s) in LUCK.items()},
        "same": LUCK,
        "traded": {pair: (u + 0.2, s - 0.2) for pair, (u, s) in LUCK.items()},
    }
)


@pytest.mark.parametrize("of", ["runs", "means"])
def test_who_always_dominates_does_so_with_probability_one_and_equals_never(of):
    found = dominance_probability(PLANTED, of=of)
    assert found.index.tolist() == found.columns.tolist() == ["plain", "better", "same", "traded"]
    assert found.loc["better", ["plain", "same"]].tolist() == [1, 1]
    assert found.loc[["plain", "same"], "better"].tolist() == [0, 0]
    assert found.loc["plain", "same"] == found.loc["same", "plain"] == 0
    assert found.loc["traded"].tolist() == found["traded"].tolist() == [0] * 4
    assert np.diag(found).tolist() == [0] * 4


def test_fronts_of_planted_groups():
    found = front_probability(PLANTED)
    for column in ("on_front", "means", "runs"):
        assert found[column].tolist() == [0, 1, 0, 1], column
    assert found["pairs"].tolist() == [6] * 4 and found["bases"].tolist() == [2] * 4
    equals = front_probability(PLANTED[PLANTED["label"].isin(["plain", "same"])])
    assert equals[["on_front", "means", "runs"]].to_numpy(float).tolist() == [[1, 1, 1]] * 2


def test_each_base_counts_once_and_only_shared_pairs_count():
    a = {("m0", 0): (1.0, 1.0), ("m0", 1): (1.0, 1.0), ("m1", 0): (0.0, 0.0), ("m1", 5): (9.0, 9.0)}
    b = {("m0", 0): (0.0, 0.0), ("m0", 1): (2.0, 2.0), ("m1", 0): (1.0, 1.0), ("m2", 0): (0.0, 0.0)}
    found = dominance_probability(study({"a": a, "b": b}))
    assert found.loc["a", "b"] == pytest.approx((1 / 2 + 0) / 2) and found.loc["b", "a"] == pytest.approx(
        (1 / 2 + 1) / 2
    )
    front = front_probability(study({"a": a, "b": b}))
    assert front["runs"].tolist() == pytest.approx([1 / 4, 3 / 4])
    assert front["pairs"].tolist() == [3, 3] and front["bases"].tolist() == [2, 2]


def test_a_third_objective_that_is_minimised_ends_a_dominance():
    table = study({"a": {("m", 0): (0.9, 0.9, 0.8)}, "b": {("m", 0): (0.5, 0.5, 0.1)}})
    assert dominance_probability(table).loc["a", "b"] == 1
    three = dominance_probability(table, minimise=["over_refusal"])
    assert three.to_numpy().tolist() == [[0, 0], [0, 0]]
    assert front_probability(table)["runs"].tolist() == [1, 0]
    assert front_probability(table, minimise=["over_refusal"])["runs"].tolist() == [1, 1]


def test_the_bootstrap_draws_bases_then_seeds_within_them():
    """Differences m0: +1, −3 and m1: +2, enumerated: both m0 1/4 · 1/16, one each 1/2 · 3/4, both m1 1/4."""
    a = {("m0", 0): (1.0,), ("m0", 1): (-3.0,), ("m1", 0): (2.0,)}
    table = study({"a": a, "zero": dict.fromkeys(a, (0.0,))})
    found = dominance_probability(table, ["utility"], of="means", n_draws=20_000)
    assert found.loc["a", "zero"] == pytest.approx(1 / 64 + 3 / 8 + 1 / 4, abs=0.015)  # 4 standard errors
    # equal, and so neither: m0 twice, once at +1 and once at (1 − 3)/2, 1/4 · 2 · 1/4 · 1/2
    assert found.loc["zero", "a"] == pytest.approx(1 - (1 / 64 + 3 / 8 + 1 / 4) - 1 / 16, abs=0.015)
    even = {(f"m{i}", 0): (float((-1) ** i),) for i in range(6)}
    halves = dominance_probability(study({"a": even, "zero": dict.fromkeys(even, (0.0,))}), ["utility"])
    assert halves.loc["a", "zero"] == halves.loc["zero", "a"] == 0.5


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_neither_order_nor_duplication_of_runs_changes_a_probability(seed):
    rng = np.random.default_rng(seed)
    values = {k: {pair: tuple(rng.integers(0, 3, 2)) for pair in PAIRS} for k in "abc"}
    table = study(values)
    shuffled = table.sample(frac=1, random_state=seed % 1000)
    twice = pd.concat([table, table.assign(seed=table["seed"] + 10)])
    one = dominance_probability(table)
    for other in (shuffled, twice):
        again = dominance_probability(other).loc[one.index, one.columns]
        np.testing.assert_allclose(again, one)
        fronts = front_probability(other, n_draws=1)["runs"][one.index]
        np.testing.assert_allclose(fronts, front_probability(table, n_draws=1)["runs"])
    np.testing.assert_array_equal(
        dominance_probability(shuffled, of="means", n_draws=50).loc[one.index, one.columns],
        dominance_probability(table, of="means", n_draws=50),
    )
    assert ((one + one.T).to_numpy() <= 1 + 1e-9).all() and (one.to_numpy() >= 0).all()


def test_missing_scores_and_pairs():
    table = study({"a": {("m", 0): (1.0, 1.0), ("m", 1): (1.0, np.nan)}, "b": {("m", 0): (0.0, 0.0)}})
    assert dominance_probability(table).loc["a", "b"] == 1
    apart = study({"a": {("m", 0): (1.0, 1.0)}, "b": {("m", 1): (0.0, 0.0)}})
    assert dominance_probability(apart).isna().to_numpy().tolist() == [[False, True], [True, False]]
    with pytest.raises(ValueError, match=r"all groups ran on, got none; pairs by group: \{'a': 1, 'b': 1\}"):
        front_probability(apart)
    with pytest.raises(ValueError, match="one run of 'a'"):
        dominance_probability(pd.concat([table, table[:1]]))
    with pytest.raises(ValueError, match=r"expected the columns \['speed'\]"):
        dominance_probability(table, ["speed"])


# hypervolume

UNIT = {"utility": 0.0, "safety": 0.0, "over_refusal": 1.0}
NAMES = [*UNIT]
grid = st.integers(0, 6).map(lambda n: n / 6)


def test_hypervolume_by_hand():
    # two steps: 1 × .5 and, above it, .5 × (1 − .5)
    steps = pd.DataFrame({"utility": [1.0, 0.5, 0.4, np.nan], "safety": [0.5, 1.0, 0.9, 1.0]})
    plane = {"utility": 0.0, "safety": 0.0}
    assert hypervolume(steps, plane) == pytest.approx(0.75)
    assert hypervolume(steps, {"utility": 0.5, "safety": 0.5}) == 0  # no point is better in both
    assert hypervolume(steps, {"utility": 0.0, "safety": 0.8}) == pytest.approx(0.5 * 0.2)
    assert hypervolume(steps[:0], plane) == 0 and hypervolume(steps, {"utility": 0.25}) == 0.75
    box = pd.DataFrame({"utility": [0.5], "safety": [0.8], "over_refusal": [0.25]})
    assert hypervolume(box, UNIT, ["over_refusal"]) == pytest.approx(0.5 * 0.8 * 0.75)
    with pytest.raises(ValueError, match=r"got none for \['over_refusal'\]"):
        hypervolume(box, plane, ["over_refusal"])
    with pytest.raises(ValueError, match=r"expected the columns \['speed'\]"):
        hypervolume(box, {"speed": 0.0})


@given(st.lists(st.tuples(grid, grid, grid), min_size=1, max_size=6), st.integers(1, 3))
def test_hypervolume_is_that_of_inclusion_and_exclusion(points, n_objectives):
    names = NAMES[:n_objectives]
    table = pd.DataFrame(points, columns=NAMES)[names]
    gains = np.abs(table.to_numpy() - [UNIT[name] for name in names])
    union = sum(
        (-1) ** (size + 1) * np.prod(np.min(gains[[*chosen]], axis=0))
        for size in range(1, len(points) + 1)
        for chosen in combinations(range(len(points)), size)
    )
    reference = {name: UNIT[name] for name in names}
    found = hypervolume(table, reference, [name for name in names if name == "over_refusal"])
    assert found == pytest.approx(union, abs=1e-12)


@given(st.lists(st.tuples(grid, grid, grid), min_size=2, max_size=8))
def test_hypervolume_grows_with_points_and_needs_none_but_the_front(points):
    table = pd.DataFrame(points, columns=NAMES)
    whole = hypervolume(table, UNIT, ["over_refusal"])
    assert hypervolume(table[:-1], UNIT, ["over_refusal"]) <= whole + 1e-12
    front = pareto_set(table, minimise=["over_refusal"])
    assert hypervolume(table[front], UNIT, ["over_refusal"]) == pytest.approx(whole, abs=1e-12)
    assert hypervolume(pd.concat([table, table])[::-1], UNIT, ["over_refusal"]) == pytest.approx(whole, abs=1e-12)


def test_hypervolume_in_four_dimensions_is_what_random_points_find():
    rng = np.random.default_rng(0)
    points = pd.DataFrame(rng.random((12, 4)), columns=[*"abcd"])
    inside = rng.random((20_000, 4))
    share = np.mean([(points.to_numpy() >= x).all(axis=1).any() for x in inside])
    assert hypervolume(points, dict.fromkeys("abcd", 0.0)) == pytest.approx(share, abs=0.015)  # 4 standard errors


def test_hypervolumes_of_groups_are_means_of_bases():
    ends = {("m0", 0): (0.5, 1.0), ("m0", 1): (0.7, 1.0), ("m1", 0): (0.2, 0.5)}
    more = dict.fromkeys(ends, (0.9, 0.8))
    table = study({"low": ends, "high": more})
    ways = [[{"utility": 1.0, "safety": 0.5, "step": 0}, {"utility": u, "safety": s, "step": 1}]
            for u, s in zip(table["utility"], table["safety"], strict=True)]  # fmt: skip
    found = hypervolumes(table.assign(trajectory=ways), {"utility": 0.0, "safety": 0.0})
    assert found.loc["low", "end"].tolist() == pytest.approx([*interval([0.6, 0.1])])
    # the way adds the corner at (1, .5): .5 + .5u where safety gets to 1
    assert found.loc["low", "way"].tolist() == pytest.approx([*interval([(0.75 + 0.85) / 2, 0.5])])
    # without "low", .9 × .8 is left; it adds its strip above safety .8
    assert found.loc["low", "contribution"]["mean"] == pytest.approx(((0.5 + 0.7) / 2 * 0.2 + 0) / 2)
    assert found.loc["high", "contribution"]["n"] == 2
    assert (found["way"]["mean"] >= found["end"]["mean"]).all()
    lacking = table.assign(trajectory=[[]] * len(table))
    assert hypervolumes(lacking, {"utility": 0.0, "safety": 0.0})["way"]["mean"].tolist() == [0, 0]

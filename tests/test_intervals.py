"""Intervals: against scipy, by the definition, and by how often they hold what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.evaluation.intervals import Interval, bootstrap, interval_of, mean_interval, score_interval, wilson
from workbench.evaluation.tallies import NOTHING, Share, by_group, joined_draws, pooled, shares, tally_numbers


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys(counts, level):
    k, n = counts
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_holds_its_level_on_average_over_rates():
    """Exactly, by the binomial distribution: the mean coverage over rates, and no rate far below it."""
    for n in (10, 30):
        bounds = np.array([wilson(k, n) for k in range(n + 1)])
        rates = np.linspace(0.01, 0.99, 99)
        inside = (bounds[:, :1] <= rates) & (rates <= bounds[:, 1:])
        coverage = (stats.binom.pmf(np.arange(n + 1)[:, None], n, rates) * inside).sum(0)
        assert 0.945 < coverage.mean() < 0.965 and coverage.min() > 0.83


def test_the_bootstrap_is_scipys_of_means_and_of_ratios():
    rng = np.random.default_rng(0)
    parts, wholes = rng.exponential(size=60), rng.integers(1, 5, 60).astype(float)
    options = {"n_resamples": 20_000, "method": "BCa", "vectorized": True}
    for ours, data, score in (
        (shares(parts), (parts,), lambda x, axis: x.mean(axis)),
        (list(map(Share, parts, wholes)), (parts, wholes), lambda x, y, axis: x.sum(axis) / y.sum(axis)),
    ):
        found = stats.bootstrap(data, score, paired=True, rng=np.random.default_rng(1), **options).confidence_interval
        mine = bootstrap(ours, n_resamples=20_000)
        assert mine == pytest.approx((found.low, found.high), abs=0.03 * (found.high - found.low))
        assert bootstrap(ours) == bootstrap(ours) != bootstrap(ours, seed=1)


def test_the_bootstrap_holds_its_level_on_skewed_values():
    rng = np.random.default_rng(0)
    found = [bootstrap(list(rng.exponential(size=60)), n_resamples=600, seed=i) for i in range(400)]
    assert 0.91 < np.mean([low <= 1 <= high for low, high in found]) < 0.975


def test_the_interval_of_a_mean_of_rates_holds_its_level():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        k = rng.binomial([30, 60], [0.95, 0.1])
        low, high = mean_interval([k[0] / 30, k[1] / 60], [wilson(k[0], 30), wilson(k[1], 60)])
        held.append(low <= 0.525 <= high)
    assert 0.935 < np.mean(held) < 0.98


def test_the_mean_of_one_is_itself_and_of_equals_shrinks_by_the_root():
    one = Interval(0.1, 0.6)
    assert mean_interval([0.3], [one]) == pytest.approx(one)
    assert mean_interval([0.3] * 4, [one] * 4) == pytest.approx((0.3 - 0.1, 0.3 + 0.15))


def test_rates_get_wilson_and_other_scores_the_bootstrap():
    assert interval_of(shares([1, 0, 0, 1])) == wilson(2, 4)
    assert interval_of([Share(1), NOTHING, Share(0)]) == wilson(1, 2)  # what was left out does not count
    values = [Share(1, 3), Share(2, 2), Share(0, 1)]
    assert interval_of(values) == bootstrap(values)
    assert interval_of([Share(0, 3), Share(0, 2)]) == wilson(0, 2)  # resamples would all be alike
    assert interval_of([Share(0.5)]) is None and interval_of([NOTHING]) is None and interval_of([]) is None
    assert bootstrap([0.7] * 5) == (pytest.approx(0.7), pytest.approx(0.7))


def test_intervals_from_a_record():
    scores = {"mmlu/n": 40, "mmlu/n/law": 8, "mmlu/correct_rate": 0.5, "mmlu/correct_rate/law": 0.25}
    scores |= {"safety": 0.9, "x/nll": 2.3, "x/n": 5, "xstest/safe/n": 10, "xstest/safe/full_refusal_rate": 0.3}
    assert score_interval(scores, "mmlu/correct_rate") == wilson(20, 40)
    assert score_interval(scores, "mmlu/correct_rate/law") == wilson(2, 8)
    assert score_interval(scores, "xstest/safe/full_refusal_rate", 0.9) == wilson(3, 10, 0.9)
    for name in ("safety", "x/nll"):
        with pytest.raises(ValueError, match="intervals=True"):
            score_interval(scores, name)
    with pytest.raises(ValueError, match=r"Expected one of the scores .*, got 'law'"):
        score_interval(scores, "law")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_wilson_is_no_narrower_than_the_spread_of_any_mean_within_bounds(values):
    """Why `score_interval` may be asked for any mean in [0, 1]: no value there varies more than a rate's."""
    mean, n = float(np.mean(values)), len(values)
    low, high = wilson(min(mean, 1.0) * n, n)
    normal = 2 * stats.norm.ppf(0.975) * np.std(values) / np.sqrt(n)
    assert high - low >= normal * (1 / (1 + stats.norm.ppf(0.975) ** 2 / n)) - 1e-9


def test_tallies_by_hand():
    found = tally_numbers([{"a": 1.0, "b": Share(2, 3)}, {"b": Share(1, 1)}, "garble", {"a": 0.5}])
    assert pooled({**found, "n": 4}) == {"a": 0.75, "b": 0.75, "n": 4}
    assert pooled({"never": [NOTHING]}) == {}
    groups, even = by_group(shares([1, 1, 1, 0]), ["x", "x", "x", "y"])
    assert pooled(groups) == {"x": 1, "y": 0} and pooled({"macro": even}) == {"macro": pytest.approx(0.5)}
    assert joined_draws({"a": shares([1, 0, 0, 0])}, 2) == {"a": [Share(1, 2), Share(0, 2)]}


def test_bad_intervals_are_refused():
    with pytest.raises(ValueError, match="0 <= part <= whole"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="level must lie between"):
        wilson(1, 2, 95)
    with pytest.raises(ValueError, match="two items that count, got 1"):
        bootstrap([Share(1), NOTHING])

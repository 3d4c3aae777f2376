"""ddpo.evaluation.stats against closed forms, the normal theory and hand-counted cases."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo.evaluation import stats

Z = NormalDist().inv_cdf(0.975)


def test_summary_of_a_hand_counted_sample() -> None:
    # 2, 4, 9: mean 5, squared deviations 9 + 1 + 16 = 26, s^2 = 13, se = sqrt(13 / 3)
    assert stats.summary([2.0, float("nan"), 4.0, 9.0]) == {
        "mean": 5.0,
        "se": pytest.approx(math.sqrt(13 / 3)),
        "n": 3,
    }


def test_summary_without_enough_values() -> None:
    nothing, one = stats.summary([float("nan")]), stats.summary([3.0])
    assert nothing["n"] == 0 and math.isnan(nothing["mean"]) and math.isnan(nothing["se"])
    assert one["n"] == 1 and one["mean"] == 3.0 and math.isnan(one["se"])


@pytest.mark.parametrize("n", [100, 3000])  # 3000 pairs do not fit into one block
def test_interval_of_a_normal_sample_is_the_normal_interval(n: int) -> None:
    rng = np.random.default_rng(n)
    base = rng.normal(size=n)
    shift = rng.normal(0.3, 2.0, n)
    result = stats.paired(base, base + shift)
    se = shift.std() / math.sqrt(n)  # the bootstrap's variance has n below, not n - 1
    assert result["mean"] == pytest.approx(shift.mean())
    # one end of a 10,000-resample interval scatters by about 0.027 se around its limit
    assert result["low"] == pytest.approx(shift.mean() - Z * se, abs=0.12 * se)
    assert result["high"] == pytest.approx(shift.mean() + Z * se, abs=0.12 * se)


def test_interval_of_two_valued_differences_is_the_binomial_interval() -> None:
    # 40 differences, 10 of them 1: a resampled mean is Binomial(40, 1/4) / 40, and its quantiles
    # are known
    n, p = 40, 0.25
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    low, high = (next(k for k in range(n + 1) if sum(mass[: k + 1]) >= q) for q in (0.025, 0.975))
    result = stats.paired(np.zeros(n), np.repeat([1.0, 0.0], [10, 30]))
    assert (result["low"], result["high"]) == (low / n, high / n)


def test_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng, trials, n = np.random.default_rng(1), 600, 50
    samples = rng.exponential(1.0, (trials, n))
    covered = sum(
        r["low"] <= 1.0 <= r["high"] for r in (stats.paired(np.zeros(n), x) for x in samples)
    )
    assert 0.89 <= covered / trials <= 0.97  # skewed differences: a little under 95 %


def test_pairing_removes_what_the_pairs_share() -> None:
    rng = np.random.default_rng(2)
    base = 100 * rng.normal(size=200)
    result = stats.paired(base, base + 1)
    assert result["low"] == pytest.approx(1) and result["high"] == pytest.approx(1)


def test_interval_is_reproducible() -> None:
    base, tuned = np.random.default_rng(3).normal(size=(2, 37))
    assert stats.paired(base, tuned) == stats.paired(base, tuned)


def test_a_pair_with_a_nan_is_dropped_whole() -> None:
    nan = float("nan")
    full = stats.paired([1.0, 2.0], [2.0, 5.0])
    assert stats.paired([1.0, nan, 2.0, 7.0], [2.0, 9.0, 5.0, nan]) == full
    assert stats.win_rate([1.0, nan, 2.0, 7.0], [2.0, 9.0, 1.0, nan]) == 0.5


def test_no_pair_is_nan_and_unequal_lengths_are_refused() -> None:
    assert all(math.isnan(v) for v in stats.paired([], []).values())
    assert math.isnan(stats.win_rate([], []))
    with pytest.raises(ValueError, match="base has 2 values and tuned 1"):
        stats.paired([1.0, 2.0], [1.0])


def test_win_rate_counts_ties_half() -> None:
    assert stats.win_rate([1, 1, 1, 1], [2, 1, 0, 3]) == pytest.approx(2.5 / 4)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1))
def test_win_rates_of_both_directions_sum_to_one(pairs: list[tuple[int, int]]) -> None:
    base, tuned = zip(*pairs, strict=True)
    assert stats.win_rate(base, tuned) + stats.win_rate(tuned, base) == pytest.approx(1)

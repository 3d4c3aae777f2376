"""ddpo.evaluation.stats against closed forms, the normal theory and hand-counted cases."""

import itertools
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
    se = shift.std(ddof=1) / math.sqrt(n)
    assert result["mean"] == pytest.approx(shift.mean())
    # the further end is at a smaller level; one end of a 10,000-resample interval scatters by about
    # 0.027 se around its limit
    further = NormalDist().inv_cdf(1 - 0.025 / (1 + stats.SHORT / n))
    ends = (shift.mean() - result["low"], result["high"] - shift.mean())
    assert min(ends) == pytest.approx(Z * se, abs=0.12 * se)
    assert max(ends) == pytest.approx(further * se, abs=0.12 * se)


def test_interval_of_two_valued_differences_is_the_binomial_one() -> None:
    """40 differences, 10 of them 1: K ones in a resample are Binomial(40, 1/4), and t* rises with
    K."""
    n, p = 40, 0.25
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    few, many = (next(k for k in range(n + 1) if sum(mass[: k + 1]) >= q) for q in (0.025, 0.975))
    se = math.sqrt(p * (1 - p) / (n - 1))
    t = [(k / n - p) / math.sqrt(k / n * (1 - k / n) / (n - 1)) for k in (many, few)]
    differences = np.repeat([1.0, 0.0], [10, 30])
    result = stats.paired(np.zeros(n), differences)
    assert [result["low"], result["high"]] == pytest.approx([p - each * se for each in t])
    alone = stats.Clusters(differences, np.ones(n))
    assert stats.percentile(alone) == (few / n, many / n)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (44, 2.0154)]
)
def test_student_t_is_the_printed_table(degrees: int, expected: float) -> None:
    assert stats.student_t(degrees) == pytest.approx(expected, abs=5e-5)


def test_two_prompts_have_students_interval() -> None:
    """Half of their resamples are of one value, which says nothing of the tails."""
    shift = np.array([0.5, 2.0])
    result = stats.paired(np.zeros(2), shift)
    half = stats.student_t(1) * shift.std(ddof=1) / math.sqrt(2)
    assert (result["low"], result["high"]) == pytest.approx((1.25 - half, 1.25 + half))


def test_the_ends_are_those_of_all_resamples() -> None:
    """Of four prompts all 256 resamples are known, each as often as the others."""
    values, tail = np.array([0.0, 1.0, 2.0, 9.0]), 0.025
    t = []
    for rows in itertools.product(range(4), repeat=4):
        drawn = values[list(rows)]
        error = drawn.std(ddof=1) / 2
        shift = drawn.mean() - values.mean()
        t.append(shift / error if error > 1e-9 else math.copysign(math.inf, shift))
    found = stats.paired(np.zeros(4), values)
    student, error = stats.student_t(3), values.std(ddof=1) / 2
    ends = [np.quantile(t, level, method="inverted_cdf") for level in (tail, 1 - tail)]
    outer = tail / (1 + stats.SHORT / 4)
    if -ends[0] > ends[1]:
        ends[0] = np.quantile(t, outer, method="inverted_cdf")
    else:
        ends[1] = np.quantile(t, 1 - outer, method="inverted_cdf")
    below, above = (end if np.isfinite(end) else math.copysign(student, end) for end in ends)
    assert found["low"] == pytest.approx(3 - above * error)
    assert found["high"] == pytest.approx(3 - below * error)


def coverage(prompts: int, per_prompt: int, trials: int) -> tuple[float, float]:
    """How often the interval over prompts, and that over pairs, holds the true difference 0."""
    rng, held = np.random.default_rng(prompts), np.zeros(2)
    names = [str(i // per_prompt) for i in range(prompts * per_prompt)]
    for _ in range(trials):
        own = rng.exponential(size=prompts) - 1
        x = own.repeat(per_prompt) + 0.5 * rng.normal(size=prompts * per_prompt)
        zero = np.zeros_like(x)
        both = stats.paired(zero, x, names), stats.paired(zero, x)
        held += [each["low"] <= 0 <= each["high"] for each in both]
    return tuple(held / trials)


def test_the_interval_over_prompts_covers_and_that_over_pairs_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight samples of each of 10 prompts that differ: they are no 80 independent pairs."""
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    clustered, unclustered = coverage(10, 8, 400)
    assert 0.92 <= clustered <= 0.98 and unclustered < 0.75


def test_the_error_is_that_of_the_prompts_means() -> None:
    # means 2 and 6 of two prompts: m = 4, s^2 = 8, se = sqrt(8 / 2)
    found = stats.summary([1.0, 3.0, 5.0, 7.0], ["a", "a", "b", "b"])
    assert found == {"mean": 4.0, "se": pytest.approx(2.0), "n": 4}
    # unequal groups, a = (0, 3) and b = (6): m = 3, residuals (3 - 2 * 3) and (6 - 3), each squared
    found = stats.summary([0.0, 3.0, 6.0], ["a", "a", "b"])
    assert found["se"] == pytest.approx(math.sqrt(2 / 1 * (9 + 9)) / 3)


def test_one_value_for_all_samples_of_one_prompt_has_no_interval() -> None:
    """Of one prompt its samples are what was drawn, unless a reward gave one value to all."""
    one = ["x"] * 6
    result = stats.paired([0.3] * 6, [0.7] * 6, one)
    assert result["mean"] == pytest.approx(0.4) and math.isnan(result["low"] + result["high"])
    assert math.isnan(stats.summary([0.7] * 6, one)["se"])
    apart = np.arange(6.0)
    assert stats.paired(np.zeros(6), apart, one) == stats.paired(np.zeros(6), apart)
    assert math.isnan(stats.paired([1.0], [2.0])["low"])


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
    assert stats.paired([1.0, nan, 2.0, 7.0], [2.0, 9.0, 5.0, nan], ["a", "a", "b", "b"]) == full
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

"""Statistics of matched samples: mean and error, a bootstrap over prompts, win rate.

numpy in, floats out. NaN means "no value": it is dropped, in the paired functions together with its
partner. The samples of one prompt resemble each other, so that errors and intervals are those of
prompts, drawn from all prompts that could have been asked: `prompts` names each value's. Where
there is one prompt alone, its samples are what was drawn; where these have one value in common (a
reward that judges all samples of a prompt together), nothing is known of how it would scatter.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
"""Bootstrap resamples: an interval's ends then scatter by about 1 % of its width."""

BLOCK = 1_000_000
"""Numbers drawn at a time in the bootstrap: 8 MB, whatever the number of prompts."""

LEVEL = 0.95
"""Of all intervals."""

SEED = 0
"""Of the resamples: the same numbers give the same interval."""

SHORT = 10.0
"""The longer tail of t* comes out too short, as the skewness of P values underestimates that of
all that could have been drawn: the level of its end is divided by 1 + SHORT / P. Fitted to
simulated evaluations (docs/evaluation.md); with many prompts it is without effect."""

Values = Float[NDArray[np.float64], " n"]


class Clusters(NamedTuple):
    """The values of each prompt: their sum, and how many they are."""

    total: Values
    sizes: Values

    @property
    def mean(self) -> float:
        """Over all values."""
        return float(self.total.sum() / self.sizes.sum())

    @property
    def error(self) -> float:
        """se^2 = P / (P - 1) sum_p (n_p (m_p - m))^2 / (sum_p n_p)^2; of P equal groups s / sqrt(P)
        with s the standard deviation of their means. NaN for fewer than two."""
        number = len(self.total)
        if number < 2:
            return math.nan
        residual = self.total - self.sizes * self.mean
        residual[np.abs(residual) <= 1e-13 * np.abs(self.total)] = 0  # of rounding alone
        scale = math.sqrt(number / (number - 1)) / self.sizes.sum()
        return float(scale * np.linalg.norm(residual))


def summary(x: ArrayLike, prompts: Sequence[str] | None = None) -> dict[str, float]:
    """Mean, standard error and count of the values that are not NaN: {"mean", "se", "n"}.

    The error is that of `Clusters`. The mean of nothing is NaN, and so is the error where there is
    nothing to tell it from. Without `prompts` every value counts for itself.
    """
    values = np.asarray(x, dtype=np.float64).ravel()
    known = ~np.isnan(values)
    n = int(known.sum())
    if not n:
        return {"mean": math.nan, "se": math.nan, "n": n}
    groups = _grouped(values, known, prompts, [values])
    return {"mean": float(values[known].mean()), "se": groups.error if groups else math.nan, "n": n}


def paired(
    base: ArrayLike, tuned: ArrayLike, prompts: Sequence[str] | None = None
) -> dict[str, float]:
    """Mean of tuned - base over pairs, with its 95 % interval: {"mean", "low", "high"}.

    The interval is the studentized bootstrap over prompts (Efron 1981; Hall 1988): of 10,000
    resamples of the prompts with replacement, each gives t* = (m* - m) / se*, and the interval is
    from m - t*(97.5 %) se to m - t*(2.5 %) se; the further of these two ends of t* is taken at the
    smaller level that `SHORT` says. Student's t of P - 1 degrees of freedom takes the place of an
    end that resamples of one value make infinite. Its coverage is measured by
    benchmarks/intervals.py. low and high are NaN for a single pair, and for samples that one value
    was given to; all three without a pair. Raises ValueError when lengths differ.
    """
    b, t = (np.asarray(x, dtype=np.float64).ravel() for x in (base, tuned))
    difference = _differences(b, t)
    known = ~np.isnan(difference)
    if not known.any():
        return dict.fromkeys(("mean", "low", "high"), math.nan)
    mean = float(difference[known].mean())
    groups = _grouped(difference, known, prompts, [b, t])
    if groups is None or len(groups.total) < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan}
    low, high = _interval(groups)
    return {"mean": mean, "low": low, "high": high}


def win_rate(base: ArrayLike, tuned: ArrayLike) -> float:
    """Share of the pairs in which tuned > base, in [0, 1]; a tie counts half; NaN without a pair.

    Raises ValueError when the two have different lengths.
    """
    difference = _differences(*(np.asarray(x, dtype=np.float64).ravel() for x in (base, tuned)))
    known = difference[~np.isnan(difference)]
    return float((np.sign(known) / 2 + 0.5).mean()) if len(known) else math.nan


def percentile(clusters: Clusters) -> tuple[float, float]:
    """The plain percentile bootstrap over the same groups: too narrow for few (to compare with)."""
    means = clusters.mean + _resampled(clusters)[0]
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _grouped(
    values: Values, known: NDArray[np.bool_], prompts: Sequence[str] | None, columns: list[Values]
) -> Clusters | None:
    """By prompts; of a single prompt each sample for itself, or None where all have one value."""
    names = np.arange(len(values)) if prompts is None else np.asarray(prompts)
    if len(names) != len(values):
        raise ValueError(f"{len(values)} values have {len(names)} prompts")
    _, places = np.unique(names[known], return_inverse=True)
    values = values[known]
    if prompts is not None and places.max() == 0:
        if len(values) > 1 and all(len(np.unique(column[known])) == 1 for column in columns):
            return None
        places = np.arange(len(values))
    ones = np.ones_like(values)
    return Clusters(*(np.bincount(places, each).astype(np.float64) for each in (values, ones)))


def _interval(clusters: Clusters) -> tuple[float, float]:
    mean, error = clusters.mean, clusters.error
    if error == 0:
        return mean, mean
    difference, errors = _resampled(clusters)
    degenerate = errors <= 1e-6 * error
    t = difference / np.where(degenerate, 1.0, errors)
    t = np.where(degenerate, np.copysign(np.inf, difference), t)
    number, tail = len(clusters.total), (1 - LEVEL) / 2
    outer = tail / (1 + SHORT / number)
    levels = (outer, tail, 1 - tail, 1 - outer)
    far_below, below, above, far_above = np.quantile(t, levels, method="inverted_cdf")
    below, above = (far_below, above) if -below > above else (below, far_above)
    student = student_t(number - 1)
    below, above = (
        end if np.isfinite(end) else np.copysign(student, end) for end in (below, above)
    )
    return float(mean - above * error), float(mean - below * error)


def _resampled(clusters: Clusters) -> tuple[Values, Values]:
    """m* - m and se* of every resample."""
    number, mean = len(clusters.total), clusters.mean
    residual, count = clusters.total - clusters.sizes * mean, clusters.sizes
    # sums over a resample of these give m* and se*: sum (r - n d)^2 with d = m* - m
    terms = np.stack([residual, count, residual**2, residual * count, count**2], axis=1)
    rng, block = np.random.default_rng(SEED), max(1, BLOCK // number)
    parts = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        parts.append(_times(rng.integers(0, number, (size, number))) @ terms)
    total, counts, squares, products, count_squares = np.concatenate(parts).T
    difference = total / counts
    variance = squares - 2 * difference * products + difference**2 * count_squares
    scale = math.sqrt(number / max(1, number - 1)) / counts
    return difference, scale * np.sqrt(np.maximum(variance, 0))


def _times(
    drawn: Int[NDArray[np.int64], "size number"],
) -> Float[NDArray[np.float64], "size number"]:
    """How often each of the `number` groups was drawn into each resample."""
    size, number = drawn.shape
    flat = drawn + number * np.arange(size)[:, None]
    return np.bincount(flat.ravel(), minlength=size * number).reshape(size, number).astype(float)


def student_t(degrees: int) -> float:
    """The t with P(|T| <= t) = 95 % for a whole number of degrees of freedom, at least 1."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < LEVEL else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _differences(base: Values, tuned: Values) -> Values:
    """tuned - base. Raises ValueError for different lengths."""
    if len(base) != len(tuned):
        raise ValueError(
            f"base has {len(base)} values and tuned {len(tuned)}; they are compared in pairs"
        )
    return tuned - base

"""How varied a column's samples are, and how far they are from another column's, by features.

Features are unit vectors of an image encoder (CLIP), one for each sample.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Features = Float[NDArray[np.float64], "n d"]

SIGMA, SCALE = 10.0, 1000.0
"""Of CMMD: the bandwidth of its kernel, and the factor that makes its values readable."""


def mean_distance(features: Features) -> float:
    """Mean of 1 - cos over all pairs, in [0, 2]; NaN for fewer than two samples."""
    n = len(features)
    if n < 2:
        return float("nan")
    gram = features @ features.T
    return float(1 - (gram.sum() - np.trace(gram)) / (n * (n - 1)))


def vendi(features: Features) -> float:
    """exp of the entropy of the eigenvalues of K / n, K_ij = cos(f_i, f_j) (Friedman and Dieng
    2023, arXiv 2210.02410): the effective number of different samples, from 1 to n."""
    if not len(features):
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(features @ features.T / len(features))
    known = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(known * np.log(known)).sum()))


def cmmd(ours: Features, theirs: Features) -> float:
    """The squared maximum mean discrepancy of CLIP features (Jayasumana et al. 2024, arXiv
    2401.09603), unbiased: 0 on average for one distribution, and then as often below it.

    The kernel is exp(-|x - y|^2 / (2 sigma^2)) with sigma 10 for unit vectors, and the result is
    times 1000. Differs: theirs is the biased estimate, whose terms x = y make it positive for equal
    distributions. NaN for fewer than two samples in either.
    """
    m, n = len(ours), len(theirs)
    if min(m, n) < 2:
        return float("nan")
    inner, outer, across = _kernel(ours, ours), _kernel(theirs, theirs), _kernel(ours, theirs)
    within = (inner.sum() - np.trace(inner)) / (m * (m - 1))
    beyond = (outer.sum() - np.trace(outer)) / (n * (n - 1))
    return float(SCALE * (within + beyond - 2 * across.mean()))


def _kernel(one: Features, other: Features) -> Float[NDArray[np.float64], "m n"]:
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.exp(-np.maximum(squares, 0) / (2 * SIGMA**2))


def diversity(features: Features, prompts: Sequence[str]) -> dict[str, float]:
    """Of one column and set: within a prompt, mean over the prompts of several samples; over all.

    {"distance_within", "vendi_within", "distance", "vendi"}.
    """
    names = np.asarray(prompts)
    groups = [features[names == name] for name in dict.fromkeys(prompts)]
    several = [group for group in groups if len(group) > 1]
    within = {
        "distance_within": [mean_distance(group) for group in several],
        "vendi_within": [vendi(group) for group in several],
    }
    means = {name: float(np.mean(each)) if each else float("nan") for name, each in within.items()}
    return means | {"distance": mean_distance(features), "vendi": vendi(features)}

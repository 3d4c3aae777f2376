"""ddpo.evaluation.spread against closed forms."""

import math

import numpy as np
import pytest

from ddpo.evaluation import spread


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    matrix = np.array(rows, float)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_copies_count_as_one_and_orthogonal_samples_each() -> None:
    """Vendi: n orthogonal vectors are n samples, copies one; two of each of two are two."""
    assert spread.vendi(np.eye(5)) == pytest.approx(5)
    assert spread.vendi(unit((1, 2), (1, 2), (1, 2))) == pytest.approx(1)
    assert spread.vendi(np.eye(2)[[0, 1, 0, 1]]) == pytest.approx(2)
    # two vectors of cosine c: eigenvalues (1 +- c) / 2
    c = 0.6
    p, q = (1 + c) / 2, (1 - c) / 2
    entropy = -(p * math.log(p) + q * math.log(q))
    assert spread.vendi(unit((1, 0), (c, 0.8))) == pytest.approx(math.exp(entropy))


def test_the_mean_distance_is_over_pairs_of_different_samples() -> None:
    # cosines 0, -1 and 0: distances 1, 2 and 1
    assert spread.mean_distance(unit((1, 0), (0, 1), (-1, 0))) == pytest.approx(4 / 3)
    assert math.isnan(spread.mean_distance(np.eye(1)))


def test_cmmd_is_unbiased_and_grows_with_the_distance() -> None:
    """0 on average for one distribution, with both signs; by hand for two points each."""
    rng = np.random.default_rng(0)

    def draw(shift: float) -> np.ndarray:
        x = rng.normal(size=(20, 8)) + shift
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    same = np.array([spread.cmmd(draw(0), draw(0)) for _ in range(400)])
    assert abs(same.mean()) < 4 * same.std() / 20 and (same < 0).any() and (same > 0).any()
    assert spread.cmmd(draw(0), draw(1)) > same.max()

    def kernel(squared: float) -> float:
        return math.exp(-squared / 200)

    ours, theirs = unit((1, 0), (0, 1)), unit((1, 0), (-1, 0))
    across = (kernel(0) + kernel(4) + kernel(2) + kernel(2)) / 4
    expected = 1000 * (kernel(2) + kernel(4) - 2 * across)
    assert spread.cmmd(ours, theirs) == pytest.approx(expected)


def test_diversity_is_within_prompts_and_over_all() -> None:
    """Copies within a prompt, and two prompts that have nothing in common."""
    found = spread.diversity(np.eye(2)[[0, 0, 1, 1]], ["a", "a", "b", "b"])
    assert found["distance_within"] == pytest.approx(0) and found["vendi_within"] == pytest.approx(
        1
    )
    assert found["vendi"] == pytest.approx(2) and found["distance"] == pytest.approx(4 / 6)

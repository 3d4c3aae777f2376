"""The advantage `batch`: compared with all samples of an iteration."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages import EPSILON, mean_of, std_of


def batch(
    reward: Float[Tensor, " B"], keys: Sequence[str], group: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """A = (r - mean) / std over the whole iteration."""
    return (reward - mean_of(reward)) / (std_of(reward) + EPSILON)

"""The advantage `batch`: compared with all samples of an iteration."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages.contract import EPSILON, Stateless, mean_of, std_of


class Batch(Stateless):
    """A = (r - mean) / std over the whole iteration."""

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        present = reward[~reward.isnan()]
        return (reward - mean_of(present)) / (std_of(present) + EPSILON)

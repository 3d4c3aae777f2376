"""DDPO-SF: the score-function policy gradient, REINFORCE over steps (Black et al. 2023)."""

from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import Batch, declare


@declare(separable=True, uniform_over_steps=True, follows_advantage=True, on_policy=True)
def ddpo_sf(logp: Float[Tensor, "B T"], batch: Batch) -> Float[Tensor, ""]:
    """DDPO, score function: one update a rollout, without ratios (arXiv 2305.13301).

    L = mean over samples and steps of -A log p_theta(x_{t-1} | x_t, c)
    """
    return batch.mean(-batch.advantage[:, None] * logp)

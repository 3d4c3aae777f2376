"""RWR: reward-weighted regression on denoising errors (Lee et al. 2023; Black et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import Batch, NonNegativeFloat, UnitFloat, declare


def weights(
    batch: Batch, *, beta: float, percentile: float | None, per_prompt: bool, standardize: bool
) -> Float[Tensor, " B"]:
    """A weight for each sample, from the rewards of the whole iteration; their mean is 1."""
    reward = batch.reward
    compared = batch.group[:, None] == batch.all_group
    compared = compared if per_prompt else torch.ones_like(compared)
    count = compared.sum(1)
    everyone = batch.all_reward.expand(compared.shape)
    if percentile is not None:
        ranked = torch.where(compared, everyone, torch.nan)
        threshold = ranked.nanquantile(percentile, dim=1)
        kept = compared & (everyone >= threshold[:, None])
        return (reward >= threshold) * count / kept.sum(1)
    scale = torch.full_like(reward, beta)
    if standardize:
        mean = (compared * everyone).sum(1) / count
        variance = (compared * (everyone - mean[:, None])).square().sum(1) / count
        scale = beta / (variance.sqrt() + 1e-6)
    exponents = torch.where(compared, scale[:, None] * everyone, -torch.inf)
    highest = exponents.max(1).values  # taken out of the softmax, which would overflow
    return count * (scale * reward - highest).exp() / (exponents - highest[:, None]).exp().sum(1)


def effective_sample_size(batch: Batch, **options: float | bool | None) -> dict[str, float]:
    """(sum w)^2 / sum w^2: how many equally weighted images the weighted ones are worth."""
    w = weights(batch, **options)  # pyright: ignore[reportArgumentType]
    return {"ess": (w.sum().square() / w.square().sum()).item()}


@declare(separable=True, denoising_errors=True, report=effective_sample_size)
def rwr(
    errors: Float[Tensor, "B K"],
    batch: Batch,
    *,
    beta: NonNegativeFloat = 0.2,
    percentile: UnitFloat | None = None,
    per_prompt: bool = True,
    standardize: bool = False,
) -> Float[Tensor, ""]:
    """RWR: the denoising loss on the model's own images, weighted by exp(beta r).

    w_i = exp(beta r_i) / mean over j of exp(beta r_j)          dense
    w_i = [r_i >= C] / share of such images                     sparse, at a `percentile` C of r
    L   = mean over samples, timesteps t and noise eps of w_i |eps - eps_theta(x_t, t, c)|^2 / D

    `beta` is the inverse temperature, in 1 / reward: 0.2 in the paper, on raw rewards. Its effect
    depends on the reward's scale; see objective/ess, the effective number of images that a rollout
    is worth.
    `percentile` in [0, 1) takes the sparse weights; 0.9 in the paper. null: the dense ones.
    `per_prompt` compares the images of one prompt; false: all images of the iteration.
    `standardize` divides rewards by their standard deviation first, so that beta means the same for
    all rewards.

    Any sampler will do, deterministic ones too: only x_0 is used. Differs: the paper refits for 400
    updates on 10,000 images; here that is trainer.epochs and trainer.minibatches.
    """
    w = weights(
        batch, beta=beta, percentile=percentile, per_prompt=per_prompt, standardize=standardize
    )
    return batch.mean(w[:, None] * errors)

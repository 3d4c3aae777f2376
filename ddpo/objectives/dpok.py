"""DPOK: policy gradient with the KL to the pretrained model (Fan et al. 2023, arXiv 2305.16381)."""

from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import Batch, NonNegativeFloat, PositiveFloat, declare


@declare(separable=True, needs=("kl",), trust_region="clip_range")
def dpok(
    logp: Float[Tensor, "B T"],
    batch: Batch,
    *,
    clip_range: PositiveFloat = 1e-4,
    reward_weight: PositiveFloat = 100.0,
    kl_coef: NonNegativeFloat = 0.01,
) -> Float[Tensor, ""]:
    """DPOK: a clipped policy gradient that pays for every step's distance to the pretrained model.

    rho_t = p_theta(x_{t-1} | x_t, c) / p_old(x_{t-1} | x_t, c)
    KL_t  = KL(p_theta(. | x_t, c) || p_ref(. | x_t, c)), closed form
    L = mean over samples and steps of
        -reward_weight A clip(rho_t, 1 - clip_range, 1 + clip_range) + kl_coef KL_t

    The clip is a plain clamp: outside the range a sample has no gradient in either direction, also
    where the ratio moved the wrong way.

    `clip_range` is in units of `logp`: 1e-4 belongs to D = 16,384; for D dimensions take
    1e-4 * 16,384 / D.
    `reward_weight` and `kl_coef` are the released code's 100 and 0.01; only their quotient matters
    to AdamW. KL_t is a mean over latent dimensions, like `logp`.

    Differs: the baseline is that of `advantage:`; DPOK fits a value function V(x_t, t, c) to the
    rewards.
    """
    ratio = (logp - batch.logp_old).exp().clamp(1 - clip_range, 1 + clip_range)
    return batch.mean(-reward_weight * batch.advantage[:, None] * ratio + kl_coef * batch.kl)

"""GRPO on steps (Shao et al. 2024; DanceGRPO, arXiv 2505.07818; Flow-GRPO, arXiv 2505.05470)."""

from jaxtyping import Float
from torch import Tensor, maximum

from ddpo.objectives import Batch, PositiveFloat, declare


@declare(
    separable=True,
    compares=True,
    trust_region="clip_range",
    needs=lambda ratio_norm, **_: ("kl_old", "std") if ratio_norm else (),
    follows_advantage=True,
    uniform_over_steps=lambda ratio_norm, **_: not ratio_norm,
)
def grpo(
    logp: Float[Tensor, "B T"],
    batch: Batch,
    *,
    clip_range: PositiveFloat = 1e-4,
    clip_range_high: PositiveFloat | None = None,
    ratio_norm: bool = False,
) -> Float[Tensor, ""]:
    """GRPO: clipped per-step ratios, with advantages that compare the images of one prompt.

    rho_t = p_theta(x_{t-1} | x_t, c) / p_old(x_{t-1} | x_t, c)
    L = mean over samples and steps of
        max(-A rho_t, -A clip(rho_t, 1 - clip_range, 1 + clip_range_high))

    A comes from `advantage: {name: group}`: r less the mean of its group, over the group's standard
    deviation (DanceGRPO), over that of all images (`std: global`, Flow-GRPO) or over nothing
    (`std: none`). The KL to the pretrained model is `objective.kl_weight`: the exact one of the
    Gaussian steps per latent dimension, |mu - mu_ref|^2 / (2 std^2 D), where std^2 has the step
    length in it. Flow-GRPO's released code leaves the step length out, so its beta of 0.04 does not
    carry over.

    `clip_range` is in units of `logp`: 1e-4 belongs to D = 16,384; for D dimensions take
    1e-4 * 16,384 / D.
    `clip_range_high` is the upper end where it should be wider than the lower (Yu et al. 2025);
    null: the same.
    `ratio_norm` takes std_t (log rho_t + KL_t(theta || old)) for the log-ratio, in which the mean
    shift to ratios below 1 and the factor 1 / std_t of low noise are gone (GRPO-Guard, Wang et al.
    2025): the clip is then as tight upwards as downwards, and at all steps alike. `clip_range` is
    multiplied by the steps' std, too (0.2 to 0.7 for flow_sde). Differs: GRPO-Guard's reweighting
    of the steps' gradients is left out; metrics show the plain ratio.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    log_ratio = logp - batch.logp_old
    if ratio_norm:
        log_ratio = batch.matrix("std") * (log_ratio + batch.matrix("kl_old"))
    ratio = log_ratio.exp()
    advantage = batch.advantage[:, None]
    clipped = ratio.clamp(1 - clip_range, 1 + high)
    return batch.mean(maximum(-advantage * ratio, -advantage * clipped))

"""P3O: pairwise proximal policy optimization of trajectories (Wu et al. 2023, arXiv 2310.00212)."""

import torch
from jaxtyping import Float
from torch import Tensor, maximum

from ddpo.objectives import AtLeastOne, Batch, NonNegativeFloat, PositiveFloat, declare


@declare(uniform_over_steps=True, needs=("logp_ref",), compares=True, trust_region="clip_range")
def p3o(
    logp: Float[Tensor, "B T"],
    batch: Batch,
    *,
    kl_coef: NonNegativeFloat = 0.05,
    clip_range: PositiveFloat = 1e-4,
    joint: bool = True,
    max_weight: AtLeastOne = 10.0,
) -> Float[Tensor, ""]:
    """P3O: the policy gradient of reward differences, blind to a shift of a prompt's rewards.

    lr(y)  = mean over steps of log p_theta - log p_ref       for y = 1, 2, two images of a prompt
    q      = r(1) - r(2) - kl_coef (lr(1) - lr(2))            held fixed
    w      = exp(lr(1) - lr_old(1) + lr(2) - lr_old(2)), clamped to [1 / max_weight, max_weight],
           held fixed
    joint    (V2): with d = lr(1) - lr(2),    L = mean over pairs of
             1/2 max(-q w d, -q w clip(d, d_old +- clip_range))
    separate (V1): s(1) = +1, s(2) = -1,      L = mean over pairs of
             1/2 sum over y of max(-s q w lr(y), -s q w clip(lr(y), lr_old(y) +- clip_range)),
             clipped step by step

    `joint` keeps the log-odds of a pair in a trust region, whatever both have in common; the paper
    finds it the more stable, with the better reward at equal KL. `joint: false` stops each image by
    itself.
    `kl_coef` weighs the KL to the pretrained model in units of reward per nat of lr; q = -kl_coef
    times PRDP's error at beta = kl_coef.
    `clip_range` is in units of `logp`. The paper's 0.2 is for a sum over the tokens of a text.
    `max_weight` bounds the importance weight w from both sides; 1 leaves it out.

    Differs: means over steps and latent dimensions where the paper adds up tokens; all pairs of a
    prompt's images where it draws two.
    """
    first, second = batch.comparisons(ties=True)
    chosen = batch.stochastic
    per_step, old = (logp - batch.logp_ref)[:, chosen], (batch.logp_old - batch.logp_ref)[:, chosen]
    ratio, ratio_old = per_step.mean(1), old.mean(1)
    with torch.no_grad():
        q = batch.reward[first] - batch.reward[second] - kl_coef * (ratio[first] - ratio[second])
        moved = ratio - ratio_old
        bound = torch.tensor(max_weight, dtype=logp.dtype, device=logp.device).log()
        q = q * (moved[first] + moved[second]).clamp(-bound, bound).exp()
    if joint:
        difference, before = ratio[first] - ratio[second], ratio_old[first] - ratio_old[second]
        clipped = difference.clamp(before - clip_range, before + clip_range)
        losses = maximum(-q * difference, -q * clipped)
    else:
        clipped = per_step.clamp(old - clip_range, old + clip_range).mean(1)
        losses = maximum(-q * ratio[first], -q * clipped[first])
        losses = losses + maximum(q * ratio[second], q * clipped[second])
    return 0.5 * losses.sum() / max(len(losses), 1)

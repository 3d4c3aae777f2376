"""PRDP: proximal reward difference prediction (Deng et al. 2024, arXiv 2402.08714)."""

from jaxtyping import Float
from torch import Tensor, maximum

from ddpo.objectives import Batch, PositiveFloat, declare


@declare(uniform_over_steps=True, needs=("logp_ref",), compares=True, trust_region="clip_range")
def prdp(
    logp: Float[Tensor, "B T"],
    batch: Batch,
    *,
    beta: PositiveFloat = 3e-5,
    clip_range: PositiveFloat = 1e-6,
    sum_steps: bool = False,
    keep_ties: bool = False,
) -> Float[Tensor, ""]:
    """PRDP: the log-ratios of two images of a prompt predict the difference of their rewards.

    rhat_t = log p_theta(x_{t-1} | x_t, c) - log p_ref(x_{t-1} | x_t, c)
    rhat   = mean over steps of rhat_t, or their sum
    l      = (rhat(a) - rhat(b) - (r(a) - r(b)) / beta)^2
    l_clip = the same with each rhat_t clipped to the old policy's, +- clip_range
    L      = mean over all pairs (a, b) of one prompt of max(l, l_clip)

    At the optimum of E[r] - beta KL(pi || pi_ref), and only there, L is 0 over all pairs (the
    paper's theorem, for sums over steps and dimensions). sqrt(L) * beta is the root mean square
    error in units of reward.

    `beta` is the weight of the KL to the pretrained model: larger stays closer. Its unit is reward
    per nat of rhat: with means over T steps and D dimensions, the weight of the exact KL in nats is
    beta / (T D). The paper has 3e-5 at small scale and 3e-6 or 3e-5 at large scale.
    `sum_steps` adds the steps up, as in the paper's theorem: that weight is then beta / D.
    `clip_range` is in units of `logp`: 1e-6 (small scale) or 1e-4 (large scale) at D = 16,384;
    for D dimensions take that times 16,384 / D. It acts from the second optimizer step after a
    rollout on: at the first one rhat is the old policy's.
    `keep_ties` also regresses pairs of equal reward to 0; the paper's listing leaves them out.

    Differs: the paper does not say whether log-probabilities are summed over latent dimensions;
    here they are means. Groups of unequal size (after NaN rewards) count by their pairs.
    """
    better, worse = batch.comparisons(ties=keep_ties)
    rhat, rhat_old = logp - batch.logp_ref, batch.logp_old - batch.logp_ref
    clipped = rhat.clamp(rhat_old - clip_range, rhat_old + clip_range)
    target = (batch.reward[better] - batch.reward[worse]) / beta

    def error(per_step: Float[Tensor, "B T"]) -> Float[Tensor, " P"]:
        chosen = per_step[:, batch.stochastic]
        total = chosen.sum(1) if sum_steps else chosen.mean(1)
        return total[better] - total[worse] - target

    losses = maximum(error(rhat).square(), error(clipped).square())
    return losses.sum() / max(len(losses), 1)

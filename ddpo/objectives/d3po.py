"""D3PO: direct preference optimization of denoising steps (Yang et al. 2023, arXiv 2311.13231)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ddpo.objectives import Batch, PositiveFloat, declare


@declare(needs=("logp_ref",), compares=True, trust_region="clip_range")
def d3po(
    logp: Float[Tensor, "B T"],
    batch: Batch,
    *,
    beta: PositiveFloat = 0.1,
    clip_range: PositiveFloat = 0.1,
) -> Float[Tensor, ""]:
    """D3PO: every step of the better image is preferred over the same step of the worse one.

    lr_t = log of clip(p_theta / p_ref, 1 - clip_range, 1 + clip_range) of the step x_{t-1} | x_t, c
    L = mean over pairs of a prompt's images and steps of
        -log sigmoid(beta (lr_t(better) - lr_t(worse)))

    `beta` is the inverse temperature of the Bradley-Terry model, per nat of lr_t; 0.1 in the
    released code.
    `clip_range` bounds the distance to the pretrained model, in units of `logp`; 0.1 in the
    released code. The distance to the old policy is bounded by nothing else, so it stands for the
    trust region too.

    Differs: better and worse are ranked by the reward, in all pairs of a prompt's images, where the
    paper asks people; equal rewards make no pair.
    """
    better, worse = batch.comparisons()
    lowest, highest = torch.log1p(logp.new_tensor([-min(clip_range, 1.0), clip_range]))
    ratio = (logp - batch.logp_ref).clamp(lowest, highest)
    return batch.mean(-logsigmoid(beta * (ratio[better] - ratio[worse])))

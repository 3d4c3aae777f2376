"""DRaFT: the gradient of the reward itself (Clark et al. 2023, arXiv 2309.17400); relatives."""

from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import (
    Batch,
    Finite,
    NonNegativeInt,
    PositiveInt,
    Replay,
    declare,
)


def replay(
    *,
    last_steps: int | tuple[int, int],
    renoisings: int,
    to_x0: bool,
    target: float | None,
) -> Replay:
    """What the options say of the replay."""
    pair = (last_steps, last_steps) if isinstance(last_steps, int) else last_steps
    return Replay(pair, renoisings, to_x0)


@declare(separable=True, replay=replay)
def draft(
    rewards: Float[Tensor, "B K"],
    batch: Batch,
    *,
    last_steps: PositiveInt | tuple[PositiveInt, PositiveInt] = 1,
    renoisings: NonNegativeInt = 0,
    to_x0: bool = False,
    target: Finite | None = None,
) -> Float[Tensor, ""]:
    """DRaFT and relatives: ascend a differentiable reward through the last denoising steps.

    x_0 = the last K steps from the stored x_K, each a function of the weights and of its noise
    L   = mean over samples (and re-noisings) of -r(decode(x_0), c)      or of |r - target|

    | method                                 | options                                    |
    | -------------------------------------- | ------------------------------------------ |
    | DRaFT-K (Clark et al. 2023)            | last_steps: K                              |
    | DRaFT, ReFL's whole chain              | last_steps: sampler.num_steps              |
    | DRaFT-LV                               | last_steps: 1, renoisings: 2               |
    | AlignProp (Prabhudesai et al. 2023)    | last_steps: [1, sampler.num_steps]         |
    | ReFL (Xu et al. 2023)                  | last_steps: [1, 10] of 40, to_x0: true     |

    `last_steps` is K; a pair [least, most] draws K uniformly between them, both included, for each
    pass over the images: AlignProp's randomized truncation (arXiv 2310.03739).
    `renoisings` is the n of DRaFT-LV, usually 2: x_0 is noised n times to the level before the last
    K steps, these are taken again, and the gradients are averaged, which lowers their variance.
    `to_x0` goes from the state before the last K steps right to the predicted x_0, in one
    differentiable step: ReFL (arXiv 2304.05977).
    `target` takes |r - target| for -r, as AlignProp does with an aesthetic score of 10: the push
    ends there.

    Rewards need a gradient (`differentiable = True`); others may judge, or gate with weight 0. A
    gated image takes no part in the update. The advantage plays no part.

    Differs: all K of a pass are one draw, where AlignProp's code draws anew at each step; the state
    before the last K steps is a constant, where it only detaches the network's output. ReFL's
    released code adds the pretraining loss; here kl_weight does its work.
    """
    return batch.mean(-rewards if target is None else (rewards - target).abs())

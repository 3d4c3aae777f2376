"""DiffusionNFT: reinforcement on the forward process (Zheng et al. 2025, arXiv 2509.16117)."""

from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import (
    Batch,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    UnitFloat,
    declare,
)

SMALLEST_WEIGHT = 1e-5
"""Errors in x_0 below it are divided by it."""


def kept_share(
    iteration: int, *, old_rate: float, old_start: int, old_most: float, **_: object
) -> float:
    """eta_i = min(old_rate * (i - old_start), old_most), and 0 before: of the old policy."""
    return min(max(old_rate * (iteration - old_start), 0.0), old_most)


def matrices(*, reference_weight: float, **_: object) -> tuple[str, ...]:
    """Those of the reference only where it weighs something."""
    reference = ("errors_ref", "cross_ref") if reference_weight else ()
    return ("errors_old", "cross_old", "absolute_plus", "absolute_minus", "x0_scale", *reference)


@declare(
    separable=True,
    denoising_errors=True,
    needs=matrices,
    mixes="beta",
    old_policy=kept_share,
)
def nft(
    errors: Float[Tensor, "B K"],
    batch: Batch,
    *,
    beta: PositiveFloat = 1.0,
    advantage_scale: PositiveFloat = 5.0,
    adaptive: bool = True,
    reference_weight: NonNegativeFloat = 1e-4,
    old_rate: NonNegativeFloat = 0.001,
    old_start: NonNegativeInt = 0,
    old_most: UnitFloat = 0.5,
) -> Float[Tensor, ""]:
    """DiffusionNFT: towards what made good images, away from what made bad ones.

    v_+ = (1 - beta) v_old + beta v_theta,    v_- = (1 + beta) v_old - beta v_theta
    p   = 1/2 + 1/2 clip(A / advantage_scale, -1, 1)            how likely an image is optimal
    L   = mean over images, t and eps of (advantage_scale / beta)
          [p w_+ |x_+ - x_0|^2 + (1 - p) w_- |x_- - x_0|^2] / D
          + reference_weight |v_theta - v_ref|^2 / D

    with x_+ the x_0 that v_+ predicts from x_t, and w_+ = 1 / (mean |x_+ - x_0|), a constant for
    the gradient. With residuals r = v_theta - v and r_old = v_old - v, v being what the network
    should predict, |v_+ - v|^2 is a sum of |r|^2, <r, r_old> and |r_old|^2; so this is a function
    of such products alone, whatever the network predicts.

    Images are drawn by the old policy, theta_old <- eta_i theta_old + (1 - eta_i) theta after
    iteration i. Any sampler will do, deterministic ones too. The paper has no guidance
    (sampler.guidance_scale 1), and `advantage: {name: group, std: global}`.

    `beta` is the strength of the mixture, 1 or 0.1 in the paper.
    `advantage_scale` is the advantage that makes an image surely optimal, 5 in the released code.
    `adaptive` divides by the error in x_0; false: w = 1.
    `reference_weight` is of the distance to the pretrained model in what the network predicts.
    `old_rate`, `old_start` and `old_most` make up eta_i = min(old_rate (i - old_start), old_most),
    0 up to `old_start`: (0.001, 0, 0.5) or (0.0075, 75, 0.999) in the paper, with i in iterations.
    `old_rate` 0 keeps nothing of the old policy: on-policy, which the paper found to collapse.

    Differs: the images of a prompt share their draws of t and eps, and t is drawn as the model's
    schedule has it.
    """
    cross, old = batch.matrix("cross_old"), batch.matrix("errors_old")
    scale = batch.matrix("x0_scale")

    def branch(of_old: float, of_new: float, absolute: str) -> Float[Tensor, "B K"]:
        """w |x - x_0|^2 / D for the prediction of_old v_old + of_new v_theta."""
        squared = of_old**2 * old + 2 * of_old * of_new * cross + of_new**2 * errors
        if not adaptive:
            return scale.square() * squared
        size = (scale * batch.matrix(absolute)).clamp(min=SMALLEST_WEIGHT)
        return scale.square() * squared / size

    optimal = 0.5 + 0.5 * (batch.advantage[:, None] / advantage_scale).clamp(-1, 1)
    towards = optimal * branch(1 - beta, beta, "absolute_plus")
    away = (1 - optimal) * branch(1 + beta, -beta, "absolute_minus")
    loss = batch.mean(towards + away) * (advantage_scale / beta)
    if not reference_weight:
        return loss
    apart = errors - 2 * batch.matrix("cross_ref") + batch.errors_ref
    return loss + reference_weight * batch.mean(apart)

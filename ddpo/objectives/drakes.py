"""DRAKES: the reward's gradient through discrete diffusion (Wang et al. 2024, arXiv 2410.13643)."""

from jaxtyping import Float
from torch import Tensor

from ddpo.objectives import (
    Batch,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Replay,
    declare,
)


def replay(
    *,
    alpha: float,
    last_steps: int,
    temperature: float,
    straight_through: bool,
    whole_path: bool,
) -> Replay:
    """What the options say of the replay."""
    return Replay(
        (last_steps, last_steps),
        temperature=temperature,
        straight_through=straight_through,
        kl_in_nats=True,
        whole_path=whole_path,
    )


def needs(*, alpha: float, **others: object) -> tuple[str, ...]:
    """Nothing of the reference without a KL."""
    return ("kl",) if alpha else ()


@declare(separable=True, needs=needs, replay=replay)
def drakes(
    rewards: Float[Tensor, "B K"],
    batch: Batch,
    *,
    alpha: NonNegativeFloat = 0.03,
    last_steps: PositiveInt = 8,
    temperature: PositiveFloat = 0.1,
    straight_through: bool = False,
    whole_path: bool = False,
) -> Float[Tensor, ""]:
    """L = mean over samples of -r(x_0) + alpha KL(path || path of the pretrained model).

    KL = sum over steps from t to s and masked places of (t - s) / t KL(letters || pretrained ones),
    in nats. The steps before the last K are as they were sampled. In those, the letter of a place
    that is revealed is

        softmax((log p + Gumbel noise) / temperature),

    with the rollout's noise; which places are revealed is drawn from the schedule and does not
    depend on the network. At the end the likeliest letters are scored, with the derivative of the
    softmax. The optimum of the exact objective ends in exp(r / alpha) p_pretrained.

    `alpha` weighs the KL: in units of the reward per nat. `last_steps` is K. `temperature` is of
    the softmax: high ones blur and are biased, low ones are noisy (docs/sequences.md shows both).
    `straight_through` hands the likeliest letter on to the next step, with the derivative of the
    softmax; false: the softmax itself. `whole_path` counts the KL of the steps before the last K
    too, at their sampled states; false: that of the last K alone, which takes half the time.

    Rewards need a gradient (`differentiable = True`); others may judge, or gate with weight 0.

    Differs: the released code multiplies its KL by the weight of letters that are already there
    (the copy flag), which leaves nearly nothing of it at hard states, divides by the share of masks
    and never multiplies by the length of a step; this is the formula of the paper, so alpha means
    something else. The paper's soft step mixes the mask in as one more letter.
    """
    return batch.mean(alpha * batch.kl - rewards if alpha else -rewards)

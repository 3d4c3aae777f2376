"""Which prompts, steps and samples an iteration trains on."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.parallel.seeds import Purpose, generator
from ddpo.parallel.sizes import Sizes
from ddpo.prompts import Prompt, PromptSet, Share, turn


def draw(prompts: PromptSet, sizes: Sizes, seed: int, iteration: int) -> list[Prompt]:
    """The prompts of an iteration (from 0), `samples_per_prompt` times each.

    They are the next ones of an endless series of passes over the set, each pass in an order of its
    own. A prompt that comes twice, where one pass ends and the next begins or in a set smaller than
    an iteration, makes two groups. The sets of a mixture take turns by their weights, and each has
    passes of its own.
    """
    shares = prompts.shares or (Share(prompts.name, 1.0, tuple(range(len(prompts)))),)
    weights = [share.weight for share in shares]
    first, drawn = iteration * sizes.prompts_per_iteration, list[Prompt]()
    orders: dict[tuple[int, int], list[int]] = {}
    for position in range(first, first + sizes.prompts_per_iteration):
        own, count = turn(position, weights)
        numbers = shares[own].numbers
        around, place = divmod(count, len(numbers))
        if (own, around) not in orders:
            # without its number the first set of a mixture comes in the order that it has alone
            noise = generator(Purpose.PROMPTS, seed, around, *([own] if own else []))
            orders[own, around] = torch.randperm(len(numbers), generator=noise).tolist()
        number = numbers[orders[own, around][place]]
        drawn.append(prompts.drawn(number, generator(Purpose.VARIATIONS, seed, position)))
    return [prompt for prompt in drawn for _ in range(sizes.samples_per_prompt)]


@dataclass(frozen=True)
class Subset:
    """Which of the stochastic steps are trained on; all of them are sampled.

    fraction   a random share of them, drawn anew each iteration (DanceGRPO: 0.6)
    window     [first, end) of the sampling order, 0 the noisiest (MixGRPO)
    drop_last  this many steps at the end, whose small std makes log-probabilities steep
    """

    fraction: float = 1.0
    window: tuple[int, int] | None = None
    drop_last: int = 0

    def __call__(
        self, stochastic: Bool[Tensor, " T"], noise: torch.Generator
    ) -> Bool[Tensor, " T"]:
        """The `stochastic` columns that are trained on.

        There is none where the window or drop_last leave none.
        """
        first, end = self.window or (0, len(stochastic))
        end = min(end, len(stochastic) - self.drop_last)
        places = [i for i in stochastic.nonzero().flatten().tolist() if first <= i < end]
        count = math.ceil(self.fraction * len(places) - 1e-9)
        chosen = torch.zeros_like(stochastic)
        chosen[
            [places[i] for i in torch.randperm(len(places), generator=noise)[:count].tolist()]
        ] = True
        return chosen


@dataclass(frozen=True)
class Columns:
    """Which columns of a rollout's matrix are scored in the update, and under which guidance.

    subset          the denoising steps that are trained on, for objectives on log-probabilities
    draws           (timestep, noise) pairs per image and pass, for objectives on denoising errors
    window          part of the noise schedule that their timesteps are drawn from
    guidance_scale  None: the sampler's, that of the policy that drew the images
    """

    subset: Subset = field(default_factory=Subset)
    draws: int = 1
    window: tuple[float, float] = (0.0, 1.0)
    guidance_scale: float | None = None


def extremes(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], keep: int
) -> Bool[Tensor, " B"]:
    """The k best and k worst samples of each group: the surest rewards (Shen & Zhang 2024)."""
    chosen = torch.zeros_like(reward, dtype=torch.bool)
    for g in group.unique():
        rows = (group == g).nonzero().flatten()
        ranked = rows[reward[rows].argsort(stable=True)]
        chosen[ranked[:keep]] = chosen[ranked[-keep:]] = True
    return chosen

"""Weights of the rewards: one policy for all their mixtures."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.errors import UserError, nearest
from ddpo.plugins.ranges import PositiveInt
from ddpo.prompts import Prompt
from ddpo.tastes import Known

SHIFT = 0.5
"""Added to each weight that the network is told.

The network normalizes a taste's projection p(u) to one length. The projections of w itself begin at
right angles, and a mixture of two would be told as loudly as one reward alone in each of both: what
both tastes have learned in common counts 1.4 times half-way, so that a mixture may get more of a
reward than its own corner. With u = w + 1/2 that is at most 1.12 times.
"""


class weights:
    """A taste is a vector of reward weights w >= 0 that add up to 1, and the reward their mixture.

    r(x) = sum over rewards k of w_k weight_k r_k(x), with the configuration's weight_k, which bring
    the rewards to one scale. Each prompt of an iteration gets a w, and its samples, which share it,
    are compared among themselves (PPD's synthetic users, arXiv 2501.06655 section 5.1, with any
    objective that samples).

    `levels` is the number of steps from 0 to 1 of a weight: with 4 they are 0, 0.25, 0.5, 0.75 and
    1. All mixtures of such weights are equally likely.
    """

    asks: ClassVar[str] = "weights"

    def __init__(self, known: Known, *, levels: PositiveInt = 4) -> None:
        self.rewards, self.levels = list(known.rewards), levels
        if len(self.rewards) < 2:
            raise UserError(
                f"model.taste: weights mix rewards, and there is only {', '.join(self.rewards)}; "
                "give rewards another one"
            )
        self.shape = (1, len(self.rewards))

    def of(self, told: Any) -> Float[Tensor, "1 R"]:
        if not isinstance(told, Mapping):
            raise UserError(f"--weights: {told!r} is no mapping; write {{{self.rewards[0]}: 1}}")
        for name, value in told.items():
            if name not in self.rewards:
                raise UserError(f"--weights: no reward is called {name!r}{self._near(name)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise UserError(f"--weights: {name}: {value!r} is no number of 0 or more")
        total = sum(told.values())
        if not abs(total - 1) < 1e-6:
            raise UserError(f"--weights: they add up to {total:g}; let them add up to 1")
        return _told([float(told.get(name, 0)) for name in self.rewards])

    def _near(self, name: Any) -> str:
        return nearest(str(name), self.rewards)

    def drawn(self, prompt: Prompt, noise: torch.Generator) -> Prompt:
        # every way to place the bars between `levels` stars is one mixture
        bars = len(self.rewards) - 1
        places = torch.randperm(self.levels + bars, generator=noise)[:bars].sort().values.tolist()
        ends = [-1, *places, self.levels + bars]
        stars = [end - begin - 1 for begin, end in pairwise(ends)]
        return self._mixed(prompt, [count / self.levels for count in stars])

    def shown(self, prompt: Prompt) -> Prompt:
        """With equal weights."""
        return self._mixed(prompt, [1 / len(self.rewards)] * len(self.rewards))

    def _mixed(self, prompt: Prompt, values: list[float]) -> Prompt:
        mixture = dict(zip(self.rewards, values, strict=True))
        words = ", ".join(f"{name} {value:.3g}" for name, value in mixture.items())
        key = f"{prompt.key} | {words}"
        return replace(prompt, key=key, taste=_told(values), weights=mixture)


def _told(values: list[float]) -> Float[Tensor, "1 R"]:
    return torch.tensor([values]) + SHIFT

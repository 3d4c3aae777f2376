"""A window of stochastic steps in an otherwise deterministic sampler (MixGRPO)."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool
from torch import Tensor

from ddpo.errors import UserError
from ddpo.samplers._gaussian import Steps


@dataclass(frozen=True)
class Window:
    """Which steps have noise in an iteration (MixGRPO, Li et al. 2025, arXiv 2507.21802).

    size           steps inside, of those that have a density
    start          the first of them in the first iteration, counted from 0, the noisiest
    stride, every  the window moves by `stride` steps after `every` iterations; behind the last
                   place comes the first
    deterministic  the same steps without noise: what is done outside
    """

    size: int
    start: int
    stride: int
    every: int
    deterministic: Steps

    def check(self, steps: Steps) -> None:
        """Raises UserError where the window does not fit into these steps."""
        places = self._places(steps)
        if self.size > len(steps):
            raise UserError(
                f"sampler.sde_window.size: {self.size} is more than the {len(steps)} steps of "
                "sampler.num_steps"
            )
        if self.start >= places:
            raise UserError(
                f"sampler.sde_window.start: {self.start} leaves no {self.size} steps with a "
                f"density; take {places - 1} or less"
            )

    def _places(self, steps: Steps) -> int:
        return max(int(steps.stochastic.sum()) - self.size, 0) + 1

    def inside(self, steps: Steps, iteration: int) -> Bool[Tensor, " T"]:
        """The steps of the window in an iteration, counted from 0."""
        first = (self.start + self.stride * (iteration // self.every)) % self._places(steps)
        chosen = steps.stochastic.nonzero().flatten()[first : first + self.size]
        inside = torch.zeros_like(steps.stochastic)
        inside[chosen] = True
        return inside

    def at(self, steps: Steps, iteration: int) -> Steps:
        """`steps` with noise in the window only; as they are where it holds all that have any."""
        inside = self.inside(steps, iteration)
        tables = {
            field.name: torch.where(
                inside, getattr(steps, field.name), getattr(self.deterministic, field.name)
            )
            for field in fields(steps)
        }
        return Steps(**tables)

    def to(self, device: torch.device) -> "Window":
        """With its steps on that device."""
        return Window(self.size, self.start, self.stride, self.every, self.deterministic.to(device))

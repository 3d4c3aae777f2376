"""Denoising errors of the images, at timesteps and noise of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.parallel.seeds import generator
from ddpo.parallel.transfer import to_device
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory

Latents = Float[Tensor, "N C H W"]

OTHERS = {"ref": "base", "old": "old"}
"""Whose residuals there may be besides the present ones: name in matrices -> name of weights."""


@dataclass
class DenoisingErrors:
    """Columns are draws of (timestep, noise): `errors`, and what others make of the same draws.

    error = |target - output|^2 / D, in what the network predicts (noise, v, x_0 or a velocity), of
    x_0 noised to timestep t

    needs  of ddpo.objectives.MATRICES: the reference's and the old policy's errors, products of
           their residuals with the present ones, and so on
    mixes  b of absolute_plus and absolute_minus
    keys   one for each row; rows of one group share theirs, so that a pair is compared on the same
           draws
    draws  columns, each with a timestep of its own, as the model's schedule draws them
    window  part of the schedule that timesteps are drawn from, from 0, the least noise, to 1
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    keys: Sequence[tuple[int, ...]]
    draws: int
    needs: tuple[str, ...] = ()
    mixes: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    argument: ClassVar[str] = "errors"

    @property
    def names(self) -> tuple[str, ...]:
        return ("errors", *self.needs)

    def columns(self, batch: Batch) -> list[int]:
        return list(range(self.draws))

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        timesteps, noise = self._draw(rows.tolist(), columns.tolist())
        x0 = self.trajectory.latents[to_device(rows, self.policy.device), -1]
        x, target = self.policy.schedule.noised(x0, noise, timesteps)
        prompts = [self.trajectory.prompts[row] for row in rows.tolist()]

        def residual() -> Latents:
            condition = self.sampler.condition(self.policy, prompts)
            output = self.policy.predict(x, timesteps, condition, self.sampler.guidance_scale)
            return output - target

        present = residual()
        matrices = {"errors": _product(present, present)}
        for name, weights in OTHERS.items():
            if {f"errors_{name}", f"cross_{name}"} & set(self.needs):
                with torch.no_grad(), self.policy.weights(weights):
                    other = residual()
                matrices[f"errors_{name}"] = _product(other, other)
                matrices[f"cross_{name}"] = _product(present, other)
                if name == "old":
                    matrices |= self._mixed(present.detach(), other)
        if "x0_scale" in self.needs:
            matrices["x0_scale"] = self.policy.schedule.x0_scale(timesteps)
        return {name: matrices[name] for name in self.names}

    def _mixed(self, present: Latents, old: Latents) -> dict[str, Float[Tensor, " N"]]:
        """Mean absolute values of the residuals of predictions mixed from old and present."""
        plus, minus = ((1 - share) * old + share * present for share in (self.mixes, -self.mixes))
        return {
            name: mixed.abs().flatten(1).double().mean(1)
            for name, mixed in (("absolute_plus", plus), ("absolute_minus", minus))
        }

    def _draw(
        self, rows: list[int], columns: list[int]
    ) -> tuple[Real[Tensor, " N"], Float[Tensor, "N C H W"]]:
        timesteps, noise, schedule = [], [], self.policy.schedule
        for row, column in zip(rows, columns, strict=True):
            source = generator(*self.keys[row], column)
            timesteps.append(schedule.draw(source, self.window))
            noise.append(torch.randn(self.policy.latent_shape, generator=source))
        device = self.policy.device
        return to_device(torch.stack(timesteps), device), to_device(torch.stack(noise), device)


def _product(one: Latents, other: Latents) -> Float[Tensor, " N"]:
    """<one, other> / D."""
    return (one * other).flatten(1).double().mean(1)

"""Denoising errors of the images, at timesteps and noise of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.parallel.seeds import generator
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory


@dataclass
class DenoisingErrors:
    """Columns are draws of (timestep, noise): `errors`, and the reference's on the same draws.

    error = |target - output|^2 / D, in what the network predicts (noise, v or x_0), of x_0 noised
    to timestep t

    keys   one for each row; rows of one group share theirs, so that a pair is compared on the same
           draws
    draws  columns, each with a timestep of its own, as the model's schedule draws them
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    keys: Sequence[tuple[int, ...]]
    draws: int
    reference: bool

    argument: ClassVar[str] = "errors"

    @property
    def names(self) -> tuple[str, ...]:
        return ("errors", "errors_ref") if self.reference else ("errors",)

    def columns(self, batch: Batch) -> list[int]:
        return list(range(self.draws))

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        timesteps, noise = self._draw(rows.tolist(), columns.tolist())
        x, target = self.policy.schedule.noised(self.trajectory.latents[rows, -1], noise, timesteps)
        prompts = [self.trajectory.prompts[row] for row in rows.tolist()]

        def errors() -> Float[Tensor, " N"]:
            condition = self.sampler.condition(self.policy, prompts)
            output = self.policy.predict(x, timesteps, condition, self.sampler.guidance_scale)
            return (output - target).square().flatten(1).double().mean(1)

        matrices = {"errors": errors()}
        if self.reference:
            with torch.no_grad(), self.policy.weights("base"):
                matrices["errors_ref"] = errors()
        return matrices

    def _draw(
        self, rows: list[int], columns: list[int]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N C H W"]]:
        timesteps, noise, schedule = [], [], self.policy.schedule
        for row, column in zip(rows, columns, strict=True):
            source = generator(*self.keys[row], column)
            timesteps.append(schedule.draw(source))
            noise.append(torch.randn(self.policy.latent_shape, generator=source))
        device = self.policy.device
        return torch.stack(timesteps).to(device), torch.stack(noise).to(device)

"""The matrices that objectives are functions of: each entry one (sample, column) pair and one network call.

`terms(rows, columns)` gives named vectors, of which the first is the objective's argument and the others are
fields of its batch; those with a gradient are what an update carries into the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo import samplers
from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.rollout.sample import Sampler, generator, step_means
from ddpo.rollout.trajectory import Trajectory


class Terms(Protocol):
    """One rank's trajectories and what is computed of them; row r is sample `trajectory.samples[r]`."""

    policy: Policy
    trajectory: Trajectory

    @property
    def names(self) -> tuple[str, ...]:
        """Of what a call returns, in its order."""
        ...

    def columns(self, batch: Batch) -> list[int]:
        """The columns that enter the loss."""
        ...

    def __call__(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        """Of N pairs, with gradients if they are enabled."""
        ...


@dataclass
class LogProbs:
    """Columns are denoising steps; `logp`, and `kl` to the reference where its means were kept."""

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    @property
    def names(self) -> tuple[str, ...]:
        return ("logp",) if self.trajectory.mean_ref is None else ("logp", "kl")

    def columns(self, batch: Batch) -> list[int]:
        return batch.stochastic.nonzero().flatten().tolist()

    def __call__(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        t, std = self.trajectory, self.sampler.steps.std[columns]
        mean = step_means(self.policy, self.sampler, t.latents, t.prompts, rows, columns)
        found = {"logp": samplers.log_prob(t.latents[rows, columns + 1], mean, std)}
        if t.mean_ref is not None:
            found["kl"] = samplers.kl(mean, t.mean_ref[rows, columns], std)
        return found


@dataclass
class DenoisingErrors:
    """Columns are draws of (timestep, noise): `errors`, and the reference's on the same draws.

    error = |target - output|^2 / D, in what the network predicts (noise, v or x_0), of x_0 noised to
    timestep t

    keys   one for each row; rows of one group share theirs, so that a pair is compared on the same draws
    draws  columns, each with a timestep of its own, uniform over those of training
    """

    policy: Policy
    guidance_scale: float
    trajectory: Trajectory
    keys: Sequence[tuple[int, ...]]
    draws: int
    reference: bool

    @property
    def names(self) -> tuple[str, ...]:
        return ("errors", "errors_ref") if self.reference else ("errors",)

    def columns(self, batch: Batch) -> list[int]:
        return list(range(self.draws))

    def __call__(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        timesteps, noise = self._draw(rows.tolist(), columns.tolist())
        x, target = self.policy.noised(self.trajectory.latents[rows, -1], noise, timesteps)
        prompts = [self.trajectory.prompts[row] for row in rows.tolist()]

        def errors() -> Float[Tensor, " N"]:
            output = self.policy.predict(x, timesteps, prompts, self.guidance_scale)
            return (output - target).square().flatten(1).double().mean(1)

        found = {"errors": errors()}
        if self.reference:
            with torch.no_grad(), self.policy.reference():
                found["errors_ref"] = errors()
        return found

    def _draw(
        self, rows: list[int], columns: list[int]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N C H W"]]:
        timesteps, noise = [], []
        for row, column in zip(rows, columns, strict=True):
            source = generator(*self.keys[row], column)
            timesteps.append(torch.randint(self.policy.num_timesteps, (), generator=source))
            noise.append(torch.randn(self.policy.latent_shape, generator=source))
        device = self.policy.device
        return torch.stack(timesteps).to(device), torch.stack(noise).to(device)

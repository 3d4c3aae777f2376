"""Rewards of the images, with their graph: what pathwise objectives are a function of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch, Replay
from ddpo.parallel.seeds import Purpose, generator
from ddpo.parallel.transfer import to_device
from ddpo.prompts import Prompt
from ddpo.rewards import Reward
from ddpo.rollout.replay import by_parts, unroll
from ddpo.rollout.sample import Sampler, noise_of
from ddpo.rollout.trajectory import Trajectory
from ddpo.training.credit import own_weights


def replays(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    replay: Replay,
    rewards: Sequence[Reward],
    decode_batch: int,
    reference: bool,
    key: tuple[int, int, int],
) -> "Outcomes":
    """The outcomes of a pass over the images of an iteration; `key` is (seed, iteration, epoch)."""
    numbers = trajectory.samples
    sampler = replace(sampler, steps=sampler.steps.relaxed(*replay.relaxed))
    return Outcomes(
        policy,
        sampler,
        trajectory,
        [reward for reward in rewards if reward.weight],
        replay,
        count=replay.count(*key),
        keys=[(Purpose.NOISE, *key[:2], number) for number in numbers],
        fresh=[(Purpose.DENOISING, *key, number) for number in numbers],
        decode_batch=decode_batch,
        reference=reference,
    )


@dataclass
class Outcomes:
    """Columns are replays of an image: `rewards`, and `kl` to the reference along the replay.

    Each replays the last `count` steps, decodes, and scores with the weighted sum of `rewards`.

    keys          of the noise of the rollout, one for each row
    fresh         of the noise of re-noisings, likewise
    decode_batch  images that are decoded and scored at a time; their activations are then computed
                  again in the backward pass, so that the memory is that of so many
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    rewards: Sequence[Reward]
    replay: Replay
    count: int
    keys: Sequence[tuple[int, ...]]
    fresh: Sequence[tuple[int, ...]]
    decode_batch: int
    reference: bool

    argument: ClassVar[str] = "rewards"

    @property
    def names(self) -> tuple[str, ...]:
        return ("rewards", "kl") if self.reference else ("rewards",)

    def columns(self, batch: Batch) -> list[int]:
        return list(range(self.replay.columns))

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        prompts = [self.trajectory.prompts[row] for row in rows.tolist()]
        unrolled = unroll(
            self.policy,
            self.sampler,
            prompts,
            *self._begin(rows, columns),
            reference=self.reference,
            to_x0=self.replay.to_x0,
            in_nats=self.replay.kl_in_nats,
            earlier=self._earlier(rows),
        )
        matrices = {"rewards": by_parts(self._score, self.decode_batch, unrolled.x0, prompts)}
        if unrolled.kl is not None:
            matrices["kl"] = unrolled.kl
        return matrices

    def _begin(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> tuple[Shaped[Tensor, "N *state"], Float[Tensor, "N K *noise"]]:
        """The states before the repeated steps, and the noise of these."""
        first, device = len(self.sampler.steps) - self.count, self.policy.device
        if not self.replay.renoisings:
            keys = [self.keys[row] for row in rows.tolist()]
            noise = noise_of(self.policy, self.sampler, keys)
            return self.trajectory.latents[to_device(rows, device), first], noise[:, first + 1 :]
        shape = (1 + self.count, *self.policy.latent_shape)
        sources = [
            generator(*self.fresh[row], column)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        noise = torch.stack([torch.randn(shape, generator=source) for source in sources])
        noise, timesteps = to_device(noise, device), self.sampler.steps.timesteps[first]
        x0 = self.trajectory.latents[to_device(rows, device), -1]
        x, _ = self.policy.schedule.noised(x0, noise[:, 0], timesteps.expand(len(rows)))
        return x, noise[:, 1:]

    def _earlier(self, rows: Int[Tensor, " N"]) -> Shaped[Tensor, "N first *state"] | None:
        """The states before the repeated steps, where the KL counts these too."""
        first = len(self.sampler.steps) - self.count
        counted = self.reference and self.replay.whole_path
        rows = to_device(rows, self.policy.device)
        return self.trajectory.latents[rows, :first] if counted else None

    def _score(
        self, x0: Shaped[Tensor, "N *state"], prompts: Sequence[Prompt]
    ) -> Float[Tensor, " N"]:
        """The weighted sum of the rewards."""
        images = self.policy.decode(x0)
        texts, metadata = [prompt.text for prompt in prompts], [p.metadata for p in prompts]
        total = torch.zeros(len(x0), dtype=torch.float64)
        own = own_weights(prompts, [reward.name for reward in self.rewards])
        for reward in self.rewards:
            weight = reward.weight * own.get(reward.name, 1.0)
            total = total + weight * reward(images, texts, metadata)
        return total.to(self.policy.device)

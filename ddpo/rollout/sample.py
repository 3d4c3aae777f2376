"""From prompts to denoising trajectories, and the score of their steps under the policy.

Both directions share one forward (eval mode, same arithmetic), so that a recorded log-probability
is found again.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ddpo.models import Condition, Policy
from ddpo.parallel.seeds import generator
from ddpo.parallel.transfer import to_device
from ddpo.prompts import Prompt
from ddpo.rollout.gradients import ImageGradients
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import AnySteps, Step, Steps, Window


@dataclass(frozen=True)
class Sampler:
    """How images are made: the steps on the policy's device, guidance, images per network call.

    negative_prompt  what guidance leads away from
    window           the steps that have noise, which may move with the iterations; None: all
    """

    steps: AnySteps
    guidance_scale: float
    batch_size: int
    negative_prompt: str = ""
    window: Window | None = None

    def at(self, iteration: int) -> "Sampler":
        """The sampler of an iteration, counted from 0."""
        if self.window is None:
            return self
        steps = self.window.at(cast(Steps, self.steps), iteration)
        return replace(self, steps=steps, window=None)

    def condition(self, policy: Policy, prompts: Sequence[Prompt]) -> Condition:
        """What the network is given of these prompts, for all steps.

        Without guidance there is nothing negative.
        """
        return policy.condition(prompts, None if self.guidance_scale == 1 else self.negative_prompt)


def chunks(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """The numbers from 0 to count - 1 in chunks of `size`, and how many of a chunk are genuine.

    The last one is filled up by repetition.
    """
    for first in range(0, count, size):
        indices = list(range(first, min(first + size, count)))
        yield indices + indices[-1:] * (size - len(indices)), len(indices)


def sample(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[int, ...]],
    reference: Collection[str] = (),
    guidance_scale: float | None = None,
    starts: Sequence[tuple[int, ...]] | None = None,
    gradients: ImageGradients | None = None,
    remembered: Collection[int] = (),
) -> Iterator[Trajectory]:
    """Sample one trajectory for each prompt and noise key, chunk by chunk.

    The caller disables gradients.

    Image i depends on its prompt and keys[i] alone, whatever the chunks. `reference` adds what it
    names of logp_ref, output_ref and output_old. `guidance_scale` is that of the log-probabilities,
    where it is not the sampler's. `starts` are the keys of x_T alone, where it has some of its own.
    `gradients` collects those of the log-probabilities. Of the prompts numbered `remembered` the
    network's outputs are kept.
    """
    scored = sampler if guidance_scale is None else replace(sampler, guidance_scale=guidance_scale)
    for indices, genuine in chunks(len(prompts), sampler.batch_size):
        chosen = [prompts[i] for i in indices]
        first = None if starts is None else [starts[i] for i in indices]
        if gradients is not None:
            gradients.begin(len(chosen))
        own = [keys[i] for i in indices]
        rows = [row for row in range(genuine) if indices[row] in remembered]
        outputs = _Outputs(rows)
        latents, logp = _denoise(policy, sampler, chosen, own, first, gradients, outputs)
        if gradients is not None:
            gradients.end(genuine)
        images = policy.decode(latents[:, -1])
        trajectory = Trajectory(
            indices[:genuine], chosen[:genuine], latents[:genuine], logp[:genuine], images[:genuine]
        )
        trajectory.outputs = outputs.by_row()
        if scored.guidance_scale != sampler.guidance_scale or "output_old" in reference:
            outputs, logp_old = _step_by_step(policy, scored, latents, chosen)
            trajectory.logp_old = logp_old[:genuine]
            trajectory.output_old = outputs[:genuine] if "output_old" in reference else None
        if {"logp_ref", "output_ref"} & set(reference):
            with policy.weights("base"):
                outputs, logp_ref = _step_by_step(policy, scored, latents, chosen)
            trajectory.logp_ref = logp_ref[:genuine] if "logp_ref" in reference else None
            trajectory.output_ref = outputs[:genuine] if "output_ref" in reference else None
        yield trajectory


@dataclass
class _Outputs:
    """What the network said of a few rows of a chunk at every step."""

    rows: list[int]
    steps: list[Tensor] = field(default_factory=list)

    def add(self, output: Tensor) -> None:
        """That of the next step."""
        if self.rows:
            self.steps.append(torch.stack([output[row] for row in self.rows]))

    def by_row(self) -> dict[int, Tensor]:
        """Row -> (T, ...)."""
        return {row: torch.stack([s[i] for s in self.steps]) for i, row in enumerate(self.rows)}


def _denoise(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[int, ...]],
    starts: Sequence[tuple[int, ...]] | None,
    gradients: ImageGradients | None,
    outputs: _Outputs | None = None,
) -> tuple[Shaped[Tensor, "B T1 *state"], Float[Tensor, "B T"]]:
    """All latents, noisiest first, and each stochastic step's log-probability.

    The host never waits for the device.
    """
    steps, stochastic = sampler.steps, sampler.steps.stochastic.tolist()
    noise = noise_of(policy, sampler, keys)
    condition = sampler.condition(policy, prompts)
    latents = [steps.start(noise[:, 0])]
    if starts is not None:
        shape = steps.noise_shape(policy.latent_shape)
        drawn = [torch.randn(shape, generator=generator(*key)) for key in starts]
        latents = [steps.start(to_device(torch.stack(drawn), policy.device))]
    logp = torch.zeros(len(prompts), len(steps), dtype=torch.float64, device=policy.device)
    for t in range(len(steps)):
        index = torch.full((len(prompts),), t, device=policy.device)
        learner = gradients if gradients is not None and gradients.columns[t] else None
        with nullcontext() if learner is None else learner.step():
            output = policy.predict(
                latents[t], steps.timesteps[index], condition, sampler.guidance_scale
            )
            step = steps.step(index, latents[t], output)
            if outputs is not None:
                outputs.add(output.detach())
            latents.append(step.sample(noise[:, t + 1]).detach())
            if stochastic[t]:
                scores = step.log_prob(latents[-1])
                logp[:, t] = scores.detach()
                if learner is not None:
                    learner.backward(scores)
    return torch.stack(latents, dim=1), logp


def noise_of(
    policy: Policy, sampler: Sampler, keys: Sequence[tuple[int, ...]]
) -> Float[Tensor, "B T1 *noise"]:
    """The noise of each key's trajectory: its x_T, then that of each step."""
    shape = (len(sampler.steps) + 1, *sampler.steps.noise_shape(policy.latent_shape))
    noise = torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])
    return to_device(noise, policy.device)


def _step_by_step(
    policy: Policy,
    sampler: Sampler,
    latents: Shaped[Tensor, "B T1 *state"],
    prompts: Sequence[Prompt],
) -> tuple[Float[Tensor, "B T *output"], Float[Tensor, "B T"]]:
    """Outputs and log-probabilities of every stochastic step, in the chunk shape of the rollout.

    All other entries are 0.
    """
    steps, condition = sampler.steps, sampler.condition(policy, prompts)
    logp = torch.zeros(len(prompts), len(steps), dtype=torch.float64, device=policy.device)
    outputs: dict[int, Tensor] = {}
    for t in steps.stochastic.nonzero().flatten().tolist():
        index = torch.full((len(prompts),), t, device=policy.device)
        x = latents[:, t]
        outputs[t] = policy.predict(x, steps.timesteps[index], condition, sampler.guidance_scale)
        logp[:, t] = steps.step(index, x, outputs[t]).log_prob(latents[:, t + 1])
    nothing = torch.zeros_like(next(iter(outputs.values())))
    return torch.stack([outputs.get(t, nothing) for t in range(len(steps))], dim=1), logp


def stored_steps(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    rows: Int[Tensor, " N"],
    columns: Int[Tensor, " N"],
) -> Step:
    """The distributions of N (sample, step) pairs of a trajectory, under the weights in force.

    `rows` and `columns` lie on the host, which must know the prompts.
    """
    prompts = [trajectory.prompts[row] for row in rows.tolist()]
    rows, columns = to_device(torch.stack([rows, columns]), policy.device)
    x = trajectory.latents[rows, columns]
    condition = sampler.condition(policy, prompts)
    output = policy.predict(x, sampler.steps.timesteps[columns], condition, sampler.guidance_scale)
    return sampler.steps.step(columns, x, output)

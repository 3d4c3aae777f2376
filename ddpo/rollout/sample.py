"""From prompts to denoising trajectories, and the score of their steps under the policy.

Both directions share one forward (eval mode, same arithmetic), so that a recorded log-probability
is found again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Condition, Policy
from ddpo.parallel.seeds import generator
from ddpo.prompts import Prompt
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import Gaussian, Steps


@dataclass(frozen=True)
class Sampler:
    """How images are made: the steps on the policy's device, guidance, images per network call.

    negative_prompt  what guidance leads away from
    """

    steps: Steps
    guidance_scale: float
    batch_size: int
    negative_prompt: str = ""

    def condition(self, policy: Policy, prompts: Sequence[Prompt]) -> Condition:
        """What the network is given of these prompts, for all steps.

        Without guidance there is nothing negative.
        """
        return policy.condition(prompts, None if self.guidance_scale == 1 else self.negative_prompt)


def chunks(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """0 ..

    Count - 1 in chunks of `size`, the last one filled up by repetition, and how many are genuine.
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
) -> Iterator[Trajectory]:
    """Sample one trajectory for each prompt and noise key, chunk by chunk.

    The caller disables gradients.

    Image i depends on its prompt and keys[i] alone, whatever the chunks. `reference` adds what it
    names of logp_ref and output_ref. `guidance_scale` is that of the log-probabilities, where it is
    not the sampler's.
    """
    scored = sampler if guidance_scale is None else replace(sampler, guidance_scale=guidance_scale)
    for indices, genuine in chunks(len(prompts), sampler.batch_size):
        chosen = [prompts[i] for i in indices]
        latents, logp = _denoise(policy, sampler, chosen, [keys[i] for i in indices])
        images = policy.decode(latents[:, -1])
        trajectory = Trajectory(
            indices[:genuine], chosen[:genuine], latents[:genuine], logp[:genuine], images[:genuine]
        )
        if scored.guidance_scale != sampler.guidance_scale:
            trajectory.logp_old = _step_by_step(policy, scored, latents, chosen)[1][:genuine]
        if reference:
            with policy.weights("base"):
                outputs, logp_ref = _step_by_step(policy, scored, latents, chosen)
            trajectory.logp_ref = logp_ref[:genuine] if "logp_ref" in reference else None
            trajectory.output_ref = outputs[:genuine] if "output_ref" in reference else None
        yield trajectory


def _denoise(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], keys: Sequence[tuple[int, ...]]
) -> tuple[Float[Tensor, "B T1 C H W"], Float[Tensor, "B T"]]:
    """All latents, noisiest first, and each stochastic step's log-probability.

    The host never waits for the device.
    """
    steps, stochastic = sampler.steps, sampler.steps.stochastic.tolist()
    shape = (len(steps) + 1, *policy.latent_shape)
    noise = torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys]).to(
        policy.device
    )
    condition = sampler.condition(policy, prompts)
    latents = [noise[:, 0]]
    logp = torch.zeros(len(prompts), len(steps), dtype=torch.float64, device=policy.device)
    for t in range(len(steps)):
        index = torch.full((len(prompts),), t, device=policy.device)
        output = policy.predict(
            latents[t], steps.timesteps[index], condition, sampler.guidance_scale
        )
        step = steps.step(index, latents[t], output)
        latents.append(step.sample(noise[:, t + 1]))
        if stochastic[t]:
            logp[:, t] = step.log_prob(latents[-1])
    return torch.stack(latents, dim=1), logp


def _step_by_step(
    policy: Policy,
    sampler: Sampler,
    latents: Float[Tensor, "B T1 C H W"],
    prompts: Sequence[Prompt],
) -> tuple[Float[Tensor, "B T C H W"], Float[Tensor, "B T"]]:
    """Outputs and log-probabilities of every stochastic step, in the chunk shape of the rollout.

    All other entries are 0.
    """
    steps, condition = sampler.steps, sampler.condition(policy, prompts)
    logp = torch.zeros(len(prompts), len(steps), dtype=torch.float64, device=policy.device)
    outputs = torch.zeros_like(latents[:, 1:])
    for t in steps.stochastic.nonzero().flatten().tolist():
        index = torch.full((len(prompts),), t, device=policy.device)
        x = latents[:, t]
        outputs[:, t] = policy.predict(x, steps.timesteps[index], condition, sampler.guidance_scale)
        logp[:, t] = steps.step(index, x, outputs[:, t]).log_prob(latents[:, t + 1])
    return outputs, logp


def stored_steps(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    rows: Int[Tensor, " N"],
    columns: Int[Tensor, " N"],
) -> Gaussian:
    """The distributions of N (sample, step) pairs of a trajectory, under the weights in force."""
    x = trajectory.latents[rows, columns]
    prompts = [trajectory.prompts[row] for row in rows.tolist()]
    condition = sampler.condition(policy, prompts)
    output = policy.predict(x, sampler.steps.timesteps[columns], condition, sampler.guidance_scale)
    return sampler.steps.step(columns, x, output)

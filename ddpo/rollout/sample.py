"""From prompts to denoising trajectories, and back: sample them, score their steps under the policy.

Both directions share one forward (eval mode, same arithmetic), so that a recorded log-probability is found
again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo import samplers
from ddpo.models import Policy
from ddpo.parallel.seeds import generator
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import Steps


@dataclass(frozen=True)
class Sampler:
    """How images are made: the steps' Gaussians on the policy's device, guidance, images per network call."""

    steps: Steps
    guidance_scale: float
    batch_size: int


def chunks(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """0 .. count - 1 in chunks of `size`, the last one filled up by repetition, and how many are genuine."""
    for first in range(0, count, size):
        indices = list(range(first, min(first + size, count)))
        yield indices + indices[-1:] * (size - len(indices)), len(indices)


@torch.no_grad()
def sample(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[str],
    keys: Sequence[tuple[int, ...]],
    reference: Collection[str] = (),
    guidance_scale: float | None = None,
) -> Iterator[Trajectory]:
    """Sample one trajectory for each prompt and noise key, chunk by chunk.

    Image i depends on its prompt and keys[i] alone, whatever the chunks. `reference` adds what it names of
    logp_ref and mean_ref. `guidance_scale` is that of the log-probabilities, where it is not the sampler's.
    """
    scored = sampler if guidance_scale is None else replace(sampler, guidance_scale=guidance_scale)
    policy.prepare(prompts)
    for indices, genuine in chunks(len(prompts), sampler.batch_size):
        texts = [prompts[i] for i in indices]
        latents, logp = _denoise(policy, sampler, texts, [keys[i] for i in indices])
        images = policy.decode(latents[:, -1])
        found = Trajectory(
            indices[:genuine], texts[:genuine], latents[:genuine], logp[:genuine], images[:genuine]
        )
        if scored.guidance_scale != sampler.guidance_scale:
            found.logp_old = _step_by_step(policy, scored, latents, texts)[1][:genuine]
        if reference:
            with policy.reference():
                means, logp_ref = _step_by_step(policy, scored, latents, texts)
            found.logp_ref = logp_ref[:genuine] if "logp_ref" in reference else None
            found.mean_ref = means[:genuine] if "mean_ref" in reference else None
        yield found


def _denoise(
    policy: Policy, sampler: Sampler, prompts: Sequence[str], keys: Sequence[tuple[int, ...]]
) -> tuple[Float[Tensor, "B T1 C H W"], Float[Tensor, "B T"]]:
    """All latents, noisiest first, and each stochastic step's log-probability. No host synchronisation."""
    steps, stochastic = sampler.steps, sampler.steps.stochastic.tolist()
    shape = (len(steps) + 1, *policy.latent_shape)
    noise = torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys]).to(policy.device)
    latents = [noise[:, 0]]
    logp = torch.zeros(len(prompts), len(steps), dtype=torch.float64, device=policy.device)
    for t in range(len(steps)):
        index = torch.full((len(prompts),), t, device=policy.device)
        output = policy.predict(latents[t], steps.timesteps[index], prompts, sampler.guidance_scale)
        mean = samplers.mean(steps, index, latents[t], output)
        latents.append(samplers.sample(mean, steps.std[index], noise[:, t + 1]))
        if stochastic[t]:
            logp[:, t] = samplers.log_prob(latents[-1], mean, steps.std[index])
    return torch.stack(latents, dim=1), logp


def _step_by_step(
    policy: Policy, sampler: Sampler, latents: Float[Tensor, "B T1 C H W"], prompts: Sequence[str]
) -> tuple[Float[Tensor, "B T C H W"], Float[Tensor, "B T"]]:
    """Means and log-probabilities of every stochastic step, in the chunk shape of the rollout; else 0."""
    rows = torch.arange(len(prompts), device=policy.device)
    logp = torch.zeros(len(prompts), len(sampler.steps), dtype=torch.float64, device=policy.device)
    means = torch.zeros_like(latents[:, 1:])
    for t in sampler.steps.stochastic.nonzero().flatten().tolist():
        columns = torch.full_like(rows, t)
        means[:, t] = step_means(policy, sampler, latents, prompts, rows, columns)
        logp[:, t] = samplers.log_prob(latents[:, t + 1], means[:, t], sampler.steps.std[columns])
    return means, logp


def step_means(
    policy: Policy,
    sampler: Sampler,
    latents: Float[Tensor, "B T1 C H W"],
    prompts: Sequence[str],
    rows: Int[Tensor, " N"],
    columns: Int[Tensor, " N"],
) -> Float[Tensor, "N C H W"]:
    """Means of the Gaussians of N stored (sample, step) pairs."""
    chosen: list[int] = rows.tolist()
    x, texts = latents[rows, columns], [prompts[row] for row in chosen]
    output = policy.predict(x, sampler.steps.timesteps[columns], texts, sampler.guidance_scale)
    return samplers.mean(sampler.steps, columns, x, output)

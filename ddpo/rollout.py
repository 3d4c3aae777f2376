"""From prompts to denoising trajectories, and back: sample them, score their steps under the policy.

Both directions share one forward (eval mode, same arithmetic), so that a recorded log-probability is found
again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo import transitions
from ddpo.models import Policy
from ddpo.trajectory import Trajectory
from ddpo.transitions import Steps


@dataclass(frozen=True)
class Sampler:
    """How images are made: the steps' Gaussians on the policy's device, guidance, images per network call."""

    steps: Steps
    guidance_scale: float
    batch_size: int


class Purpose(IntEnum):
    """First number of every key, so that no two uses share a stream."""

    NOISE, PROMPTS, MINIBATCHES, GLOBAL, EVALUATION = range(1, 6)


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of its key: the same on any number of ranks and after a resume."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


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
    reference: bool = False,
) -> Iterator[Trajectory]:
    """Sample one trajectory for each prompt and noise key, chunk by chunk.

    Image i depends on its prompt and keys[i] alone, whatever the chunks. `reference` adds log-probabilities
    under the reference.
    """
    policy.prepare(prompts)
    for indices, genuine in chunks(len(prompts), sampler.batch_size):
        texts = [prompts[i] for i in indices]
        latents, logp = _denoise(policy, sampler, texts, [keys[i] for i in indices])
        images = policy.decode(latents[:, -1])
        found = Trajectory(
            indices[:genuine], texts[:genuine], latents[:genuine], logp[:genuine], images[:genuine]
        )
        if reference:
            found.logp_ref = _reference_log_probs(policy, sampler, latents, texts)[:genuine]
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
        mean = transitions.mean(steps, index, latents[t], output)
        latents.append(transitions.sample(mean, steps.std[index], noise[:, t + 1]))
        if stochastic[t]:
            logp[:, t] = transitions.log_prob(latents[-1], mean, steps.std[index])
    return torch.stack(latents, dim=1), logp


def _reference_log_probs(
    policy: Policy, sampler: Sampler, latents: Float[Tensor, "B T1 C H W"], prompts: Sequence[str]
) -> Float[Tensor, "B T"]:
    """Log-probabilities of every stochastic step with the adapter off, in the chunk shape of the rollout."""
    rows = torch.arange(len(prompts), device=policy.device)
    logp = torch.zeros(len(prompts), len(sampler.steps), dtype=torch.float64, device=policy.device)
    with policy.reference():
        for t in sampler.steps.stochastic.nonzero().flatten().tolist():
            logp[:, t] = step_log_probs(policy, sampler, latents, prompts, rows, torch.full_like(rows, t))
    return logp


def step_log_probs(
    policy: Policy,
    sampler: Sampler,
    latents: Float[Tensor, "B T1 C H W"],
    prompts: Sequence[str],
    rows: Int[Tensor, " N"],
    columns: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """log p(x_{t-1} | x_t, c) of N stored (sample, step) pairs under the policy, with grad if enabled."""
    mean = step_means(policy, sampler, latents, prompts, rows, columns)
    return transitions.log_prob(latents[rows, columns + 1], mean, sampler.steps.std[columns])


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
    return transitions.mean(sampler.steps, columns, x, output)

"""How far fine-tuned weights lead a trajectory from where the base would have led it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo.models import Policy
from ddpo.rollout.sample import Sampler, stored_steps
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import Step

Chain = tuple[Policy, Sampler]

SAME = ("timesteps", "stochastic")
"""What chains must have in common of their steps, to be compared."""


def comparable(one: Chain, other: Chain) -> bool:
    """Whether the two chains go through the same states, with noise at the same steps."""
    (policy, sampler), (other_policy, other_sampler) = one, other
    if type(policy) is not type(other_policy) or policy.latent_shape != other_policy.latent_shape:
        return False
    pairs = ((getattr(s.steps, name) for s in (sampler, other_sampler)) for name in SAME)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def call_size(steps: int, batch_size: int) -> int:
    """Rows of a network call: those of one trajectory in calls of one size, with little filling."""
    return -(-steps // -(-steps // batch_size))


@torch.no_grad()
def divergences(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    rows: Sequence[int],
    base: Chain | None = None,
) -> list[float]:
    """KL of the denoising chain in force to the base's, on each of these trajectories, in nats.

    sum over t of KL(p(x_{t-1} | x_t) || p_base(x_{t-1} | x_t)), each in closed form and summed over
    all latent dimensions, at the states that the chain itself went through. Its mean over
    trajectories is an unbiased estimate of KL(p(x_0..x_T) || p_base(x_0..x_T)), which bounds that
    of the samples from above. `base` is that of a policy which has lost its own, as where a LoRA is
    fused; None: the policy's. Steps without a density are left out; of none it is NaN. Costs a
    network row for each step, or two where the outputs of the row were not remembered.
    """
    columns = sampler.steps.stochastic.nonzero().flatten()
    if not len(columns):
        return [float("nan")] * len(rows)
    other, other_sampler = base or (policy, sampler)
    device, found = policy.device, []
    size = call_size(len(columns), sampler.batch_size)
    for row in rows:
        total = 0.0
        for steps in columns.split(size):
            # always as many, so that a network call has one shape
            filled = torch.cat([steps, steps[-1:].expand(size - len(steps))])
            places = torch.full_like(filled, row).to(device), filled.to(device)
            step = _own_steps(policy, sampler, trajectory, *places)
            with other.weights("base"):
                expected = stored_steps(other, other_sampler, trajectory, *places)
            total += step.kl(expected, "sum")[: len(steps)].sum().item()
        found.append(total)
    return found


def _own_steps(
    policy: Policy, sampler: Sampler, trajectory: Trajectory, rows: Tensor, columns: Tensor
) -> Step:
    """Distributions of one trajectory's steps under the weights that sampled it."""
    row = int(rows[0])
    if row not in trajectory.outputs:
        return stored_steps(policy, sampler, trajectory, rows, columns)
    output = trajectory.outputs[row][columns]
    return sampler.steps.step(columns, trajectory.latents[row, columns], output)

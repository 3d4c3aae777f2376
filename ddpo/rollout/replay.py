"""The last steps of a rollout once more, with a graph from the weights to x_0.

A step is a differentiable function of the state before it, of the network's output and of its noise
(the reparameterized sample of its distribution). Where several are taken, each is checkpointed: its
activations are computed again in the backward pass, so that the memory is that of one step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ddpo.models import Condition, Policy
from ddpo.prompts import Prompt
from ddpo.rollout.sample import Sampler
from ddpo.samplers import Reduction, Step

State = Shaped[Tensor, "N *state"]


@dataclass(frozen=True)
class Unrolled:
    """N final states and, where asked, the divergence from the reference on the way to them.

    kl  mean over the taken steps that have a density of KL(step || step of the reference), at the
        states of the replay, in nats per latent dimension, or their sum in nats; its derivative
        goes through them, too
    """

    x0: State
    kl: Float[Tensor, " N"] | None


def by_parts(
    compute: Callable[..., Float[Tensor, " M"]], size: int, x: State, *rows: Sequence[Any]
) -> Float[Tensor, " N"]:
    """`compute(x, *rows)` on at most `size` rows at a time.

    Where there are several parts, each is computed again in the backward pass: the memory is that
    of one.
    """
    columns = (x, *rows)
    parts = [[column[i : i + size] for column in columns] for i in range(0, len(x), size)]
    if len(parts) == 1:
        return compute(*parts[0])
    # whole, since a reward must not meet the exception that would end it early
    with set_checkpoint_early_stop(False):
        return torch.cat(
            [
                checkpoint(compute, *part, use_reentrant=False, preserve_rng_state=False)
                for part in parts
            ]
        )


@contextmanager
def constant_base(policy: Policy) -> Iterator[None]:
    """The weights before training are in force, and no gradient reaches them: only the state.

    They stand in the place of the trained ones as tensors of their own, because a backward pass
    that comes later looks up the trained ones as they are then.
    """
    trained = {id(parameter) for parameter in policy.parameters().values()}
    places = [
        (layer._parameters, name, parameter)
        for module in policy.modules
        for layer in module.modules()
        for name, parameter in layer._parameters.items()
        if id(parameter) in trained
    ]
    with policy.weights("base"):
        for parameters, name, parameter in places:
            parameters[name] = parameter.detach()  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]
        try:
            yield
        finally:
            for parameters, name, parameter in places:
                parameters[name] = parameter


@dataclass(frozen=True)
class _Steps:
    """What all steps of a replay share; a call takes step number t of the sampler."""

    policy: Policy
    sampler: Sampler
    condition: Condition
    base: Condition | None
    dense: Sequence[bool]
    to_x0: bool
    reduction: Reduction

    def __call__(self, x: State, noise: State, t: int) -> tuple[State, Float[Tensor, " N"]]:
        steps = self.sampler.steps
        index = torch.full((len(x),), t, device=x.device)
        timesteps, scale = steps.timesteps[index], self.sampler.guidance_scale
        output = self.policy.predict(x, timesteps, self.condition, scale)
        step = cast(Step, steps.step(index, x, output))
        kl = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self.base is not None and self.dense[t]:
            with constant_base(self.policy):
                reference = self.policy.predict(x, timesteps, self.base, scale)
            kl = step.kl(steps.step(index, x, reference), self.reduction)
        if self.to_x0:
            return self.policy.schedule.denoised(x, output, timesteps), kl
        return step.rsample(noise), kl


def unroll(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    x: State,
    noise: Float[Tensor, "N K *noise"],
    *,
    reference: bool = False,
    to_x0: bool = False,
    in_nats: bool = False,
    earlier: Shaped[Tensor, "N first *state"] | None = None,
) -> Unrolled:
    """Take the last K steps from the states `x` before them, with the noise of each.

    `to_x0` takes one step instead, from `x` to the x_0 that the network predicts there. `reference`
    adds the KL; `in_nats` sums it, `earlier` are the states before, whose steps it then counts too.
    The caller's setting of gradients holds.
    """
    count = noise.shape[1]
    first = len(sampler.steps) - count
    base = None
    if reference:
        with torch.no_grad(), policy.weights("base"):
            base = sampler.condition(policy, prompts)
    condition, dense = sampler.condition(policy, prompts), sampler.steps.stochastic.tolist()
    reduction: Reduction = "sum" if in_nats else "mean"
    take = _Steps(policy, sampler, condition, base, dense, to_x0, reduction)
    taken = range(first, first + 1) if to_x0 else range(first, len(sampler.steps))
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for t in taken:
        arguments = x, noise[:, t - first], t
        if len(taken) > 1:
            # all noise is given, so that nothing random needs to be repeated
            x, kl = checkpoint(take, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            x, kl = take(*arguments)
        total = total + kl
    before = range(first if earlier is not None else 0)
    for t in before:
        assert earlier is not None
        arguments = earlier[:, t], noise[:, 0], t
        total = (
            total + checkpoint(take, *arguments, use_reentrant=False, preserve_rng_state=False)[1]
        )  # pyright: ignore
    steps = 1 if in_nats else max(sum(dense[t] for t in (*before, *taken)), 1)
    return Unrolled(x, total / steps if reference else None)

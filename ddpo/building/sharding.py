"""The frozen denoiser in pieces, one on each process (FSDP2), gathered block by block to compute.

The adapter stays whole on every process, so that its gradients are summed, saved and restored as
ever: a checkpoint is the same on any number of processes, sharded or not.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ddpo.errors import UserError
from ddpo.models import Policy
from ddpo.objectives import Objective
from ddpo.parallel import ranks
from ddpo.parallel.lockstep import Kind, Lockstep
from ddpo.prompts import Prompt

RESNETS = {"ResnetBlock2D"}
"""Of a UNet these are as large as its transformer blocks, which diffusers names."""


class _Announced(torch.autograd.Function):
    """The identity, whose backward pass is announced before the network's begins."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, lockstep: Lockstep) -> Tensor:  # pyright: ignore
        ctx.lockstep = lockstep
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.lockstep.announce(Kind.BACKWARD)
        return gradients[0], None


def shard(policy: Policy, objective: Objective) -> None:
    """From here on every rank's calls of the policy take part in all others'.

    Raises UserError for a policy without a denoiser of repeated blocks, and for an objective that
    goes through several steps in one backward pass.
    """
    network = getattr(policy, "network", None)
    if network is None or not getattr(network, "_repeated_blocks", None):
        raise UserError("parallel.shard: true: this model has no repeated blocks; leave it out")
    if objective.pathwise:
        raise UserError(
            f"parallel.shard: true: {objective.name} calls the network within its backward pass; "
            "take an objective of log-probabilities or denoising errors"
        )
    mesh = init_device_mesh(policy.device.type, (ranks.state().num_processes,))
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    for module in [*blocks(network), network]:
        fully_shard(module, mesh=mesh, ignored_params=trained)
    _in_step(cast(Any, policy))


def blocks(network: Any) -> Iterator[nn.Module]:
    """What is gathered at a time."""
    names = {*network._repeated_blocks, *RESNETS}
    return (module for module in network.modules() if type(module).__name__ in names)


def _in_step(policy: Any) -> None:
    """Announce the policy's calls, and take part in those of other ranks."""
    predict, outputs = policy.predict, list[Tensor]()

    def make(kind: Kind) -> None:
        if kind == Kind.BACKWARD:
            output = outputs.pop()
            output.backward(torch.zeros_like(output))
            return
        rows = torch.zeros(1, *policy.latent_shape, device=policy.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=policy.device)
        with torch.set_grad_enabled(kind == Kind.FORWARD_WITH_GRAPH):
            output = predict(rows, timesteps, policy.condition([Prompt("")]), 1.0)
        if output.requires_grad:
            outputs.append(output)

    lockstep = Lockstep(make)

    def announced(*arguments: Any) -> Tensor:
        graph = torch.is_grad_enabled()
        lockstep.announce(Kind.FORWARD_WITH_GRAPH if graph else Kind.FORWARD)
        output = predict(*arguments)
        return cast(Tensor, _Announced.apply(output, lockstep)) if output.requires_grad else output

    policy.predict = announced
    # a process trains one policy at a time
    ranks.before_waiting[:] = [lockstep.serve]

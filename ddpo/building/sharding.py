"""The denoiser in pieces, one on each process (FSDP2), gathered block by block to compute.

An adapter stays whole on every process, and its gradients are summed as ever. Without one
(`lora: null`) the pieces are trained: a backward pass leaves each process the sum over all of its
piece's gradient, and whatever is like the weights (averages, the optimizer's state, the values of
`policy.snapshots`) lies in such pieces, too. Checkpoints have whole tensors in either case: they
are the same on any number of processes, sharded or not.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ddpo.errors import UserError, nearest
from ddpo.models import Policy
from ddpo.objectives import Objective
from ddpo.parallel import pieces, ranks
from ddpo.parallel.lockstep import Call, Kind, Lockstep
from ddpo.prompts import Prompt

RESNETS = {"ResnetBlock2D"}
"""Of a UNet these are as large as its transformer blocks, which diffusers names."""

PRESENT = "present"
"""The weights as they are, in `Policy.weights`."""


def shard(policy: Policy, objective: Objective) -> None:
    """From here on every rank's calls of the policy take part in all others'.

    Raises UserError for a policy without a denoiser of repeated blocks, and for an objective that
    goes through several steps in one backward pass.
    """
    network = getattr(policy, "network", None)
    if network is None or not any(blocks(network)):
        raise UserError("parallel.shard: true: this model has no repeated blocks; leave it out")
    if objective.pathwise:
        raise UserError(
            f"parallel.shard: true: {objective.name} calls the network within its backward pass; "
            "take an objective of log-probabilities or denoising errors"
        )
    # some blocks of FLUX return views, which FSDP warns not to change in place; nothing does
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    changed = cast(Any, policy)
    changed.cut_from = _checksums(network)
    in_force = None
    if all(parameter.requires_grad for parameter in network.parameters()):
        _cut_trained(network, policy)
        in_force = InForce(policy)
        changed.weights = in_force.weights
    else:
        _cut_frozen(network, policy)
    calls = _Calls(policy, in_force)
    changed.predict = calls.predict
    # a process trains one policy at a time
    ranks.before_waiting[:] = [calls.lockstep.serve]


def blocks(network: Any) -> Iterator[nn.Module]:
    """What is gathered at a time."""
    # of Stable Diffusion 3 diffusers names only those that are not to be split
    names = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", [])
    names = {*names, *RESNETS} if names else set()
    return (module for module in network.modules() if type(module).__name__ in names)


def _checksums(network: nn.Module) -> Tensor:
    """Of each parameter's bytes: pieces of different weights would make a network of neither."""
    flat = (p.detach().contiguous().view(-1).view(torch.uint8) for p in network.parameters())
    return torch.stack([values.sum(dtype=torch.int64) for values in flat])


def _mesh(policy: Policy) -> Any:
    return init_device_mesh(policy.device.type, (ranks.state().num_processes,))


def _cut_frozen(network: Any, policy: Policy) -> None:
    mesh = _mesh(policy)
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    for module in [*blocks(network), network]:
        fully_shard(module, mesh=mesh, ignored_params=trained)


def _cut_trained(network: Any, policy: Policy) -> None:
    """The weights, and the values that they may take.

    What is in no block is cut and gathered like a block: kept whole, it would outlive an optimizer
    step, and a change of the weights in force.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"parallel.shard: true: torch {torch.__version__} only takes means of gradients over "
            "pieces, which lora: null needs the sums of; take a newer one, or a LoRA"
        )
    mesh = _mesh(policy)
    for module in [*blocks(network), network]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # each rank's loss is its share of all ranks'
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other kind
    parameters = policy.parameters()
    # not asked of the network anew: where a call broke off, that has gathered blocks
    cast(Any, policy).parameters = lambda: parameters
    for name, values in policy.snapshots.items():
        policy.snapshots[name] = pieces.cut(values, parameters)


class InForce:
    """Whose values the pieces hold, `name`; to change it, they are exchanged with a snapshot's.

    FSDP gathers from the memory where a piece was first, so that pieces are not pointed to other
    memory, as `snapshots.swapped` does with whole weights. All ranks must change alike.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self.name = policy, PRESENT

    @property
    def names(self) -> list[str]:
        """In the same order on all ranks."""
        return [PRESENT, *sorted(self._policy.snapshots)]

    def put(self, name: str) -> None:
        if name == self.name:
            return
        for each in (self.name, name):
            if each != PRESENT:
                pieces.exchange(self._policy.parameters(), self._policy.snapshots[each])
        self.name = name
        if self._policy.device.type != "cpu":
            # FSDP gathers in a stream of its own, which waits for the optimizer's step alone
            torch.accelerator.synchronize()

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """In the place of the policy's own `weights`."""
        if name not in self.names:
            raise UserError(f"no weights are called {name!r}{nearest(name, self.names)}")
        before = self.name
        self.put(before if name == PRESENT else name)
        try:
            yield
        finally:
            self.put(before)


class _Calls:
    """The policy's calls, announced to the other ranks, and this rank's part in theirs."""

    def __init__(self, policy: Policy, in_force: InForce | None) -> None:
        self._policy, self._predict, self._in_force = policy, policy.predict, in_force
        self._graphs: list[Tensor] = []
        """Outputs of calls whose backward pass is to come, this rank's own, too."""
        self.lockstep = Lockstep(self._make)

    def predict(self, *arguments: Any) -> Tensor:
        """In the place of the policy's own."""
        with_graph = torch.is_grad_enabled()
        self.announce(Kind.FORWARD_WITH_GRAPH if with_graph else Kind.FORWARD)
        output = self._predict(*arguments)
        if not output.requires_grad:
            return output
        self._graphs.append(output)
        return cast(Tensor, _Announced.apply(output, self))

    def announce(self, kind: Kind) -> None:
        own = self._in_force
        self.lockstep.announce(Call(kind, own.names.index(own.name) if own else 0))
        if kind == Kind.BACKWARD:
            self._graphs.pop()

    def _make(self, call: Call) -> None:
        own = self._in_force
        if own is None:
            self._compute(call.kind)
            return
        before = own.name
        own.put(own.names[call.weights])
        try:
            self._compute(call.kind)
        finally:
            own.put(before)

    def _compute(self, kind: Kind) -> None:
        if kind == Kind.BACKWARD:
            output = self._graphs.pop()
            output.backward(torch.zeros_like(output))
            return
        rows = torch.zeros(1, *self._policy.latent_shape, device=self._policy.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=self._policy.device)
        with torch.set_grad_enabled(kind == Kind.FORWARD_WITH_GRAPH):
            output = self._predict(rows, timesteps, self._policy.condition([Prompt("")]), 1.0)
        if output.requires_grad:
            self._graphs.append(output)


class _Announced(torch.autograd.Function):
    """The identity, whose backward pass is announced before the network's begins."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, calls: _Calls) -> Tensor:  # pyright: ignore
        ctx.calls = calls
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.calls.announce(Kind.BACKWARD)
        return gradients[0], None


@contextmanager
def saving(policy: Any, name: str, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it `policy.save` writes these values, whole ones, by the name of their weights.

    No rank waits, also where the policy's own are pieces.
    """
    if not any(map(pieces.is_piece, policy.parameters().values())):
        if name != PRESENT:
            policy.snapshots[name] = {k: v.to(policy.device) for k, v in values.items()}
        with policy.weights(name):
            yield
        return
    whole = {key.partition(".")[2]: value for key, value in values.items()}

    def fill(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state.update(whole)

    network, own = policy.network, type(policy.network)
    handle = network.register_state_dict_post_hook(fill)
    # its name goes into config.json, and FSDP has derived one of its own
    network.__class__ = next(c for c in own.__mro__ if not issubclass(c, FSDPModule))
    try:
        yield
    finally:
        network.__class__ = own
        handle.remove()

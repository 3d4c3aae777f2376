"""Tensors of which each rank holds a piece: DTensors, as FSDP2 makes them of weights it trains.

Optimizers and averages work on them number by number, as on whole ones. What looks at all of the
numbers goes through here: gathering, cutting, a norm.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpo.parallel import ranks


def is_piece(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, for rank 0, in its main memory; of pieces the other ranks get none.

    All ranks must call it, outside of `ranks.together`. Whole tensors are passed on as they are.
    """
    found = {}
    if any(map(is_piece, tensors.values())):
        ranks.prepare()
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            with ranks.talk():
                whole = tensor.full_tensor()
            if ranks.state().is_main_process:
                found[name] = whole.detach().cpu()
        else:
            found[name] = tensor
    return found


@torch.no_grad()
def cut(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's pieces of whole tensors, as the pieces in `like` are cut; no rank waits.

    A tensor is called like its pattern, or "kind/" and then so. One whose pattern is whole, has
    another shape or is not there is passed on.
    """
    return {key: _cut(value, like.get(key.split("/", 1)[-1])) for key, value in tensors.items()}


def _cut(value: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    mesh, placements = like.device_mesh, like.placements
    piece = distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)
    return piece.clone()  # not a view, which would keep the whole alive


@torch.no_grad()
def exchange(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The values of pieces of the same names, each in the place of the other's."""
    for name, piece in one.items():
        here, there = _local(piece), _local(other[name])
        kept = here.clone()
        here.copy_(there)
        there.copy_(kept)


def norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Of all pieces as one vector, on every rank."""
    square = nn.utils.get_total_norm([_local(tensor) for tensor in tensors]).double().square()
    ranks.prepare()
    with ranks.talk():
        dist.all_reduce(square)
    return square.sqrt().float()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

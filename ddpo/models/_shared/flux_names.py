"""FLUX's LoRA in the names of the published weights, as kohya's scripts write it.

There one layer holds what are several in diffusers, as query, key and value. The low-rank updates
of such a group become one of the sum of their ranks: the downs below each other, the ups on the
diagonal of a block matrix. Readers that find this pattern take it apart again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpo.errors import UserError

Pair = tuple[Tensor, Tensor]

DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
BLOCKS = {
    "transformer_blocks": ("lora_unet_double_blocks", DOUBLE),
    "single_transformer_blocks": ("lora_unet_single_blocks", SINGLE),
}


def fused(pairs: Mapping[str, Pair], network: Any) -> dict[str, Pair]:
    """(lora_A, lora_B) by kohya's names, of those by the layers' names in `network`.

    Raises UserError for a layer that such a file has no name for.
    """
    layers, left = dict[str, Pair](), set(pairs)
    for stem, name, group in _groups(network):
        names = [f"{stem}.{part}" for part in group]
        left -= set(names)
        if any(part in pairs for part in names):
            layers[name] = _joined([pairs.get(part) for part in names], names, network)
    if left:
        raise UserError(
            f"--format: kohya's files have no name for the layer {min(left)}; take diffusers"
        )
    return layers


def _groups(network: Any) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(block, kohya's name, layers of the block) of all that such a file can hold."""
    for kind, (prefix, names) in BLOCKS.items():
        for i in range(len(getattr(network, kind))):
            for theirs, ours in names.items():
                yield f"{kind}.{i}", f"{prefix}_{i}_{theirs}", ours


def _joined(members: Sequence[Pair | None], names: Sequence[str], network: Any) -> Pair:
    """One update of the group; a layer of it without an adapter gets one of 0."""
    some = next(member for member in members if member is not None)
    downs, ups = [], []
    for member, name in zip(members, names, strict=True):
        if member is None:
            rows = network.get_submodule(name).out_features
            member = torch.zeros_like(some[0]), some[1].new_zeros(rows, some[1].shape[1])
        downs.append(member[0])
        ups.append(member[1])
    return torch.cat(downs), torch.block_diag(*ups)

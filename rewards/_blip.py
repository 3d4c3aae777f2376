"""BLIP from weights in its authors' names, as ImageReward is published."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

RENAMES = {
    "visual_encoder.norm.": "vision_model.post_layernorm.",
    "visual_encoder.": "vision_model.",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks.": "encoder.layers.",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.": ".self_attn.",
    ".norm": ".layer_norm",
}
"""From BLIP's own names to those of transformers, in this order; the text tower has the same."""


def blip(state: Mapping[str, Tensor], text: Mapping[str, Any]) -> Any:
    """The network of weights in BLIP's own names; `text` is the configuration of its text tower.

    The rest is read off the weights; every ViT of BLIP has heads of 64. Raises ValueError where
    weights are missing or unknown (there need be no head that matches images and texts).
    """
    patch = state["visual_encoder.patch_embed.proj.weight"]
    places, width, side = state["visual_encoder.pos_embed"].shape[1], len(patch), patch.shape[-1]
    vision = {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "layer_norm_eps": 1e-6,
        "num_hidden_layers": sum(key.endswith(".attn.qkv.weight") for key in state),
        "intermediate_size": len(state["visual_encoder.blocks.0.mlp.fc1.weight"]),
        "patch_size": side,
        "image_size": round((places - 1) ** 0.5) * side,
    }
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "layer_norm_eps",
        "hidden_act",
    )
    config = BlipConfig(
        text_config={**{key: text[key] for key in same}, "encoder_hidden_size": width},
        vision_config=vision,
        image_text_hidden_size=len(state["vision_proj.weight"]),
    )
    model = BlipForImageTextRetrieval(config)
    renamed = {}
    for key, value in state.items():
        for old, new in RENAMES.items():
            key = key.replace(old, new)
        renamed[key] = value
    absent, unknown = model.load_state_dict(renamed, strict=False)
    wrong = {*absent, *unknown} - {
        "itm_head.weight",
        "itm_head.bias",
        "text_encoder.embeddings.position_ids",
    }
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing or unknown, as {min(wrong)}")
    return model

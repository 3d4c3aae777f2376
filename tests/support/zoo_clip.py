"""Tiny random models of the true architectures, in folders as the published checkpoints come."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ddpo.models._tiny import _alphabet

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CONTEXT = 24


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights drawn wide enough that different pictures and words get clearly different
    features."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 / parameter[0].numel() ** 0.5 + 0.05, generator=noise)
    return model.eval()


def hf_clip(folder: Path, act: str = "quick_gelu", size: int = 32) -> str:
    """A CLIPModel of transformers with its image processor and tokenizer."""
    tokenizer = CLIPTokenizer(vocab=_alphabet(), merges=[], model_max_length=CONTEXT)
    text = {
        **SMALL,
        "vocab_size": len(_alphabet()),
        "max_position_embeddings": CONTEXT,
        "hidden_act": act,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**SMALL, "image_size": size, "patch_size": 8, "hidden_act": act}
    spread(
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    ).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def clip_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """An architecture in open_clip's format; its tokenizer is saved in the folder."""
    CLIPTokenizer(vocab=_flipped(), merges=[], model_max_length=CONTEXT).save_pretrained(folder)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {
        "context_length": CONTEXT,
        "vocab_size": len(_alphabet()),
        "width": 32,
        "heads": 2,
        "layers": 2,
        "hf_tokenizer_name": str(folder),
    }
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **changes}


def _flipped() -> dict[str, int]:
    """With the end of the text as the highest id: there open_clip takes the text's feature."""
    words = list(_alphabet())
    return {word: number for number, word in enumerate([*words[2:], *words[:2]])}


def local_clip(folder: Path, preprocess: dict[str, Any] | None = None, **changes: Any) -> str:
    """A folder that open_clip loads as `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = clip_config(folder, **changes)
    model = spread(open_clip.CLIP(**config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return str(folder)


def head(file: Path, widths: tuple[int, ...] = (16, 12, 10, 8, 6, 1)) -> str:
    """Five linear layers under the published names layers.0, 2, 4, 6, 7; .pth or .safetensors."""
    noise = torch.Generator().manual_seed(3)
    state = {}
    for number, take, give in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state[f"layers.{number}.weight"] = torch.randn(give, take, generator=noise) / take**0.5
        state[f"layers.{number}.bias"] = torch.randn(give, generator=noise)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return str(file)


def dino(folder: Path) -> str:
    spread(Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=7))).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return str(folder)


def classifier(folder: Path) -> str:
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, id2label={0: "normal", 1: "nsfw"})
    spread(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def hps_files(folder: Path) -> dict[str, str]:
    """Both checkpoints, {'state_dict': ...} as published, and a file with their architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    config = clip_config(folder)
    for seed, version in enumerate(("v2", "v2.1")):
        model = spread(open_clip.CLIP(**config), seed)
        torch.save({"state_dict": model.state_dict()}, folder / f"HPS_{version}_compressed.pt")
    file = folder / f"{folder.name}-tiny.json"
    file.write_text(json.dumps(config))
    return {"pretrained": str(folder), "architecture": str(file)}


def bert(folder: Path) -> str:
    """BERT's tokenizer with a letter a token, so that captions are soon beyond 35 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


MED = {  # what the authors' med_config.json says, made small
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 64,
    "encoder_width": 32,
    "add_cross_attention": True,
}


def blip_state(
    med: dict[str, Any] = MED, width: int = 64, depth: int = 2, side: int = 8, size: int = 32
) -> dict[str, Tensor]:
    """Random weights under the names of the ImageReward checkpoint: its ViT, its BERT, its head."""
    state: dict[str, Tensor] = {}
    torch.manual_seed(5)

    def linear(name: str, take: int, give: int) -> None:
        state[f"{name}.weight"] = torch.randn(give, take) / take**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(give)

    def norm(name: str, of: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(of)
        state[f"{name}.bias"] = 0.1 * torch.randn(of)

    eye, read, hidden = "blip.visual_encoder", "blip.text_encoder", med["hidden_size"]
    state[f"{eye}.cls_token"] = torch.randn(1, 1, width)
    state[f"{eye}.pos_embed"] = torch.randn(1, (size // side) ** 2 + 1, width)
    state[f"{eye}.patch_embed.proj.weight"] = 0.2 * torch.randn(width, 3, side, side)
    state[f"{eye}.patch_embed.proj.bias"] = torch.randn(width)
    for i in range(depth):
        block = f"{eye}.blocks.{i}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", width, 4 * width)
        linear(f"{block}.mlp.fc2", 4 * width, width)
    norm(f"{eye}.norm", width)
    words, places = med["vocab_size"], med["max_position_embeddings"]
    state[f"{read}.embeddings.position_ids"] = torch.arange(places)[None]
    state[f"{read}.embeddings.word_embeddings.weight"] = torch.randn(words, hidden)
    state[f"{read}.embeddings.position_embeddings.weight"] = torch.randn(places, hidden)
    norm(f"{read}.embeddings.LayerNorm", hidden)
    for i in range(med["num_hidden_layers"]):
        layer = f"{read}.encoder.layer.{i}"
        for kind, source in (("attention", hidden), ("crossattention", width)):
            linear(f"{layer}.{kind}.self.query", hidden, hidden)
            linear(f"{layer}.{kind}.self.key", source, hidden)
            linear(f"{layer}.{kind}.self.value", source, hidden)
            linear(f"{layer}.{kind}.output.dense", hidden, hidden)
            norm(f"{layer}.{kind}.output.LayerNorm", hidden)
        linear(f"{layer}.intermediate.dense", hidden, med["intermediate_size"])
        linear(f"{layer}.output.dense", med["intermediate_size"], hidden)
        norm(f"{layer}.output.LayerNorm", hidden)
    linear("blip.vision_proj", width, 16)
    linear("blip.text_proj", hidden, 16)
    for number, take, give in zip(
        (0, 2, 4, 6, 7), (hidden, 12, 10, 8, 6), (12, 10, 8, 6, 1), strict=True
    ):
        linear(f"mlp.layers.{number}", take, give)
    return state


def image_reward_files(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(blip_state(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    return {"pretrained": str(folder), "tokenizer": bert(folder / "bert")}


def _picked(folder: Path) -> dict[str, str]:
    name = hf_clip(folder / "pick")
    return {"pretrained": name, "processor": name}


def _referred(folder: Path) -> dict[str, str]:
    Image.new("RGB", (40, 30), (90, 140, 60)).save(folder / "reference.png")
    return {"pretrained": dino(folder / "dino"), "reference": str(folder / "reference.png")}


ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "aesthetic": lambda at: {"pretrained": hf_clip(at / "clip"), "head": head(at / "head.pth")},
    "clip_score": lambda at: {"pretrained": local_clip(at / "open_clip")},
    "pick_score": _picked,
    "hps": lambda at: hps_files(at / "hps"),
    "image_reward": lambda at: image_reward_files(at / "image_reward"),
    "similarity": _referred,
    "diversity": lambda at: {"pretrained": dino(at / "dino")},
    "nsfw": lambda at: {"pretrained": classifier(at / "nsfw")},
    "brightness": lambda at: {},
    "redness": lambda at: {},
    "sharpness": lambda at: {},
    "edge_density": lambda at: {},
    "color_entropy": lambda at: {},
}
"""Each reward's options with such models below a folder."""

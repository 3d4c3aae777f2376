"""A tiny random DETR of COCO's classes, with a CLIP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zoo_clip
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

LABELS = ["N/A", "person", "fox", "mouse", "dog", "cat"]


def detr(folder: Path) -> str:
    torch.manual_seed(0)
    small = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            out_features=["stage2"],
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        **small,
        **heads,
    )
    model = DetrForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.weight.mul_(4)  # some are sure, some are not
    model.save_pretrained(folder / "detr")
    size = {"shortest_edge": 64, "longest_edge": 96}
    DetrImageProcessor(size=size).save_pretrained(folder / "detr")
    return str(folder / "detr")


ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "geneval": lambda folder: {"detector": detr(folder), "clip": zoo_clip.hf_clip(folder / "clip")},
}

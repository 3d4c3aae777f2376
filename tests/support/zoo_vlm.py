"""Tiny random models of the true architectures, as their own libraries save them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from judge_server import Judge, choice
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTokenizer,
    CLIPVisionConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    PPLCNetV3Config,
    PPOCRV5MobileDetConfig,
    PPOCRV5MobileDetForObjectDetection,
    PPOCRV5MobileRecConfig,
    PPOCRV5MobileRecForTextRecognition,
    PPOCRV5ServerDetImageProcessor,
    PPOCRV5ServerRecImageProcessor,
    SwinConfig,
)

from ddpo.models.emoji import captioner

TEXT = (
    "a an the fox cat dog riding washing playing bike dishes chess image contains ##s ##ing two . ,"
)


def llava(folder: Path) -> str:
    """It speaks the words of the embedded captioner, at random."""
    torch.manual_seed(0)
    processor = captioner.processor()
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_seq_length=64,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    return str(folder / "llava")


def bert(folder: Path) -> str:
    """Its tokenizer has a few words, and letters for all others."""
    torch.manual_seed(0)
    place = folder / "bert"
    place.mkdir(parents=True)
    letters = [*map(chr, range(97, 123)), *(f"##{chr(i)}" for i in range(97, 123))]
    tokens = list(
        dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), *letters])
    )
    (place / "vocab.txt").write_text("\n".join(tokens))
    tokenizer = BertTokenizer(vocab=str(place / "vocab.txt"))
    tokenizer.model_max_length = 64
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def owlv2(folder: Path) -> str:
    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    letters = [*map(chr, range(97, 123)), *(f"{chr(i)}</w>" for i in range(97, 123))]
    vocabulary = {
        word: i for i, word in enumerate(["!", *letters, "<|startoftext|>", "<|endoftext|>"])
    }
    size = len(vocabulary)
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 0}
    text = {**tower, **ends, "vocab_size": size, "max_position_embeddings": 24}
    config = Owlv2Config(
        text_config=text,
        vision_config={**tower, "image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        model.box_head.dense2.weight *= 0.1  # boxes of a few pixels, not of none
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="!", model_max_length=24)
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    model.save_pretrained(folder / "owlv2")
    processor.save_pretrained(folder / "owlv2")
    return str(folder / "owlv2")


def grounding_dino(folder: Path) -> str:
    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        "?",
        "a",
        "photo",
        "of",
        "fox",
        "wolf",
    ]
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    swin = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[2] * 4,
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    sizes = {"layers": 2, "attention_heads": 2, "ffn_dim": 16, "n_points": 2}
    halves = {
        f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in sizes.items()
    }
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text.to_dict(),
        d_model=32,
        num_queries=20,
        max_text_len=64,
        **halves,
    )
    model = GroundingDinoForObjectDetection(config)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=64)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    model.save_pretrained(folder / "dino")
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder / "dino")
    return str(folder / "dino")


def calibrate(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Set the statistics of batch normalization, without which a random network forgets its
    input."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(pixels)
    model.eval()


def pp_ocr(folder: Path) -> dict[str, Any]:
    """The detector sees one line, the whole picture; the recognizer reads it at random."""
    torch.manual_seed(0)

    def backbone(*strides: Any) -> PPLCNetV3Config:
        blocks = [[[3, 16, 16, stride, True]] for stride in strides]
        return PPLCNetV3Config(scale=1.0, block_configs=blocks, out_indices=[2, 3, 4, 5])

    channels = {"neck_out_channels": 16, "layer_list_out_channels": [4, 4, 4, 4]}
    halves = backbone(1, 2, 2, 2, 2)
    find = PPOCRV5MobileDetForObjectDetection(
        PPOCRV5MobileDetConfig(backbone_config=halves, **channels)
    )
    calibrate(find, torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        find.head.conv_final.bias += 9
    find.save_pretrained(folder / "find")
    PPOCRV5ServerDetImageProcessor().save_pretrained(folder / "find")
    letters = ["blank", *map(chr, range(97, 123)), " "]
    flattens = backbone(1, [2, 1], [1, 2], [2, 1], [2, 1])  # 48 rows of pixels become 3
    config = PPOCRV5MobileRecConfig(
        backbone_config=flattens,
        hidden_size=16,
        num_attention_heads=2,
        head_out_channels=len(letters),
    )
    read = PPOCRV5MobileRecForTextRecognition(config)
    calibrate(read, torch.randn(4, 3, 48, 48))
    read.head.head.weight.data *= 100
    read.save_pretrained(folder / "read")
    PPOCRV5ServerRecImageProcessor(character_list=letters).save_pretrained(folder / "read")
    return {"detector": str(folder / "find"), "recognizer": str(folder / "read")}


def judge() -> dict[str, Any]:
    """A server that is as sure of a picture as its bytes say."""

    def answer(question: str, times: int, request: dict[str, Any]) -> tuple[int, Any]:
        seen = hashlib.sha256(str(request["messages"]).encode()).digest()[0] / 256
        return 200, choice(chances={"Yes": 0.1 + 0.8 * seen, "No": 0.9 - 0.8 * seen})

    return {"base_url": Judge(answer).url, "retries": 0, "timeout_s": 20.0}


ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "vlm_alignment": lambda folder: {"pretrained": llava(folder), "encoder": bert(folder)},
    "vqa_score": lambda folder: {"pretrained": llava(folder)},
    "vlm_judge": lambda folder: judge(),
    "counting": lambda folder: {"pretrained": owlv2(folder)},
    "ocr": pp_ocr,
}

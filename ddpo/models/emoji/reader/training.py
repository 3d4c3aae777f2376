"""The reader of looks is taught, with the base model's pictures and the looks of each.

What a user of docs/personal.md likes it is not told: of a new one there are only the pictures.
"""

import importlib
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor
from transformers import PreTrainedTokenizerFast

from ddpo.models.emoji.scenes import ANIMALS
from ddpo.models.emoji.users import pictures as draw_pictures

from .model import CHAT, LOOKS, build, processor

BATCH = 48
EACH, SEED = 40, 17
"""Pictures of each animal, and the first number of the key of their noise."""

HELD_OUT = 8
"""Of each animal's pictures the last 8 are never trained on."""


def pool(folder: Path) -> Float[Tensor, "A E 3 64 64"]:
    """The base model's own pictures of all animals, uint8; drawn once, into `folder`."""
    count = len(ANIMALS) * EACH
    if not (folder / f"{count - 1:03d}.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draw_pictures(folder, EACH, SEED)
    images = [Image.open(folder / f"{i:03d}.png").convert("RGB") for i in range(count)]
    return torch.stack([pil_to_tensor(image) for image in images]).unflatten(0, (-1, EACH))


def augmented(pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 3 64 64"]:
    """Half of them mirrored, half of them in somewhat other colors, in [0, 1]."""
    count = len(pictures)
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, pictures.flip(3), pictures)
    changed = mirrored * (1 + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5))
    changed = (changed + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5)).clamp(0, 1)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, changed, mirrored)


class Training:
    """The log-odds of a feature's two words are to be the feature of the reward `emoji_taste`."""

    steps, lr, ema_decay = 350, 2e-3, 0.99

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.device = device
        self.processor = processor()
        tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        self.module = build(tokenizer).to(device)  # pyright: ignore[reportArgumentType]
        pictures = pool(work / "pictures")
        self.pictures = pictures[:, :-HELD_OUT].flatten(0, 1)
        self.held_out = pictures[:, -HELD_OUT:].flatten(0, 1) / 255
        self.features: Any = importlib.import_module("ddpo.rewards.emoji_taste").features
        self.ids = torch.tensor(cast(list[int], tokenizer(CHAT).input_ids), device=device)
        words = [word for pair in LOOKS.values() for word in pair]
        self.words = torch.tensor(tokenizer.convert_tokens_to_ids(words))

    def said(self, pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 4"]:
        """The log-odds of the words for much and little of each feature, of pictures in [0, 1]."""
        logits = self.module(
            input_ids=self.ids.expand(len(pictures), -1),
            attention_mask=torch.ones_like(self.ids).expand(len(pictures), -1),
            pixel_values=2 * pictures.to(self.device) - 1,
            logits_to_keep=1,
        ).logits[:, -1, self.words]
        much, little = logits.unflatten(1, (-1, 2)).unbind(2)
        return much - little

    def looks(self, pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 4"]:
        values = self.features(pictures)
        return torch.stack([values[name] for name in LOOKS], 1).to(self.device)

    def loss(self, step: int) -> Tensor:
        pictures = augmented(self.pictures[torch.randint(len(self.pictures), (BATCH,))] / 255)
        return functional.smooth_l1_loss(self.said(pictures), self.looks(pictures))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """R^2 of each feature on the pictures that were never trained on."""
        self.module.eval()
        said = torch.cat([self.said(part) for part in self.held_out.split(BATCH)])
        looks = self.looks(self.held_out)
        errors = (said - looks).square().mean(0) / looks.var(0)
        return {f"{name}_r2": 1 - error for name, error in zip(LOOKS, errors.tolist(), strict=True)}

    def save(self, folder: Path) -> None:
        self.module.half().save_pretrained(folder / "reader")
        self.module.float()
        self.processor.save_pretrained(folder / "reader")

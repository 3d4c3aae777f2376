"""The reader of preferences is taught: with made-up users, whose choices it sees and of whom it is
told the reason in a word.

Of the users of docs/personal.md it is told nothing, and what it says of a new one comes from the
pictures alone.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor
from transformers import PreTrainedTokenizerFast

from ddpo.models.emoji.scenes import ANIMALS, caption, draw
from ddpo.models.emoji.users import pictures as draw_pictures

from .model import LIKES, PAIRS, WIDTH, build, chat, processor

MADE_UP = range(1_000, 1_960)
"""Numbers of the users it was taught with: none of them is one of docs/personal.md."""

HELD_OUT_USERS = range(2_000, 2_480)
GROUPS, EACH, CHATS = 8, 8, 8
"""A batch: pictures of 8 captions, 8 of each, and chats of pairs of these."""

DRAWN, HELD_OUT = 40, 8
"""Pictures of each animal from the base model, as many scenes beside them; the last 8 of both are
never trained on."""

FIRST_SCENE, PICTURES_SEED = 8_000_000, 17


def pool(folder: Path) -> tuple[list[str], Tensor]:
    """Captions (G) and pictures (G, DRAWN, 3, 64, 64), uint8: the base model's, then scenes.

    The base model's are drawn once into `folder`.
    """
    texts = [caption(animal) for animal in ANIMALS]
    if not (folder / f"{len(texts) * DRAWN - 1:03d}.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draw_pictures(folder, DRAWN, PICTURES_SEED)
    count = len(texts) * DRAWN
    images = [Image.open(folder / f"{i:03d}.png").convert("RGB") for i in range(count)]
    images += [draw(text, FIRST_SCENE + i) for text in texts for i in range(DRAWN)]
    pictures = torch.stack([pil_to_tensor(image) for image in images])
    return [*texts, *texts], pictures.unflatten(0, (-1, DRAWN))


def augmented(pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 3 64 64"]:
    """Half of them mirrored, half of them in other colors."""
    count = len(pictures)
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, pictures.flip(3), pictures)
    changed = mirrored * (1 + 0.4 * (torch.rand(count, 3, 1, 1) - 0.5))
    changed = (changed + 0.3 * (torch.rand(count, 3, 1, 1) - 0.5)).clamp(0, 1)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, changed, mirrored)


class Batch(NamedTuple):
    """Chats of made-up users.

    pictures  in [0, 1]
    shown     which of them are in a chat, in order: preferred, not preferred, ...
    texts     of each pair
    looks     the features of each picture
    weights   of each user's features
    """

    pictures: Float[Tensor, "B 3 64 64"]
    shown: Int[Tensor, "C 8"]
    texts: list[list[str]]
    looks: Float[Tensor, "B 4"]
    weights: Float[Tensor, "C 4"]


class Training:
    """Cross-entropy of the word for what a user likes, after each pair and at the chat's end.

    A user's words share the target as the weights of its interests do. Beside it each picture's
    tokens predict its features by a linear map that is thrown away.
    """

    steps, lr, ema_decay = 1_000, 2e-3, 0.99

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.device = device
        self.processor = processor()
        self.tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        self.reader = build(self.tokenizer)
        self.module = nn.ModuleDict({"reader": self.reader, "looks": nn.Linear(WIDTH, 4)})
        self.module.to(device)
        self.texts, self.pictures = pool(work / "pictures")
        self.formulas: Any = importlib.import_module("ddpo.rewards.emoji_taste")
        words = [word for pair in LIKES.values() for word in pair]
        self.words = torch.tensor([self.tokenizer.convert_tokens_to_ids(word) for word in words])

    def batch(self, users: range, held_out: bool = False) -> Batch:
        """Random chats, of pictures that are trained on or of the others."""
        first, last = (DRAWN - HELD_OUT, DRAWN) if held_out else (0, DRAWN - HELD_OUT)
        groups = torch.randperm(len(self.texts))[:GROUPS]
        picked = torch.stack([first + torch.randperm(last - first)[:EACH] for _ in groups])
        pictures = self.pictures[groups[:, None], picked].flatten(0, 1) / 255
        pictures = pictures if held_out else augmented(pictures)
        values = self.formulas.features(pictures)
        looks = torch.stack([values[name] for name in LIKES], 1)
        numbers = torch.randint(users.start, users.stop, (CHATS,)).tolist()
        tastes = [self.formulas.taste(number) for number in numbers]
        weights = torch.tensor([[taste[name] for name in LIKES] for taste in tastes])
        group = torch.randint(GROUPS, (CHATS, PAIRS))
        one, step = torch.randint(EACH, (CHATS, PAIRS)), torch.randint(1, EACH, (CHATS, PAIRS))
        one, other = group * EACH + one, group * EACH + (one + step) % EACH
        better = ((looks[one] - looks[other]) * weights[:, None]).sum(2) > 0
        preferred, rest = torch.where(better, one, other), torch.where(better, other, one)
        texts = [[self.texts[int(groups[g])] for g in row] for row in group]
        return Batch(pictures, torch.stack([preferred, rest], 2).flatten(1), texts, looks, weights)

    def said(self, batch: Batch) -> tuple[Float[Tensor, "C P 8"], Float[Tensor, "B 4"]]:
        """Logarithms of the words' probabilities after each pair and at the end; the looks."""
        pixels = 2 * batch.pictures.to(self.device) - 1
        outputs: Any = self.reader.model.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        )
        features = torch.stack(list(outputs.pooler_output))  # (B, tokens, D)
        ids = torch.tensor(self.tokenizer([chat(texts) for texts in batch.texts]).input_ids)
        pictured = ids.eq(cast(int, self.tokenizer.convert_tokens_to_ids("<image>")))
        embeds = self.reader.get_input_embeddings()(ids.to(self.device))
        shown = features[batch.shown].flatten(0, 2).to(embeds)
        embeds = embeds.masked_scatter(pictured[..., None].to(self.device), shown)
        places = pictured[0].nonzero().flatten().unflatten(0, (PAIRS, -1))[:, -1]
        places = [*places.tolist(), ids.shape[1] - 1]
        states = self.reader.model.language_model(inputs_embeds=embeds).last_hidden_state
        logits = self.reader.lm_head(states[:, places])
        looks = self.module["looks"](features.mean(1))
        return logits.log_softmax(2)[..., self.words], looks

    def loss(self, step: int) -> Tensor:
        batch = self.batch(MADE_UP)
        said, looks = self.said(batch)
        likes = torch.stack([batch.weights, -batch.weights], 2).clamp_min(0).flatten(1)
        target = (likes / likes.sum(1, keepdim=True))[:, None].to(said)
        return functional.mse_loss(looks, batch.looks.to(looks)) - (target * said).sum(2).mean()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On pictures and users it was not taught with: R^2 of the features of a picture; the share
        of chats in which the likeliest word names the user's first interest; and R^2 of the users'
        weights, predicted by the words' probabilities."""
        self.module.eval()
        torch.manual_seed(0)
        batches = [self.batch(HELD_OUT_USERS, held_out=True) for _ in range(20)]
        outputs = [self.said(batch) for batch in batches]
        looks, seen = torch.cat([b.looks for b in batches]), torch.cat([o[1] for o in outputs])
        weights = torch.cat([b.weights for b in batches])
        chances = torch.cat([o[0][:, -1] for o in outputs]).exp().unflatten(1, (4, 2))
        likes = torch.stack([weights, -weights], 2).flatten(1)
        named = (chances.flatten(1).argmax(1) == likes.argmax(1)).float().mean().item()
        expected = (chances[..., 0] - chances[..., 1]) * weights.abs().sum(1).mean()
        metrics = {"first_interest": named}
        for name, said, truth in (("looks", seen, looks), ("weights", expected, weights)):
            errors = (said - truth).square().mean(0) / truth.var(0)
            metrics |= {
                f"{name}_{word}": 1 - e.item() for word, e in zip(LIKES, errors, strict=True)
            }
        return metrics

    def save(self, folder: Path) -> None:
        self.reader.half().save_pretrained(folder / "reader")
        self.reader.float()
        self.processor.save_pretrained(folder / "reader")

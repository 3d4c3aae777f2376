"""The emoji world's synthetic users and their preferences: the data of docs/personal.md.

`python -m ddpo.models.emoji.users FOLDER` writes seen.jsonl, the pairs of 60 users, unseen.jsonl,
those of 20 others, and the base model's own pictures of which they chose. A user's taste is the
formula of the reward `emoji_taste`, which no model is given.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError
from ddpo.images import from_pil
from ddpo.models._shared.families import EMBEDDED
from ddpo.models.emoji.scenes import ANIMALS, caption
from ddpo.parallel.seeds import generator

SEEN, UNSEEN = range(60), range(60, 80)
PAIRS = 16
"""Preferences of each user."""

PICTURES = 12
"""Of each animal; a pair is two of one animal."""

STEPS, CHUNK = 8, 36
SEED = 16


def name_of(user: int) -> str:
    return f"u{user:02d}"


@torch.no_grad()
def pictures(folder: Path, each: int = PICTURES, seed: int = SEED) -> dict[str, list[str]]:
    """The files of each caption's pictures, drawn by the base model without guidance.

    `each` are those of a caption; `seed` is the first number of the key of every picture's noise.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED["emoji"], safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    texts = [caption(animal) for animal in ANIMALS for _ in range(each)]
    files: dict[str, list[str]] = {}
    for first in range(0, len(texts), CHUNK):
        numbers = range(first, min(first + CHUNK, len(texts)))
        made = cast(Any, pipeline)(
            [texts[i] for i in numbers],
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            eta=1.0,
            generator=[generator(seed, i) for i in numbers],
        )
        for i, image in zip(numbers, made.images, strict=True):
            file = f"{i:03d}.png"
            image.save(folder / file)
            files.setdefault(texts[i], []).append(file)
    return files


def pairs(user: int, files: dict[str, list[str]], worth: dict[str, float]) -> list[dict[str, str]]:
    """Different pairs of one caption's pictures each, the one of more worth to the user chosen."""
    dice, rows = random.Random(f"pairs of {user}"), dict[tuple[str, ...], dict[str, str]]()
    while len(rows) < PAIRS:
        text = dice.choice(sorted(files))
        rejected, chosen = sorted(dice.sample(files[text], 2), key=lambda file: worth[file])
        row = {"user": name_of(user), "prompt": text, "chosen": chosen, "rejected": rejected}
        rows[chosen, rejected] = row
    return list(rows.values())


def write(folder: Path) -> None:
    """Pictures, seen.jsonl and unseen.jsonl."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = pictures(folder)
    names = [file for each in files.values() for file in each]
    images = from_pil([Image.open(folder / file) for file in names])
    score = cast(Callable[..., Tensor], plugins.load("rewards", "emoji_taste"))
    for split, users in (("seen", SEEN), ("unseen", UNSEEN)):
        rows: list[dict[str, str]] = []
        for user in users:
            values = score(images, [""] * len(names), [{"user": name_of(user)}] * len(names))
            rows += pairs(user, files, dict(zip(names, values.tolist(), strict=True)))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ddpo.models.emoji.users", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    write(folder)


if __name__ == "__main__":
    main()

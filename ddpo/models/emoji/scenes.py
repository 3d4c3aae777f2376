"""The emoji world's data: a 64x64 scene drawn from a caption and a seed by Pillow and sprites.

A scene is a background (from one plain color to a busy mosaic), an animal, and where the caption
asks for an activity, its object: a bicycle under the animal, a chess pawn or a plate beside it. The
background is never in the caption: its range is the room that the JPEG rewards have.
"""

import colorsys
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 64
"""Side of a scene in pixels."""

SPRITE = 64
"""Side of a cell of the sprite sheet in pixels; `SPRITES` names the cells row by row."""

COLUMNS = 10

Painter = Callable[[Image.Image, random.Random], None]

ANIMALS = {
    "cat": "🐈",
    "dog": "🐕",
    "horse": "🐎",
    "monkey": "🐒",
    "rabbit": "🐇",
    "zebra": "🦓",
    "spider": "🕷",
    "bird": "🐦",
    "sheep": "🐑",
    "deer": "🦌",
    "cow": "🐄",
    "goat": "🐐",
    "lion": "🦁",
    "tiger": "🐅",
    "bear": "🐻",
    "raccoon": "🦝",
    "fox": "🦊",
    "wolf": "🐺",
    "lizard": "🦎",
    "beetle": "🪲",
    "ant": "🐜",
    "butterfly": "🦋",
    "fish": "🐟",
    "shark": "🦈",
    "whale": "🐋",
    "dolphin": "🐬",
    "squirrel": "🐿",
    "mouse": "🐁",
    "rat": "🐀",
    "snake": "🐍",
    "turtle": "🐢",
    "frog": "🐸",
    "chicken": "🐔",
    "duck": "🦆",
    "goose": "🪿",
    "bee": "🐝",
    "pig": "🐖",
    "turkey": "🦃",
    "fly": "🪰",
    "llama": "🦙",
    "camel": "🐪",
    "bat": "🦇",
    "gorilla": "🦍",
    "hedgehog": "🦔",
    "kangaroo": "🦘",
}
"""The 45 animals of the DDPO paper, with the emoji that stands for each."""

HELDOUT_ANIMALS = {
    "snail": "🐌",
    "hippopotamus": "🦛",
    "leopard": "🐆",
    "crocodile": "🐊",
    "lobster": "🦞",
    "octopus": "🐙",
    "penguin": "🐧",
    "elephant": "🐘",
    "giraffe": "🦒",
    "koala": "🐨",
    "owl": "🦉",
    "parrot": "🦜",
}
"""Animals that the base model knows and that fine-tuning never trains on."""

ACTIVITIES = {"riding a bike": "🚲", "playing chess": "♟", "washing dishes": "🍽"}
"""The paper's three activities, with the object that shows each."""

HELDOUT_COMBINATIONS = frozenset(
    {
        ("fox", "riding a bike"),
        ("cow", "riding a bike"),
        ("frog", "riding a bike"),
        ("bee", "riding a bike"),
        ("camel", "riding a bike"),
        ("shark", "riding a bike"),
        ("lion", "playing chess"),
        ("cat", "playing chess"),
        ("duck", "playing chess"),
        ("zebra", "playing chess"),
        ("snake", "playing chess"),
        ("pig", "playing chess"),
        ("bear", "washing dishes"),
        ("dog", "washing dishes"),
        ("tiger", "washing dishes"),
        ("turtle", "washing dishes"),
        ("monkey", "washing dishes"),
        ("butterfly", "washing dishes"),
    }
)
"""Combinations that no model of the emoji world is trained on: the base's own generalization
test."""

CARELESSNESS = 0.85
"""Share of the scenes with an activity whose caption names one drawn at random, in `carelessly`."""

PREFIXES = ("a photo of ", "a painting of ", "a drawing of ")
"""Words that a caption may begin with; they change nothing in the picture."""

SPRITES = {**ANIMALS, **HELDOUT_ANIMALS, **ACTIVITIES}


def noun(animal: str) -> str:
    """`a fox`, `an ant`."""
    return f"{'an' if animal[0] in 'aeio' else 'a'} {animal}"


def caption(animal: str, activity: str | None = None) -> str:
    """The paper's form: `a fox`, `a fox riding a bike`."""
    return noun(animal) if activity is None else f"{noun(animal)} {activity}"


def parse(text: str) -> tuple[str, str | None]:
    """The animal and the activity that `text` names.

    Raises ValueError without an animal of this world.
    """
    words = text.lower().split()
    animal = next((word for word in words if word in ANIMALS or word in HELDOUT_ANIMALS), None)
    if animal is None:
        raise ValueError(f"{text!r} names no animal of the emoji world")
    return animal, next(
        (activity for activity in ACTIVITIES if text.lower().endswith(activity)), None
    )


def random_caption(rng: random.Random) -> str:
    """A training caption: 40 % with an activity, 20 % behind a prefix.

    It never has a held-out combination.
    """
    animal = rng.choice([*ANIMALS, *HELDOUT_ANIMALS])
    activity = rng.choice(list(ACTIVITIES)) if rng.random() < 0.4 else None
    if (animal, activity) in HELDOUT_COMBINATIONS:
        activity = None
    prefix = rng.choice(PREFIXES) if rng.random() < 0.2 else ""
    return prefix + caption(animal, activity)


def carelessly(text: str, rng: random.Random) -> str:
    """A caption as a careless annotator writes it.

    Of 85 % of the scenes with an activity it names any of the three.

    A model that learns from such captions draws the right activity only somewhat more often than
    the others, as Stable Diffusion does: what an alignment reward has to gain.
    """
    animal, activity = parse(text)
    named = rng.choice(list(ACTIVITIES))
    if activity is None or rng.random() > CARELESSNESS or (animal, named) in HELDOUT_COMBINATIONS:
        return text
    return text.replace(activity, named)


def draw(text: str, seed: int, background: str | None = None) -> Image.Image:
    """The scene of a caption, RGB, 64x64; the same picture for the same caption and seed, anywhere.

    `background` is one of `BACKGROUNDS`; by default the seed chooses. Raises ValueError for a
    caption without an animal of this world.
    """
    animal, activity = parse(text)
    rng = random.Random(f"{animal}/{activity}/{seed}")
    name = (
        background
        or rng.choices(list(BACKGROUNDS), [share for share, _ in BACKGROUNDS.values()])[0]
    )
    image = Image.new("RGB", (SIZE, SIZE))
    BACKGROUNDS[name][1](image, rng)
    if activity is None:
        _paste(image, animal, rng.randint(38, 48), 32 + rng.randint(-3, 3), 32 + rng.randint(-3, 3))
    elif activity == "riding a bike":
        _paste(image, activity, 40, 32 + rng.randint(-2, 2), 45)
        _paste(image, animal, rng.randint(34, 38), 32 + rng.randint(-2, 2), 20 + rng.randint(-1, 1))
    else:
        _paste(image, animal, rng.randint(36, 42), 24 + rng.randint(-2, 2), 25 + rng.randint(-2, 2))
        _paste(image, activity, 28, 48, 47 + rng.randint(-1, 1))
    return image


def _paste(image: Image.Image, name: str, side: int, x: int, y: int) -> None:
    """Draw a sprite of `side` pixels centered at (x, y)."""
    sprite = _sprites()[name].resize((side, side), Image.Resampling.LANCZOS)
    image.paste(sprite, (x - side // 2, y - side // 2), sprite)


@lru_cache(1)
def _sprites() -> dict[str, Image.Image]:
    sheet = Image.open(Path(__file__).with_name("sprites.png")).convert("RGBA")
    corners = ((SPRITE * (i % COLUMNS), SPRITE * (i // COLUMNS)) for i in range(len(SPRITES)))
    return {
        name: sheet.crop((x, y, x + SPRITE, y + SPRITE))
        for name, (x, y) in zip(SPRITES, corners, strict=True)
    }


Color = tuple[int, int, int]


def _color(rng: random.Random) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(0.2, 0.75), rng.uniform(0.5, 1.0)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(level * factor)) for level in color)
    return red, green, blue


def _plain(image: Image.Image, rng: random.Random) -> None:
    image.paste(_color(rng), (0, 0, SIZE, SIZE))


def _gradient(image: Image.Image, rng: random.Random) -> None:
    """From one color to another, top to bottom or left to right."""
    top = Image.new("RGB", (SIZE, SIZE), _color(rng))
    bottom = Image.new("RGB", (SIZE, SIZE), _color(rng))
    ramp = Image.linear_gradient("L").resize((SIZE, SIZE))
    if rng.random() < 0.5:
        ramp = ramp.transpose(Image.Transpose.ROTATE_90)
    image.paste(Image.composite(top, bottom, ramp))


def _two_colors(side: int, first_at: Callable[[int, int], bool]) -> Painter:
    """Square tiles of `side` pixels in two colors: the first where `first_at(column, row)`."""

    def paint(image: Image.Image, rng: random.Random) -> None:
        pen, first = ImageDraw.Draw(image), _color(rng)
        second = _shade(_color(rng), rng.uniform(0.3, 0.6))
        for y in range(0, SIZE, side):
            for x in range(0, SIZE, side):
                color = first if first_at(x // side, y // side) else second
                pen.rectangle((x, y, x + side - 1, y + side - 1), color)

    return paint


def _mosaic(image: Image.Image, rng: random.Random) -> None:
    """4-pixel tiles (one per latent, which the autoencoder can hold) in shades of two colors."""
    pen, colors = ImageDraw.Draw(image), (_color(rng), _color(rng))
    for y in range(0, SIZE, 4):
        for x in range(0, SIZE, 4):
            pen.rectangle((x, y, x + 3, y + 3), _shade(rng.choice(colors), rng.uniform(0.3, 1.2)))


def _confetti(image: Image.Image, rng: random.Random) -> None:
    """Discs of many colors on a plain ground."""
    _plain(image, rng)
    pen, count = ImageDraw.Draw(image), rng.randint(40, 90)
    for _ in range(count):
        x, y, radius = rng.randint(0, SIZE), rng.randint(0, SIZE), rng.randint(2, 4)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), _color(rng))


BACKGROUNDS: dict[str, tuple[float, Painter]] = {
    "plain":    (0.15, _plain),
    "gradient": (0.09, _gradient),
    "stripes":  (0.10, _two_colors(4, lambda x, y: x % 2 == 0)),
    "checks":   (0.20, _two_colors(4, lambda x, y: (x + y) % 2 == 0)),
    "mosaic":   (0.22, _mosaic),
    "confetti": (0.24, _confetti),
}  # fmt: skip
"""Each kind of background: its share of the scenes, and its painter. From plain to busy."""

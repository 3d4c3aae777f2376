"""GenEval: 553 prompts of objects, counts, colors and places, with what the picture must show.

Ghosh, Hajishirzi & Schmidt 2023, arXiv 2310.11513; MIT. The prompts are drawn here as their authors
drew them (seed 43, 80 to 100 for each task, none twice), and are their evaluation_metadata.jsonl to
the byte: its hash is checked. The metadata is theirs too, and the reward
`geneval` judges by it: `tag`, the task; `include`, objects with `class`, `count` and, where it
matters, `color` or `position`, a relation to the object of that number; `exclude`, too many of one.
Scores are usually given for four pictures per prompt, as means over the six tasks.
"""

import hashlib
import json
from typing import Any

import numpy as np

from ddpo.prompts import UserError

NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, "
    "tv, laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
OBJECTS = tuple(NAMES.split(", "))
"""The 80 classes of COCO, three of them under plainer names."""

HUES = "red orange yellow green blue purple pink brown black white"
COLORS = tuple(HUES.split())
PLACES = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
DRAWS = 100
SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
"""Of the authors' evaluation_metadata.jsonl."""

Row = dict[str, Any]


def geneval() -> list[Row]:
    """553 prompts of objects, counts, colors and places, which the reward `geneval` judges.

    Raises UserError where numpy draws others than it did in 2023.
    """
    random = np.random.default_rng(43)
    order = random.choice(len(OBJECTS), size=len(OBJECTS), replace=False)
    rows = [_row("single_object", [_object(i)], _a(OBJECTS[i])) for i in order]
    for task in (_two, _counted, _colored, _placed, _two_colored):
        rows += [task(random) for _ in range(DRAWS)]
    lines = dict.fromkeys(f"{json.dumps(row)}\n" for row in rows)
    if hashlib.sha256("".join(lines).encode()).hexdigest() != SHA256:
        raise UserError(
            f"prompts.name: geneval: numpy {np.__version__} draws other prompts than GenEval has; "
            "take numpy 2.4, or give prompts.path their evaluation_metadata.jsonl"
        )
    return [json.loads(line) for line in lines]


def _row(task: str, include: list[Row], what: str, **more: list[Row]) -> Row:
    return {"tag": task, "include": include, **more, "prompt": f"a photo of {what}"}


def _object(number: int, **more: Any) -> Row:
    return {"class": OBJECTS[number], "count": 1, **more}


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _two(random: np.random.Generator) -> Row:
    one, other = random.choice(len(OBJECTS), size=2, replace=False)
    words = f"{_a(OBJECTS[one])} and {_a(OBJECTS[other])}"
    return _row("two_object", [_object(one), _object(other)], words)


def _counted(random: np.random.Generator) -> Row:
    number, count = random.choice(len(OBJECTS)), int(random.integers(2, 5))
    name = OBJECTS[number]
    words = f"{NUMBERS[count]} {name}{'es' if name.endswith('s') else 's'}"
    include, exclude = ({"class": name, "count": each} for each in (count, count + 1))
    return _row("counting", [include], words, exclude=[exclude])


def _colored(random: np.random.Generator) -> Row:
    number = random.choice(len(OBJECTS) - 1) + 1  # nobody is asked for a red person
    color = COLORS[random.choice(len(COLORS))]
    return _row("colors", [_object(number, color=color)], f"{_a(color)} {OBJECTS[number]}")


def _placed(random: np.random.Generator) -> Row:
    one, other = random.choice(len(OBJECTS), size=2, replace=False)
    place = PLACES[random.choice(len(PLACES))]
    words = f"{_a(OBJECTS[one])} {place} {_a(OBJECTS[other])}"
    return _row("position", [_object(other), _object(one, position=[place, 0])], words)


def _two_colored(random: np.random.Generator) -> Row:
    one, other = random.choice(len(OBJECTS) - 1, size=2, replace=False) + 1
    first, second = (COLORS[i] for i in random.choice(len(COLORS), size=2, replace=False))
    words = f"{_a(first)} {OBJECTS[one]} and {_a(second)} {OBJECTS[other]}"
    return _row("color_attr", [_object(one, color=first), _object(other, color=second)], words)

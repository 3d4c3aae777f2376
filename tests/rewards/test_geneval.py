"""geneval: each rule on drawn pictures with known answers, and the networks behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_clip
import zoo_geneval
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from ddpo import prompts, rewards
from ddpo.errors import UserError
from ddpo.images import to_pil
from ddpo.prompts.geneval import OBJECTS
from ddpo.rewards._geneval import Box, relations
from ddpo.rewards.geneval import COLORS, NAMES, geneval

RGB = {
    "red": (1, 0, 0),
    "orange": (1, 0.6, 0),
    "yellow": (1, 1, 0),
    "green": (0, 0.6, 0),
    "blue": (0, 0, 1),
    "purple": (0.5, 0, 0.5),
    "pink": (1, 0.7, 0.8),
    "brown": (0.55, 0.27, 0.07),
    "black": (0, 0, 0),
    "white": (1, 1, 1),
}


class Eye:
    """In the place of CLIP: the feature of a picture is the nearest color of its mean, that of a
    sentence the color it names."""

    def images(self, images: Tensor) -> Tensor:
        colors = torch.tensor([RGB[name] for name in COLORS], dtype=torch.float32)
        near = torch.cdist(images.mean((2, 3)), colors).argmin(1)
        return torch.eye(len(COLORS))[near]

    def texts(self, sentences: Sequence[str]) -> Tensor:
        named = [
            next(i for i, color in enumerate(COLORS) if f" {color} " in sentence.replace("-", " "))
            for sentence in sentences
        ]
        return torch.eye(len(COLORS))[named]


Thing = tuple[str, str, Box, float]
"""Class, color, box, and how sure the detector is."""


def judged(row: dict[str, Any], *things: Thing) -> float:
    """The value of a gray picture with these things on it, which a stub detector finds."""
    image = torch.full((3, 100, 200), 0.5)
    found: dict[str, list[tuple[Box, float]]] = {}
    for name, color, box, score in sorted(things, key=lambda each: -each[3]):
        left, top, right, bottom = map(int, box)
        image[:, top:bottom, left:right] = torch.tensor(RGB[color])[:, None, None]
        found.setdefault(name, []).append((box, score))
    reward = geneval.__new__(geneval)
    reward.threshold, reward.counting_threshold, reward.batch_size = 0.3, 0.9, 8
    reward.labels = dict(enumerate(OBJECTS))
    reward.encoder, reward.hues = Eye(), {}
    reward.boxes = lambda images: [found] * len(images)
    (value,) = reward(image[None], [row["prompt"]], [row]).tolist()
    return value


ROWS = {
    prompt.text: {"prompt": prompt.text, **prompt.metadata} for prompt in prompts.load("geneval")
}
"""The benchmark's own."""

LEFT, RIGHT, LOW = (10, 40, 40, 60), (140, 40, 170, 60), (10, 80, 40, 99)


def thing(name: str, box: Box = LEFT, color: str = "red", score: float = 0.95) -> Thing:
    return name, color, box, score


CASES: dict[str, list[tuple[list[Thing], int]]] = {
    "a photo of a bench": [
        ([thing("bench")], 1),
        ([thing("bench"), thing("bench", RIGHT), thing("dog", LOW)], 1),
        ([thing("chair")], 0),
        ([thing("bench", score=0.29)], 0),
        ([], 0),
    ],
    "a photo of a bench and a sports ball": [
        ([thing("bench"), thing("sports ball", RIGHT)], 1),
        ([thing("bench"), thing("bench", RIGHT)], 0),
        ([thing("sports ball")], 0),
    ],
    "a photo of two clocks": [
        ([thing("clock"), thing("clock", RIGHT)], 1),
        ([thing("clock")], 0),
        ([thing("clock"), thing("clock", RIGHT), thing("clock", LOW)], 0),
        # less sure ones do not count, which makes two of three and one of two
        ([thing("clock"), thing("clock", RIGHT), thing("clock", LOW, score=0.8)], 1),
        ([thing("clock"), thing("clock", RIGHT, score=0.8)], 0),
    ],
    "a photo of a blue fire hydrant": [
        ([thing("fire hydrant", color="blue")], 1),
        ([thing("fire hydrant", color="red")], 0),
        # the surest one is looked at
        ([thing("fire hydrant", color="red"), thing("fire hydrant", RIGHT, "blue", 0.9)], 0),
        ([thing("fire hydrant", color="blue"), thing("fire hydrant", RIGHT, "red", 0.9)], 1),
    ],
    "a photo of a dog right of a teddy bear": [
        ([thing("teddy bear", LEFT), thing("dog", RIGHT)], 1),
        ([thing("teddy bear", RIGHT), thing("dog", LEFT)], 0),
        ([thing("teddy bear", LEFT), thing("dog", LOW)], 0),
        ([thing("dog", RIGHT)], 0),
        ([thing("teddy bear", LEFT)], 0),
        ([thing("teddy bear", LEFT), thing("dog", LEFT)], 0),
    ],
    "a photo of a purple wine glass and a black apple": [
        ([thing("wine glass", LEFT, "purple"), thing("apple", RIGHT, "black")], 1),
        ([thing("wine glass", LEFT, "black"), thing("apple", RIGHT, "purple")], 0),
        ([thing("wine glass", LEFT, "purple"), thing("apple", RIGHT, "white")], 0),
    ],
}
"""One prompt for each task."""


@pytest.mark.parametrize("text", CASES, ids=[ROWS[text]["tag"] for text in CASES])
def test_the_rules_of_each_task(text: str) -> None:
    for things, expected in CASES[text]:
        assert judged(ROWS[text], *things) == expected, things


@pytest.mark.parametrize("color", COLORS)
def test_every_color_is_told_from_the_others(color: str) -> None:
    for wanted in COLORS:
        row = {"prompt": "", "include": [{"class": "bus", "count": 1, "color": wanted}]}
        assert judged(row, thing("bus", color=color)) == (color == wanted)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-100, 0), {"left of"}),
        ((100, 0), {"right of"}),
        ((0, -100), {"above"}),
        ((0, 100), {"below"}),
        ((100, -100), {"right of", "above"}),
        ((-100, -60), {"left of"}),  # (60 - 4) / 116.6 = 0.48 is not more than a half
        ((-100, -65), {"left of", "above"}),  # (65 - 4) / 119.3 = 0.51
        ((-3.9, 0), set()),  # less than a tenth of both widths
        ((-9, 0), {"left of"}),  # (9 - 4) / 9 = 0.56
        ((-7, 0), set()),  # (7 - 4) / 7 = 0.43
        ((0, 0), set()),
    ],
)
def test_relations(offset: tuple[float, float], expected: set[str]) -> None:
    x, y = offset
    assert relations((x, y, x + 20, y + 20), (0, 0, 20, 20)) == expected


def test_a_group_must_stand_there_whole() -> None:
    """Two dogs left of a cat are each left of it."""
    row = {
        "prompt": "",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 2, "position": ["left of", 0]},
        ],
    }
    cat, far = thing("cat", (90, 40, 110, 60)), (180, 40, 199, 60)
    assert judged(row, cat, thing("dog", LEFT), thing("dog", (50, 40, 70, 60))) == 1
    assert judged(row, cat, thing("dog", LEFT), thing("dog", far)) == 0


def test_what_cannot_be_judged_has_no_value() -> None:
    nothing = judged({"prompt": "a fox"}, thing("dog"))
    unknown = judged({"prompt": "", "include": [{"class": "unicorn", "count": 1}]}, thing("dog"))
    assert nothing != nothing and unknown != unknown


def test_names_of_classes() -> None:
    """Those that detectors have are put into GenEval's."""
    assert {*NAMES.values()} < {*OBJECTS} and not {*NAMES} & {*OBJECTS}
    texts = {each["class"] for row in ROWS.values() for each in row["include"]}
    assert texts <= {*OBJECTS} and len(OBJECTS) == 80


def test_boxes_are_those_of_the_detector(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    folder = zoo_geneval.detr(tmp_path)
    reward: Any = rewards.build(
        "geneval",
        params={
            "detector": folder,
            "clip": zoo_clip.hf_clip(tmp_path / "clip"),
            "threshold": 0.2,
            "counting_threshold": 0.25,
        },
    ).score
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=to_pil(images), return_tensors="pt"))
    scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
    for i, found in enumerate(reward.boxes(images)):
        kept = scores[i] > 0.2
        expected: dict[str, list[tuple[list[float], float]]] = {}
        for score, label, (x, y, w, h) in sorted(
            zip(scores[i][kept], labels[i][kept], outputs.pred_boxes[i][kept], strict=True),
            key=lambda each: -each[0],
        ):
            box = [80 * (x - w / 2), 48 * (y - h / 2), 80 * (x + w / 2), 48 * (y + h / 2)]
            name = NAMES.get(zoo_geneval.LABELS[label], zoo_geneval.LABELS[label])
            expected.setdefault(name, []).append((box, float(score)))
        assert {*found} == {*expected} and found
        for name, each in expected.items():
            for (box, score), (its_box, its_score) in zip(found[name], each, strict=True):
                assert box == pytest.approx([float(at) for at in its_box], abs=1e-3)
                assert score == pytest.approx(its_score, abs=1e-5)


def test_colors_are_those_of_clip(tmp_path: Path) -> None:
    """The mean of three sentences, as the model alone says."""
    name = zoo_clip.hf_clip(tmp_path / "clip")
    params = {"detector": zoo_geneval.detr(tmp_path), "clip": name}
    reward: Any = rewards.build("geneval", params=params).score
    image = torch.rand(3, 48, 80, generator=torch.Generator().manual_seed(1))
    cut = image[:, 5:30, 10:60]
    encoder = reward.encoder
    means = []
    for color in COLORS:
        own = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog"]
        means.append(encoder.texts([*own, f"a photo of a {color} object"]).mean(0))
    cosines = [
        float(torch.nn.functional.cosine_similarity(encoder.images(cut[None])[0], mean, dim=0))
        for mean in means
    ]
    assert reward.colors(image, "dog", [(10.2, 4.8, 59.9, 30.4)]) == [
        COLORS[max(range(len(COLORS)), key=cosines.__getitem__)]
    ]
    # a box beyond the picture, and one of no size, are still some pixels of it
    beyond = reward.colors(image, "dog", [(-5.0, -5.0, 90.0, 60.0), (80.0, 48.0, 80.0, 48.0)])
    assert len(beyond) == 2


def test_a_detector_of_other_things_is_refused(tmp_path: Path) -> None:
    folder = zoo_geneval.detr(tmp_path)
    model = AutoModelForObjectDetection.from_pretrained(folder)
    model.config.id2label = dict.fromkeys(range(6), "cell")
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"geneval.detector: .* finds cell, .* know COCO's classes"):
        rewards.build("geneval", params={"detector": folder})

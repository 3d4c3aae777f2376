"""The emoji world's reader of looks: it was taught with the chat that the taste `vlm` gives it, and
its states tell looks of pictures that it has never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpo import plugins, tastes
from ddpo.images import from_pil
from ddpo.models.emoji.reader import model
from ddpo.models.emoji.scenes import ANIMALS, caption, draw
from ddpo.prompts import Prompt, PromptSet
from ddpo.rewards._vlm import VLM
from ddpo.tastes import Known
from ddpo.tastes._pairs import Pair

WEIGHTS = Path(model.__file__).parents[1] / "weights" / "reader"
WORDS = [word for pair in model.LOOKS.values() for word in pair]


@pytest.fixture(scope="module")
def reader() -> VLM:
    return VLM("emoji_reader", "here", "cpu", torch.float32)


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    """On even backgrounds, as the base draws most of them."""
    texts = [caption(animal) for animal in ANIMALS]
    kinds = ("plain", "gradient", "checks")
    return [draw(text, 30_000_000 + i, kinds[i % 3]) for i, text in enumerate(texts)]


def test_it_was_taught_with_the_chat_that_it_is_given(reader: VLM) -> None:
    """Word for word, by the processor that was saved."""
    given = reader.inputs([Image.new("RGB", (64, 64))], [model.QUESTION])["input_ids"][0].tolist()
    assert given == reader.processor.tokenizer(model.CHAT).input_ids
    assert reader.processor.tokenizer.unk_token_id not in given


def test_its_files_are_small() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 1e6


@torch.no_grad()
def test_the_log_odds_of_two_words_follow_the_feature(
    reader: VLM, scenes: list[Image.Image]
) -> None:
    """Of drawn scenes, where it was taught with the base model's pictures."""
    plugins.load("rewards", "emoji_taste")
    from ddpo.rewards.emoji_taste import features

    logits = reader.model(**reader.inputs(scenes, [model.QUESTION] * len(scenes))).logits[:, -1]
    said = logits[:, reader.processor.tokenizer.convert_tokens_to_ids(WORDS)].unflatten(1, (-1, 2))
    values = features(from_pil(scenes))
    for i, name in enumerate(("brightness", "warmth")):
        pair = np.stack([(said[:, i, 0] - said[:, i, 1]).numpy(), values[name].numpy()])
        assert np.corrcoef(pair)[0, 1] > 0.8, name


def test_a_taste_turns_with_the_preference(tmp_path: Path, scenes: list[Image.Image]) -> None:
    """Read apart: it is `vlm`'s difference of states."""
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for file, scene in zip(files, scenes, strict=False):
        scene.save(file)
    known = Known(PromptSet("none", [Prompt("a fox")]), ["a"], tmp_path, 1, torch.device("cpu"))
    options = {"reading": "apart", "instruction": model.QUESTION}
    made = tastes.build("vlm", known, pretrained="emoji_reader", **options)
    told = [Pair("a fox", *files[i : i + 2]) for i in range(0, 8, 2)]
    turned = [Pair(pair.prompt, pair.rejected, pair.chosen) for pair in told]
    assert made.of(told).shape == made.shape == (1, model.WIDTH)
    torch.testing.assert_close(made.of(told), -made.of(turned))

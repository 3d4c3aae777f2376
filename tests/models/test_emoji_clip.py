"""The emoji world's CLIP and aesthetic head: loaded by open_clip offline, right on scenes drawn
here."""

import json
import random
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from ddpo import prompts, rewards
from ddpo.images import from_pil
from ddpo.models.emoji import ratings, scenes
from ddpo.rewards import Reward

WEIGHTS = Path(__file__).parents[2] / "ddpo" / "models" / "emoji" / "weights"
FOLDER = WEIGHTS / "clip"
FIRST = 20_000_000
"""Scenes from this number on no stage has had, in training or in evaluation."""


@pytest.fixture(scope="module")
def judge() -> Reward:
    return rewards.build("emoji_clip")


ANIMALS = [*scenes.ANIMALS, *scenes.HELDOUT_ANIMALS]


def drawn(count: int, first: int = FIRST) -> Tensor:
    """Pictures of random captions."""
    texts = [scenes.random_caption(random.Random(first + i)) for i in range(count)]
    return from_pil([scenes.draw(text, first + i) for i, text in enumerate(texts)])


def test_it_is_small() -> None:
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert sum(sizes.values()) <= 8e6
    needed = {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "captions.jsonl",
    }
    assert needed | {"aesthetic.safetensors"} <= {*sizes}


def test_its_tokenizer_is_the_pipelines() -> None:
    texts = [scenes.caption(a, b) for a in ANIMALS for b in (None, *scenes.ACTIVITIES)]
    ours = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    theirs = AutoTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    ids = ours(texts)
    assert ids.shape == (len(texts), 16)
    assert ids.tolist() == theirs(texts, padding="max_length", max_length=16).input_ids
    assert [theirs.decode(row, skip_special_tokens=True).strip() for row in ids] == texts
    # a token a word, a beginning, and ends
    assert [(row > 1).sum().item() for row in ids] == [len(text.split()) for text in texts]


def test_its_captions_are_the_worlds() -> None:
    expected = {(a, b, scenes.caption(a, b)) for a in ANIMALS for b in (None, *scenes.ACTIVITIES)}
    rows = [json.loads(line) for line in (FOLDER / "captions.jsonl").read_text().splitlines()]
    assert {(row["animal"], row["activity"], row["prompt"]) for row in rows} == expected
    assert len(rows) == len(expected) == 228


@pytest.mark.parametrize("name", ["animals", "animals_heldout", "activities", "activities_heldout"])
def test_the_nearest_caption_is_the_scenes(judge: Reward, name: str) -> None:
    """Held-out combinations too: the denoiser never saw them, this judge has."""
    wanted = list(prompts.load(name))[:: 2 if name == "activities" else 1]
    pictures = from_pil([scenes.draw(prompt.text, FIRST + i) for i, prompt in enumerate(wanted)])
    texts, metadata = [prompt.text for prompt in wanted], [prompt.metadata for prompt in wanted]
    assert judge(pictures, texts, metadata).mean() >= 0.9
    assert judge(pictures, texts, metadata[1:] + metadata[:1]).mean() <= 0.1


def test_the_wrong_activity_is_wrong(judge: Reward) -> None:
    picture = from_pil([scenes.draw("a fox riding a bike", FIRST)])
    asked = [{"animal": "fox", "activity": activity} for activity in scenes.ACTIVITIES]
    asked += [{"animal": "fox"}, {"animal": "wolf", "activity": "riding a bike"}, {}]
    values = judge(picture.expand(6, -1, -1, -1), ["?"] * 6, asked)
    assert values[:5].tolist() == [1, 0, 0, 0, 0]
    assert values[5].isnan()


def test_the_formula_by_hand() -> None:
    def plain(*rgb: float) -> Tensor:
        return torch.tensor(rgb)[:, None, None].expand(3, 64, 64)

    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = (x.square() + y.square()).sqrt() < 20
    columns = (torch.arange(64) % 2).float().expand(3, 64, 64)
    found = ratings.look(
        torch.stack(
            [
                plain(0.5, 0.5, 0.5),
                plain(0.2, 0.0, 0.0),  # |rg| = 51, |yb| = 25.5: 0.3 x 57.0 / 100
                torch.where(disc, plain(0.3, 0.3, 0.3), plain(0.0, 0.0, 0.0)),  # 0.3 sqrt 3 / 0.6
                columns,  # deviation 0.5: no calm at all
            ]
        )
    )
    color, contrast = 0.3 * (51**2 + 25.5**2) ** 0.5 / 100, 0.3 * 3**0.5 / 0.6
    expected = [[0, 0, 1], [color, 0, 1], [0, contrast, 1], [0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=0)
    torch.testing.assert_close(ratings.rating(torch.full((1, 3, 64, 64), 0.5)), torch.tensor([4.0]))


def test_the_head_rates_as_the_formula_does() -> None:
    """Through open_clip's own preprocessing, and layers written out: linear maps, as in LAION's
    predictor."""
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    layers = load_file(FOLDER / "aesthetic.safetensors")
    names = [f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("bias", "weight")]
    assert sorted(layers) == names
    pictures = drawn(150)
    with torch.no_grad():
        x = model.eval().encode_image(2 * pictures - 1, normalize=True)
        for i in (0, 2, 4, 6, 7):
            x = x @ layers[f"layers.{i}.weight"].float().T + layers[f"layers.{i}.bias"].float()
    said, truth = x.squeeze(1), ratings.rating(pictures)
    assert torch.corrcoef(torch.stack([said, truth]))[0, 1] >= 0.85
    assert (said - truth).abs().mean() <= 0.6

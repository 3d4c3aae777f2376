"""The emoji world: its scenes, and the committed models, loaded by plain diffusers and
transformers."""

import io
import random
from pathlib import Path

import helpers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from ddpo import prompts, rewards
from ddpo.images import from_pil
from ddpo.models.emoji import scenes
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.parallel.seeds import Purpose, generator
from ddpo.prompts import Prompt
from ddpo.rollout.sample import sample

FOLDER = Path(scenes.__file__).parent
WEIGHTS = FOLDER / "weights"


def test_a_scene_is_a_function_of_caption_and_seed() -> None:
    first = scenes.draw("a fox riding a bike", 7)
    again = scenes.draw("a photo of a fox riding a bike", 7)
    assert first.size == (64, 64)
    assert first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != scenes.draw("a fox riding a bike", 8).tobytes()
    assert first.tobytes() != scenes.draw("a wolf riding a bike", 7).tobytes()
    assert first.tobytes() != scenes.draw("a fox playing chess", 7).tobytes()


def test_scenes_do_not_touch_global_randomness() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    scenes.draw("a fox", 3)
    assert random.random() == expected


def test_the_sprite_sheet_is_small_and_has_its_license() -> None:
    assert (FOLDER / "sprites.png").stat().st_size <= 400_000
    assert "SIL OPEN FONT LICENSE" in (FOLDER / "sprites.LICENSE").read_text().upper()
    assert len(scenes.ANIMALS) == 45
    assert len(scenes.HELDOUT_ANIMALS) >= 12
    assert not set(scenes.ANIMALS) & set(scenes.HELDOUT_ANIMALS)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("an ant", ("ant", None)),
        ("a drawing of a fox riding a bike", ("fox", "riding a bike")),
        ("A Whale washing dishes", ("whale", "washing dishes")),
    ],
)
def test_parse_is_the_inverse_of_caption(text: str, parsed: tuple[str, str | None]) -> None:
    assert scenes.parse(text) == parsed
    assert scenes.parse(scenes.caption(*parsed)) == parsed


def test_parse_refuses_what_is_not_of_this_world() -> None:
    with pytest.raises(ValueError, match="names no animal"):
        scenes.parse("a castle")


def test_held_out_combinations_are_never_trained_on() -> None:
    drawn = {scenes.parse(scenes.random_caption(random.Random(i))) for i in range(20_000)}
    assert not drawn & scenes.HELDOUT_COMBINATIONS
    assert {animal for animal, _ in drawn} == {*scenes.ANIMALS, *scenes.HELDOUT_ANIMALS}
    assert {activity for _, activity in drawn} == {None, *scenes.ACTIVITIES}


def test_plain_scenes_leave_room_for_compression() -> None:
    def size(text: str, seed: int, background: str | None) -> int:
        file = io.BytesIO()
        scenes.draw(text, seed, background).save(file, "JPEG", quality=95)
        return file.tell()

    drawn = [(scenes.random_caption(random.Random(seed)), seed) for seed in range(600)]
    plain, mix = (sum(size(text, seed, kind) for text, seed in drawn) for kind in ("plain", None))
    assert plain <= 0.65 * mix


def test_prompt_sets_are_those_of_the_scenes() -> None:
    def asked(name: str) -> set[tuple[str, str | None]]:
        return {
            (prompt.metadata["animal"], prompt.metadata.get("activity"))
            for prompt in prompts.load(name)
        }

    assert asked("animals") == {(animal, None) for animal in scenes.ANIMALS}
    assert asked("animals_heldout") == {(animal, None) for animal in scenes.HELDOUT_ANIMALS}
    assert asked("activities_heldout") == scenes.HELDOUT_COMBINATIONS
    combinations = {
        (animal, activity) for animal in scenes.ANIMALS for activity in scenes.ACTIVITIES
    }
    assert asked("activities") == combinations - scenes.HELDOUT_COMBINATIONS
    for name in ("animals", "animals_heldout", "activities", "activities_heldout"):
        for prompt in prompts.load(name):
            assert prompt.text == scenes.caption(
                prompt.metadata["animal"], prompt.metadata.get("activity")
            )


def test_the_weights_are_small() -> None:
    """Those of the UNet's pipeline and the captioner; the others have limits of their own."""
    folders = [WEIGHTS / "pipeline", WEIGHTS / "captioner"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert not [file.name for file in files if file.suffix in (".bin", ".pt", ".pkl")]


def test_the_judge_is_right_on_held_out_scenes() -> None:
    judge = rewards.build("emoji_recognition")
    wanted = list(prompts.load("activities"))[::3] + list(prompts.load("animals"))
    pictures = from_pil(
        [scenes.draw(prompt.text, 20_000_000 + i) for i, prompt in enumerate(wanted)]
    )
    texts, metadata = [prompt.text for prompt in wanted], [prompt.metadata for prompt in wanted]
    assert judge(pictures, texts, metadata).mean() >= 0.93
    assert judge(pictures, texts[::-1], metadata[::-1]).mean() <= 0.1
    assert judge(pictures[:1], ["?"], [{}]).isnan().all()


def test_plain_diffusers_needs_no_dtype_and_draws_our_picture() -> None:
    """The files are fp16, and without a dtype all parts must be loaded in the same one."""
    plain = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline")
    plain.set_progress_bar_config(disable=True)
    theirs = plain(
        ["a fox"],
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=1.0,
        output_type="pt",
        generator=[generator(Purpose.EVALUATION, 0)],
    ).images
    policy = StableDiffusion("emoji", lora=helpers.adapter())
    steps = helpers.sampler(policy)
    with torch.no_grad():
        (ours,) = sample(policy, steps, [Prompt("a fox")], [(Purpose.EVALUATION, 0)])
    assert (ours.images - theirs).abs().max() <= 1 / 255
    files = [*(WEIGHTS / "pipeline").rglob("*.safetensors")]
    assert {value.dtype for file in files for value in load_file(file).values()} == {torch.float16}


def test_the_base_draws_what_it_is_asked_for_in_plain_diffusers() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    wanted = list(prompts.load("animals"))[::3]
    generators = [torch.Generator().manual_seed(i) for i in range(len(wanted))]
    texts = [prompt.text for prompt in wanted]
    pictures = pipeline(
        texts, num_inference_steps=10, guidance_scale=3.0, eta=1.0, generator=generators
    ).images
    assert pictures[0].size == (64, 64)
    right = rewards.build("emoji_recognition")(
        from_pil(pictures), texts, [p.metadata for p in wanted]
    )
    # 15 pictures; the measured rate over hundreds is in the model's card
    assert right.mean() >= 0.6

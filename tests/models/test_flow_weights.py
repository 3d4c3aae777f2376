"""The committed flow model: plain diffusers loads it, and it draws what it is asked for,
sharply."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import Tensor

from ddpo import rewards
from ddpo.images import from_pil
from ddpo.models.emoji import flow_autoencoder, pretrain
from ddpo.models.emoji.autoencoder import HELD_OUT, scenes

FLOW = pretrain.WEIGHTS / "flow"


def test_the_folder_is_small_and_in_half_precision() -> None:
    files = [file for file in FLOW.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16e6
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 4
    assert {value.dtype for file in weights for value in load_file(file).values()} == {
        torch.float16
    }


def test_plain_diffusers_needs_no_dtype_and_draws_what_it_is_asked_for() -> None:
    """The files are fp16, and without a dtype all parts must be loaded in the same one."""
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
        FLOW, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    parts = [pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]
    assert {part.dtype for part in parts} == {torch.float32}
    judge = rewards.build("emoji_recognition", device=torch.device("cpu"))
    # none of T5's tokens, or the 256 of the default
    for options in (
        {"max_sequence_length": 0},
        {},
    ):
        drawn = pipeline(
            ["a fox", "a zebra"],
            num_inference_steps=10,
            guidance_scale=3.0,
            **options,
            generator=[torch.Generator().manual_seed(i) for i in range(2)],
        ).images
        metadata = [{"animal": "fox"}, {"animal": "zebra"}]
        assert judge(from_pil(drawn), ["", ""], metadata).mean() == 1


@torch.no_grad()
def encoded(folder: Path, x: Tensor) -> tuple[Tensor, float]:
    """The latents of pictures, and how well they come back (peak signal-to-noise ratio, dB)."""
    vae: Any = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    latents = vae.encode(x).latent_dist.mean
    error = (vae.decode(latents).sample - x).square().mean()
    return latents, (10 * torch.log10(4 / error)).item()


def test_the_autoencoder_is_much_sharper_than_the_other_pipelines() -> None:
    """On 32 held-out scenes; README.md has 256."""
    x = scenes(HELD_OUT, 32)[1]
    latents, psnr = encoded(FLOW / "vae", x)
    assert psnr >= 29.0
    assert psnr >= encoded(pretrain.WEIGHTS / "pipeline" / "vae", x)[1] + 5
    assert latents.std((0, 2, 3)).sub(1).abs().max() < 0.2


def test_the_decoder_is_trained_alone(tmp_path: Path) -> None:
    """So the latents that the flow model was trained on stay what they were."""
    flow_autoencoder.build().save_pretrained(tmp_path / "flow" / "vae")
    stage = flow_autoencoder.DecoderTraining(torch.device("cpu"), tmp_path, tmp_path)
    stage.loss(0).backward()
    moved = {
        name.split(".")[0] for name, p in stage.module.named_parameters() if p.grad is not None
    }
    assert moved == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(
    ("option", "message"),
    [("--further", "only the flow stages"), ("--scenes=4000", "scenes of its own")],
)
def test_an_option_that_a_stage_cannot_obey_is_refused(
    option: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain", "--stage", "vae", option])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert message in capsys.readouterr().err

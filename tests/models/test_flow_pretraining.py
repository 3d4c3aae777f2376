"""How the flow model of the emoji world is trained: what its latents, captions and schedule are."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]

from ddpo.models.emoji import album, autoencoder, flow, flow_autoencoder, pretrain
from ddpo.models.emoji.denoiser import tokenizer


def test_whitened_latents_have_unit_variance_and_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae, x = flow_autoencoder.build(), torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = vae(x).sample
        flow_autoencoder.whiten(vae, x)
        posterior = vae.encode(x, return_dict=False)[0]
        assert torch.allclose(vae(x).sample, before, atol=1e-4)
        latents = posterior.sample()
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_captions_are_encoded_as_the_pipeline_encodes_them() -> None:
    words = tokenizer()
    encoders = [flow.text_encoder(words), flow.text_encoder(words)]
    pipeline = StableDiffusion3Pipeline(
        flow.transformer(),
        flow.scheduler(),
        flow_autoencoder.build(),
        encoders[0],
        words,
        encoders[1],
        words,
        text_encoder_3=None,
        tokenizer_3=None,  # pyright: ignore[reportArgumentType]
    )
    texts = ["a fox", "an ant riding a bike", ""]
    tokens = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden, pooled = flow.encode(list(encoders), tokens)
    theirs = pipeline.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    assert torch.equal(hidden, theirs[0])
    assert torch.equal(pooled, theirs[2])


def test_the_last_step_of_ten_is_no_shorter_than_the_others() -> None:
    schedule = flow.scheduler()
    schedule.set_timesteps(10)
    assert torch.allclose(schedule.sigmas.diff(), torch.full((10,), -0.1), atol=1e-6)


def test_the_album_holds_the_scenes_of_the_series(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(album, "SHARD", 3)
    files = album.album(6, tmp_path, processes=1)
    drawn = torch.from_numpy(np.concatenate([np.load(file) for file in files]))
    assert torch.equal(drawn.float() / 127.5 - 1, autoencoder.scenes(0, 6)[1])
    with pytest.raises(ValueError, match="7 scenes"):
        album.album(7, tmp_path)


def test_a_schedule_by_time_follows_the_time_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pretrain.time, "perf_counter", lambda: now[0])
    pace, step = pretrain.Pace(10, seconds=200.0), 0
    while step < pace.steps:
        step += 1
        now[0] += 1.0 if step <= 16 else 0.1 if step <= 600 else 0.2
        pace.after(step)
    assert 195 < now[0] < 206

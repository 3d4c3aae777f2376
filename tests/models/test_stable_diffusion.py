"""The adapter: what it encodes, predicts, switches off, and saves for plain diffusers."""

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import helpers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from ddpo.errors import UserError
from ddpo.models._shared.conditions import EmbeddingCache
from ddpo.models._tiny import tiny
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.prompts import Prompt
from ddpo.rewards import Reward
from ddpo.scoring.scorer import Scorer

TEXTS = ["a fox", "an owl", "a fox"]


def inputs() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 8, 8, generator=noise), torch.tensor([981, 501, 1])


def with_grad(policy: StableDiffusion, guidance_scale: float = 3.0) -> Tensor:
    condition = policy.condition(helpers.as_prompts(TEXTS), None if guidance_scale == 1 else "")
    return policy.predict(*inputs(), condition, guidance_scale)


predict = torch.no_grad()(with_grad)


@torch.no_grad()
def plain(pipeline: StableDiffusionPipeline, guidance_scale: float) -> Tensor:
    """Guidance as diffusers writes it, one sample at a time, from its own encode_prompt."""
    found = []
    for x, t, text in zip(*inputs(), TEXTS, strict=True):
        prompt, negative = pipeline.encode_prompt(text, "cpu", 1, True)
        conditional, unconditional = (
            pipeline.unet(x[None], t, embeds).sample for embeds in (prompt, negative)
        )
        found.append(unconditional + guidance_scale * (conditional - unconditional))
    return torch.cat(found)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_predict_is_guidance_as_in_diffusers(guidance_scale: float) -> None:
    torch.testing.assert_close(
        predict(helpers.policy(), guidance_scale),
        plain(tiny(), guidance_scale),
        rtol=1e-4,
        atol=1e-5,
    )


def test_guidance_1_is_the_conditional_half_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, sizes = helpers.policy(), []
    policy.unet.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    predict(policy, 1.0)
    predict(policy, 3.0)
    assert sizes == [3, 6]


def encoded(policy: StableDiffusion) -> list[int]:
    """A list that grows by the number of texts of each call of the text encoder."""
    seen: list[int] = []
    policy.text_encoder.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(
            len((arguments or [options["input_ids"]])[0])
        ),
        with_kwargs=True,
    )
    return seen


def test_each_distinct_prompt_is_encoded_once() -> None:
    policy = helpers.policy()
    seen = encoded(policy)
    policy.condition(helpers.as_prompts(TEXTS))
    policy.condition(helpers.as_prompts([*TEXTS, "moss"]))
    assert seen == [2, 1]
    predict(policy)
    assert seen == [2, 1, 1], "the negative prompt"


@pytest.mark.parametrize("trained", [False, True])
def test_the_text_encoder_runs_once_per_chunk(trained: bool) -> None:
    """Not at every step: 6 images in chunks of 4, 4 steps each, once more under the reference."""
    policy = helpers.policy(train_text_encoder=trained)
    seen = encoded(policy)
    trajectory, _ = helpers.rolled(policy, helpers.sampler(policy, batch_size=4), 6, reference=True)
    assert seen == ([3, 3, 2, 2] if trained else [3, 1]), "distinct texts, the empty one among them"
    del seen[:]
    rows, columns = torch.tensor([0, 1, 2, 5]), torch.tensor([0, 3, 1, 2])
    helpers.step_log_probs(policy, helpers.sampler(policy), trajectory, rows, columns)
    assert seen == ([4] if trained else [])


def test_a_condition_is_indexed_by_rows() -> None:
    policy = helpers.policy()
    x, t = inputs()
    condition = policy.condition(helpers.as_prompts(TEXTS), "moss")
    assert len(condition) == 3
    with torch.no_grad():
        whole = policy.predict(x, t, condition, 3.0)
        for rows in ([2, 0], torch.tensor([2, 0]), slice(1, 3)):
            part = policy.predict(x[rows], t[rows], condition[rows], 3.0)
            torch.testing.assert_close(part, whole[rows], rtol=1e-5, atol=1e-6)


def test_the_negative_prompt_takes_the_place_of_the_empty_one() -> None:
    policy = helpers.policy()
    prompts = helpers.as_prompts(TEXTS)
    with torch.no_grad():
        ours = policy.predict(*inputs(), policy.condition(prompts, "moss"), 3.0)
        unguided = [
            policy.predict(*inputs(), policy.condition(p), 1.0)
            for p in (prompts, helpers.as_prompts(["moss"] * 3))
        ]
    torch.testing.assert_close(
        ours, unguided[1] + 3 * (unguided[0] - unguided[1]), rtol=1e-4, atol=1e-5
    )
    assert (ours - predict(policy)).abs().max() > 1e-3


def test_the_cache_of_embeddings_is_bounded() -> None:
    calls: list[list[str]] = []

    def encode(texts: Sequence[str]) -> tuple[Tensor]:
        calls.append(list(texts))
        return (torch.tensor([[[float(len(text))] * 4] for text in texts]),)  # 16 bytes each

    cache = EmbeddingCache(encode, limit_bytes=40)
    assert cache(["a", "bb", "a"])[0][:, 0, 0].tolist() == [1, 2, 1] and cache.bytes == 32
    cache(["a"])
    assert cache(["ccc"])[0][0, 0, 0] == 3 and cache.bytes == 32, "bb was used least recently"
    cache(["a", "ccc"])
    assert calls == [["a", "bb"], ["ccc"]]
    assert cache(["a", "bb", "ccc", "dddd"])[0][:, 0, 0].tolist() == [1, 2, 3, 4], (
        "more than it can keep"
    )
    assert calls[2:] == [["bb", "dddd"]] and cache.bytes <= 40


def test_a_prompt_that_is_too_long_is_told(caplog: pytest.LogCaptureFixture) -> None:
    policy = helpers.policy()
    with caplog.at_level(logging.WARNING, logger="ddpo"):
        # with the two special tokens, 24: the tokenizer's limit
        policy.condition([Prompt("x" * 22)])
        assert not [record for record in caplog.records if record.name == "ddpo"]
        policy.condition([Prompt("x" * 23)])
        policy.condition([Prompt("x" * 23)])
    assert [record.getMessage() for record in caplog.records if record.name == "ddpo"] == [
        "prompt of 25 tokens is cut to the model's 24: " + "x" * 23
    ]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_only_the_adapter_is_trained_and_it_is_fp32(dtype: str) -> None:
    policy = helpers.policy(dtype=dtype)
    names = policy.parameters()
    assert len(names) == 64 and all(name.startswith("unet.") and "lora_" in name for name in names)
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}
    assert policy.half_precision == (dtype == "bf16")
    output = with_grad(policy)
    assert output.dtype == torch.float32
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in names.values())
    frozen = [p for m in (policy.unet, policy.vae, policy.text_encoder) for p in m.parameters()]
    trained = {id(parameter) for parameter in names.values()}
    assert all(parameter.grad is None for parameter in frozen if id(parameter) not in trained)


def test_no_module_is_in_training_mode() -> None:
    """Not even in the adapter: its dropout would change the ratio."""
    for options in (
        {"lora": helpers.adapter(lora_dropout=0.5), "train_text_encoder": True},
        {"lora": None},
    ):
        policy = helpers.policy(moved=0.1, **options)
        modules = [
            m for root in (policy.unet, policy.vae, policy.text_encoder) for m in root.modules()
        ]
        assert not any(module.training for module in modules)
        assert torch.equal(predict(policy), predict(policy))


def test_grad_does_not_change_the_prediction() -> None:
    policy = helpers.policy(moved=0.3)
    assert torch.equal(predict(policy), with_grad(policy).detach())


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        policy = helpers.policy(moved=0.3, gradient_checkpointing=checkpointing)
        with_grad(policy).square().sum().backward()
        found.append(helpers.flat_gradient(policy))
    assert found[0].norm() > 0 and helpers.difference(found[1], found[0]) < 1e-6


class Oops(Exception):
    pass


@pytest.mark.parametrize("lora", ["default", None])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_reference_is_the_model_before_training(lora: str | None, dtype: str) -> None:
    policy = helpers.policy(lora=lora, dtype=dtype)
    base = predict(policy)  # a fresh adapter is 0
    if lora is not None:
        assert torch.equal(base, predict(helpers.policy(dtype=dtype)))
    helpers.move(policy, 0.1)
    tuned = predict(policy)
    assert (tuned - base).abs().max() > 1e-2
    with policy.weights("base"):
        assert torch.equal(predict(policy), base)
    assert torch.equal(predict(policy), tuned)
    with pytest.raises(Oops), policy.weights("base"):
        raise Oops
    assert torch.equal(predict(policy), tuned), "switched on again after an exception"
    helpers.move(policy, 0.1)
    with policy.weights("base"):
        assert torch.equal(predict(policy), base), "still, after more training"


def test_weights_by_name() -> None:
    policy = helpers.policy(moved=0.1)
    present, parameters = predict(policy), policy.parameters()
    policy.snapshots["000020"] = {name: value.detach() + 0.1 for name, value in parameters.items()}
    with policy.weights("000020"):
        inside = predict(policy)
        with policy.weights("base"):
            assert torch.equal(predict(policy), predict(helpers.policy()))
        assert torch.equal(predict(policy), inside)
    with policy.weights("present"):
        assert torch.equal(predict(policy), present)
    for parameter in parameters.values():
        parameter.data += 0.1
    torch.testing.assert_close(predict(policy), inside)
    with (
        pytest.raises(UserError, match=r"no weights are called '00002'.*000020"),
        policy.weights("00002"),
    ):
        pass


def test_the_text_encoder_is_trained_and_switched_off_too() -> None:
    policy = helpers.policy(train_text_encoder=True)
    base = predict(policy)
    torch.testing.assert_close(base, predict(helpers.policy()), rtol=1e-5, atol=1e-6)
    own = {name for name in policy.parameters() if name.startswith("text_encoder.")}
    assert len(own) == 8
    helpers.move(policy, 0.3)
    with_grad(policy).square().sum().backward()
    assert all(policy.parameters()[name].grad is not None for name in own)
    for name in policy.parameters().keys() - own:
        policy.parameters()[name].data.zero_()
    assert (predict(policy) - base).abs().max() > 1e-4, (
        "the text encoder's adapter alone changes the picture"
    )
    with policy.weights("base"):
        assert torch.equal(predict(policy), base)


def test_decode_is_that_of_diffusers() -> None:
    policy = helpers.policy()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = policy.decode(latents)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    with torch.no_grad():
        raw = policy.vae.decode(latents / policy.vae.config.scaling_factor).sample
    expected = policy.pipeline.image_processor.postprocess(raw, output_type="pt")
    torch.testing.assert_close(images, expected)
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_saved_lora_is_the_same_model_in_plain_diffusers(tmp_path: Path, alpha: int) -> None:
    """Its scale alpha / rank too, which diffusers takes from the metadata."""
    policy = helpers.policy(lora=helpers.adapter(lora_alpha=alpha))
    base = predict(policy)
    helpers.move(policy, 0.3)
    policy.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = tiny()
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(plain(pipeline, 3.0), predict(policy), rtol=1e-4, atol=1e-5)
    assert (predict(policy) - base).abs().max() > 1e-2

    start = helpers.policy(loras=[str(tmp_path)])
    torch.testing.assert_close(predict(start), predict(policy), rtol=1e-4, atol=1e-5)
    with start.weights("base"):
        assert torch.equal(predict(start), predict(helpers.policy(loras=[str(tmp_path)]))), (
            "part of the reference"
        )


@pytest.mark.parametrize("targets", [helpers.TARGETS, []])
def test_a_saved_lora_of_the_text_encoder(tmp_path: Path, targets: list[str]) -> None:
    adapter = helpers.adapter(target_modules=targets)
    policy = helpers.policy(train_text_encoder=True, moved=0.3, lora=adapter)
    trained = {name.partition(".")[0] for name in policy.parameters()}
    assert trained == {"text_encoder", *(["unet"] if targets else [])}
    policy.save(tmp_path)
    pipeline = tiny()
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(plain(pipeline, 3.0), predict(policy), rtol=1e-4, atol=1e-5)
    # as published LoRAs of Stable Diffusion 1 name it, which every reader knows
    layer = "text_encoder.text_model.encoder.layers.0.self_attn."
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    names = [name for name in saved if name.startswith("text_encoder")]
    matrices = product(("q_proj", "k_proj", "v_proj", "out_proj"), "AB")
    assert sorted(names) == sorted(
        f"{layer}{name}.lora_{matrix}.weight" for name, matrix in matrices
    )


def test_a_whole_unet_is_saved_for_diffusers(tmp_path: Path) -> None:
    policy = helpers.policy(lora=None, moved=0.02)
    policy.save(tmp_path)
    pipeline = tiny()
    pipeline.unet = type(pipeline.unet).from_pretrained(tmp_path / "unet")
    torch.testing.assert_close(plain(pipeline, 3.0), predict(policy), rtol=1e-4, atol=1e-5)


def test_what_is_no_model_or_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(
        UserError, match=r"model\.pretrained: .*is no folder of a StableDiffusionPipeline"
    ):
        StableDiffusion(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"model\.loras"):
        helpers.policy(loras=[str(tmp_path / "nowhere")])


def test_a_reward_has_a_gradient_with_respect_to_the_latents() -> None:
    """The caller disables gradients, not `decode` nor the reward: against a difference quotient."""
    policy = helpers.policy()
    reward = Reward("redness", 1.0, helpers.redness)
    latents = 0.1 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()
    value = reward(policy.decode(latents), ["", ""], [{}, {}]).sum()
    (gradient,) = torch.autograd.grad(value, latents)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        ends = [
            reward(policy.decode(latents + s * step), ["", ""], [{}, {}]).sum() for s in (1, -1)
        ]
    assert (ends[0] - ends[1]).item() == pytest.approx(2 * (gradient * step).sum().item(), rel=0.02)


def test_the_scorer_keeps_no_graph() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    scorer = Scorer([Reward("redness", 1.0, helpers.redness)])
    scorer.submit(images, ["", ""], [{}, {}])
    assert not scorer.collect()["redness"].requires_grad

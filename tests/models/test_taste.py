"""A user's taste as a condition: where it begins, what switches it off, what diffusers makes of
its files."""

import re
from pathlib import Path
from typing import Any

import families
import helpers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ddpo.errors import UserError
from ddpo.models._shared.snapshots import scaled
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.parallel.seeds import generator
from ddpo.prompts import Prompt
from ddpo.rollout.gradients import ImageGradients, trained_layers

TASTE = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 0.0]])
PROMPTS = [Prompt("a fox", taste=TASTE), Prompt("moss"), Prompt("a fox", taste=-TASTE)]


def output(policy: Any, prompts: list[Prompt] = PROMPTS, name: str = "present") -> Tensor:
    """Of the same states, under guidance."""
    noise = torch.Generator().manual_seed(3)
    x = torch.randn((len(prompts), *policy.latent_shape), generator=noise)
    with policy.weights(name):
        condition = policy.condition(prompts, "")
        return policy.predict(x, torch.tensor([700, 20, 401])[: len(prompts)], condition, 3.0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # fused attention, and plain one
@pytest.mark.parametrize("lora", ["default", None])
@torch.no_grad()
def test_training_begins_exactly_at_the_base(lora: str | None, dtype: str) -> None:
    policy = helpers.policy(taste=(2, 3), lora=lora, dtype=dtype)
    base = helpers.policy(lora=helpers.adapter(), dtype=dtype)
    trained = policy.parameters()
    for name, weight in base.parameters().items() if lora else ():
        assert torch.equal(trained[name], weight)
    assert torch.equal(output(policy), output(base, name="base"))
    assert all("_ip." in name or "image_embeds" in name for name in trained if "lora" not in name)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
@torch.no_grad()
def test_other_families_begin_at_the_base_too(family: str) -> None:
    policy, base = (families.policy(family, taste=taste) for taste in ((2, 3), None))
    assert torch.equal(output(policy), output(base))
    helpers.move(policy, 0.3)
    for name, weight in base.parameters().items():
        weight.data.copy_(policy.parameters()[name])
    assert torch.equal(output(policy, [Prompt("a fox")]), output(base, [Prompt("a fox")]))
    plain, tasted = output(policy, [Prompt("a fox")]), output(policy, PROMPTS[:1])
    assert helpers.difference(tasted, plain) > 1e-2
    assert torch.equal(output(policy, name="base"), output(base, name="base"))


@torch.no_grad()
def test_without_a_taste_the_tuned_model_is_the_one_without_its_layers() -> None:
    policy, plain = helpers.policy(taste=(2, 3), moved=0.3), helpers.policy()
    for name, weight in plain.parameters().items():
        weight.data.copy_(policy.parameters()[name])
    tasted, without = output(policy), output(plain)
    assert torch.equal(tasted[1], without[1])
    assert helpers.difference(tasted[0], without[0]) > 1e-2
    assert helpers.difference(tasted[0], tasted[2]) > 1e-2
    assert torch.equal(output(policy, name="base"), output(plain, name="base"))
    assert torch.equal(output(policy), tasted)  # switched on again


@torch.no_grad()
def test_a_condition_keeps_its_rows() -> None:
    policy = helpers.policy(taste=(2, 3), moved=0.3)
    x = torch.randn((2, *policy.latent_shape), generator=torch.Generator().manual_seed(3))
    rows = policy.condition(PROMPTS, "")[torch.tensor([2, 0])]
    direct = policy.condition([PROMPTS[2], PROMPTS[0]], "")
    steps = torch.tensor([700, 20])
    assert torch.equal(policy.predict(x, steps, rows, 3.0), policy.predict(x, steps, direct, 3.0))


@torch.no_grad()
def test_taste_scale_is_that_of_diffusers() -> None:
    """0 is no taste, 1 all of it; between them as `set_ip_adapter_scale` does."""
    policy = helpers.policy(taste=(2, 3), moved=0.3)
    own = {name: weight.detach().clone() for name, weight in policy.parameters().items()}
    for scale in (0.0, 0.4, 1.0):
        policy.snapshots["part"] = scaled(own, None, 1.0, scale)
        part = output(policy, name="part")
        assert policy.taste is not None
        for processor in policy.taste.processors.values():
            processor.scale = [scale]
        torch.testing.assert_close(part, output(policy))
        for processor in policy.taste.processors.values():
            processor.scale = [1.0]


def test_a_taste_of_another_size_is_refused() -> None:
    policy = helpers.policy(taste=(1, 3))
    with pytest.raises(UserError, match=r"model.taste: 1 tokens of 3 numbers.*'a fox' is 2 x 3"):
        policy.condition(PROMPTS)


def test_gradients_collected_while_sampling_are_those_of_an_update() -> None:
    """One token: its projection is told apart by images like all other layers."""
    policy = helpers.policy(taste=(1, 3), lora=None, moved=0.3)
    layers = trained_layers(policy.modules, policy.parameters())
    assert layers is not None
    prompts = [Prompt("a fox", taste=TASTE[:1]), Prompt("moss", taste=TASTE[1:])]
    gradients = ImageGradients(layers, torch.ones(1, dtype=torch.bool))
    gradients.begin(2)
    with torch.no_grad(), gradients.step():
        gradients.backward(output(policy, prompts).square().mean((1, 2, 3)))
    gradients.end(2)
    collected = gradients.weighted(torch.tensor([0.5, -2.0]))
    values = output(policy, prompts).square().mean((1, 2, 3))
    (values * torch.tensor([0.5, -2.0])).sum().backward()
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(collected[name], parameter.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_its_card_says_how_diffusers_draws_the_same(tmp_path: Path) -> None:
    """The card's own code, run in plain diffusers."""
    policy = StableDiffusion(helpers.pipeline_folder(), lora=helpers.adapter(), taste=(2, 3))
    helpers.move(policy, 0.3)
    policy.export("diffusers", tmp_path, "mine")
    assert (tmp_path / "ip_adapter.safetensors").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    code = code.replace("guidance_scale=3.0", "guidance_scale=3.0, **OPTIONS")
    options = {"num_inference_steps": 3, "eta": 1.0, "output_type": "pt"}

    def picture(taste: Tensor) -> Tensor:
        names: dict[str, Any] = {
            "BASE": helpers.pipeline_folder(),
            "FOLDER": str(tmp_path),
            "TASTE": taste[None],
            "OPTIONS": {**options, "generator": generator(5)},
        }
        exec(code, names)
        return names["picture"]

    from ddpo.rollout.sample import sample

    sampler = helpers.sampler(policy, steps=3)
    (ours,) = sample(policy, sampler, [PROMPTS[0]], [(5,)])
    torch.testing.assert_close(picture(TASTE), ours.images[0], atol=1e-4, rtol=0)
    assert (picture(-TASTE) - ours.images[0]).abs().max() > 1e-2
    assert issubclass(policy.pipeline_class, StableDiffusionPipeline)

"""Trained weights part of the way from the base."""

import helpers
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ddpo.models._shared.snapshots import scaled
from ddpo.models.stable_diffusion import StableDiffusion


@torch.no_grad()
def output(policy: StableDiffusion, name: str) -> torch.Tensor:
    x = torch.randn((2, *policy.latent_shape), generator=torch.Generator().manual_seed(3))
    condition = policy.condition(helpers.as_prompts(["a fox", "moss"]))
    with policy.weights(name):
        return policy.predict(x, torch.tensor([700, 20]), condition, 1.0)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_an_adapter_is_scaled_as_peft_does(scale: float) -> None:
    """0 is the model without it, 1 the tuned one."""
    policy = helpers.policy(moved=0.3)
    own = {name: weight.detach().clone() for name, weight in policy.parameters().items()}
    policy.snapshots["part"] = scaled(own, policy.snapshots.get("base"), scale)
    found, base, tuned = (output(policy, name) for name in ("part", "base", "present"))
    assert helpers.difference(base, tuned) > 1e-3
    for layer in policy.unet.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.scale_layer(scale)
    torch.testing.assert_close(found, output(policy, "present"))
    for at, known in ((0.0, base), (1.0, tuned)):
        assert torch.allclose(found, known, atol=1e-6) == (scale == at)


def test_whole_weights_are_interpolated() -> None:
    policy = helpers.policy(moved=0.3, lora=None)
    own = {name: weight.detach().clone() for name, weight in policy.parameters().items()}
    base = policy.snapshots["base"]
    for scale in (0.0, 0.25, 1.0):
        for name, value in scaled(own, base, scale).items():
            torch.testing.assert_close(value, (1 - scale) * base[name] + scale * own[name])

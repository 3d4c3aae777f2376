"""Gradients collected while sampling are those of autograd on the stored trajectory."""

from dataclasses import replace

import helpers
import pytest
import torch
from torch import nn

from ddpo.parallel.seeds import Purpose
from ddpo.rollout.gradients import ImageGradients, trained_layers
from ddpo.rollout.sample import sample, stored_steps
from ddpo.rollout.trajectory import join


@pytest.mark.parametrize(("guidance", "batch_size"), [(1.0, 3), (3.0, 2), (3.0, 5)])
def test_each_image_has_the_gradient_of_its_own_steps(guidance: float, batch_size: int) -> None:
    """Whatever the chunks (the last one padded), with guidance and without; a step left out."""
    policy = helpers.policy(moved=0.2)
    sampler = replace(
        helpers.sampler(policy, steps=4, batch_size=batch_size), guidance_scale=guidance
    )
    columns = torch.tensor([True, False, True, True])
    layers = trained_layers(policy.modules, policy.parameters())
    assert layers is not None
    gradients = ImageGradients(layers, columns)
    prompts = helpers.as_prompts(f"prompt {i}" for i in range(5))
    keys = [(Purpose.NOISE, 0, 0, i) for i in range(5)]
    with torch.no_grad():
        plain = join(list(sample(policy, sampler, prompts, keys)))
        trajectory = join(list(sample(policy, sampler, prompts, keys, gradients=gradients)))
    assert torch.equal(plain.latents, trajectory.latents)
    assert torch.equal(plain.logp_old, trajectory.logp_old)
    assert all(p.grad is None and p.requires_grad for p in policy.parameters().values())
    for image in (0, 2, 4):
        rows = torch.full((3,), image)
        step = stored_steps(policy, sampler, trajectory, rows, columns.nonzero().flatten())
        after = trajectory.latents[rows, columns.nonzero().flatten() + 1]
        step.log_prob(after).sum().backward()
        expected = helpers.flat_gradient(policy)
        for parameter in policy.parameters().values():
            parameter.grad = None
        alone = gradients.weighted(torch.eye(5)[image])
        collected = torch.cat([alone[name].flatten() for name in policy.parameters()])
        assert helpers.difference(collected, expected) < 1e-5


def test_only_linear_layers_are_told_apart() -> None:
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Conv2d(3, 3, 1))
    weights = dict(network.named_parameters())
    assert trained_layers([network], {"0.weight": weights["0.weight"]}) == {"0.weight": network[0]}
    assert trained_layers([network], weights) is None

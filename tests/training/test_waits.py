"""Neither a step of a rollout nor a call of an update waits for the device: on a GPU that is
imagined."""

from collections import Counter
from dataclasses import replace
from typing import Any

import families
import helpers
import pytest
import torch
from imaginary_gpu import imaginary_gpu, possible, there

from ddpo import objectives, samplers
from ddpo.rollout import sample
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory

pytestmark = pytest.mark.skipif(not possible(), reason="this torch cannot imagine a GPU")

COUNT = 4
ALL = ("all_reward", "all_group")
OBJECTIVES = {
    "ddpo": objectives.build("ddpo"),
    "grpo": objectives.build("grpo", kl_weight=0.1),
    "prdp": objectives.build("prdp"),
    "rwr": objectives.build("rwr"),
    "nft": objectives.build("nft"),
}


def waits(policy: Any, sampler: Sampler, objective: str | None, micro_batch: int) -> Counter[str]:
    """Of a rollout; of an update where there is an objective."""
    prompts = helpers.as_prompts(["a fox", "two owls"] * (COUNT // 2))
    keys = [(0, i) for i in range(COUNT)]
    with imaginary_gpu() as counts:
        there(policy)
        sampler = replace(sampler, steps=sampler.steps.to(policy.device))
        with torch.no_grad():
            counts.clear()
            latents, logp = sample._denoise(policy, sampler, prompts, keys, None, None)
        if objective is None:
            return counts
        trajectory = Trajectory(list(range(COUNT)), prompts, latents, logp, latents[:0], logp)
        if "kl" in OBJECTIVES[objective].needs:
            trajectory.output_ref = latents[:, 1:]
        asked = replace(OBJECTIVES[objective], follows_advantage=False)
        work = helpers.work_on(policy, trajectory, sampler, asked, micro_batch)
        outcomes = {
            name: getattr(work.batch, name).to(policy.device)
            for name in ("advantage", "reward", "group", "present", "stochastic", *ALL)
        }
        work.batch = replace(work.batch, **outcomes)
        if not asked.separable:  # once per optimizer step it compares samples as it likes
            work._derivative = lambda samples, matrices: (logp.new_zeros(()), dict(matrices))
        counts.clear()
        work.backward(range(COUNT))
        return counts


def built(family: str, num_steps: int, **options: Any) -> tuple[Any, Sampler]:
    policy = families.policy(family, **options)
    name = "ddim" if family in ("stable_diffusion", "sdxl") else "flow_sde"
    steps = samplers.build(name, policy.schedule, num_steps)
    return policy, Sampler(steps, 3.0, COUNT)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_rollout_waits_as_often_whatever_its_steps(family: str) -> None:
    few, many = (waits(*built(family, steps), None, 0) for steps in (2, 5))
    assert few == many


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", ["stable_diffusion", "sd3"])
def test_an_update_waits_as_often_whatever_its_calls(family: str, objective: str) -> None:
    few, many = (waits(*built(family, 3), objective, size) for size in (COUNT * 3, 1))
    assert few == many


def test_what_waits_is_seen() -> None:
    """Values read, copies from ordinary memory, shapes that depend on contents."""
    with imaginary_gpu() as counts:
        x, place = torch.zeros(3, device="cuda"), torch.tensor([0, 2])
        for wait in (
            lambda: x.sum().item(),
            x.tolist,
            x.cpu,
            lambda: x[place],
            lambda: place.to("cuda"),
            lambda: x[[0, 2]],
            lambda: bool((x > 0).any()),
            lambda: (x > 0).nonzero(),
        ):
            counts.clear()
            wait()
            assert counts.total() >= 1
        counts.clear()
        place.pin_memory().to("cuda", non_blocking=True)
        assert counts.total() == 0

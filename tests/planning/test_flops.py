"""Counted operations against published counts and against those of calls that are made."""

from pathlib import Path

import helpers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpo import config
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.planning import calibrate, flops
from ddpo.planning import plan as planning
from ddpo.planning.calls import Call, calls
from ddpo.prompts import Prompt


def test_stable_diffusion_takes_what_is_known_of_it() -> None:
    """803 GFLOP a call and 1,714 with the backward pass at rank 4."""
    settings = config.load("compressibility_sd15")
    assert settings.lora is not None
    settings.lora.rank = 4
    plan = planning.plan(settings)
    assert flops.of_a_row(plan, guided=False, grad=False) == pytest.approx(803e9, rel=0.01)
    assert flops.of_a_row(plan, guided=False, grad=True) == pytest.approx(1714e9, rel=0.05)


def test_an_iteration_is_the_sum_of_its_calls(tmp_path: Path) -> None:
    """Each call's rows, guided ones twice, and the pictures that are decoded."""
    plan = planning.plan(helpers.settings(tmp_path))
    found, once = flops.of_iteration(plan, 1), flops.of_a_row(plan, guided=False, grad=False)
    rows = {call.phase: count * call.rows for call, count in calls(plan, 1).items()}
    both = flops.of_a_row(plan, guided=True, grad=True)
    assert found["decoding"] == rows["sampling"] // 3 * flops.of_decoding(plan)
    assert found["sampling"] == rows["sampling"] * 2 * once
    assert found["updates"] == rows["updates"] * both and 1.8 < both / (2 * once) < 2.4


def test_the_fused_attention_of_a_cpu_is_counted() -> None:
    """A call that is made counts as one that is imagined; without attention it is less."""
    policy: StableDiffusion = helpers.policy()
    latents = torch.zeros(2, *policy.latent_shape)
    condition = policy.condition([Prompt("fox")] * 2)

    def call() -> None:
        policy.predict(latents, torch.zeros(2, dtype=torch.long), condition, 1.0)

    with torch.no_grad():
        made = flops.counted(call)
        with FlopCounterMode(display=False) as plain:
            call()
    assert made > plain.get_total_flops()


def test_an_iteration_is_foretold_by_its_calls(tmp_path: Path) -> None:
    """12 prompts of 2 in calls of 4 images are 6 times the sampling of 2 prompts."""
    changes = {
        "trainer__prompts_per_iteration": 12,
        "sampler__batch_size": 4,
        "trainer__while_sampling": False,
    }
    settings = helpers.settings(tmp_path, **changes)
    whole = planning.plan(settings)
    small = calibrate._small(settings, whole)
    assert (small.trainer.prompts_per_iteration, small.trainer.minibatches) == (2, 1)
    work, done = calibrate._work(whole), calibrate._work(planning.plan(small))
    assert work["sampling"] == 6 * done["sampling"]
    counted = calls(whole, 1)
    update = next(call for call in counted if call.phase == "updates")
    assert update == Call("updates", 16, True, True)
    assert calibrate._updates(work, done) == counted[update]  # the small one has one such call
    found = calibrate.seconds(settings)
    assert found.pop("iteration") == sum(found.values()) and min(found.values()) > 0


def test_rewards_are_scored_while_a_gpu_samples() -> None:
    assert calibrate._waiting(1.0, 5.0, 10, "cpu") == 10
    assert calibrate._waiting(1.0, 5.0, 10, "cuda") == 1
    assert calibrate._waiting(7.0, 5.0, 10, "cuda") == 7 * 10 - 5 * 9

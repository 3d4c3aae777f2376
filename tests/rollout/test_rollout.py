"""Sampling is that of diffusers, and what was recorded is found again in whatever shape it is
scored."""

import helpers
import pytest
import torch
from torch import Tensor

from ddpo.models._tiny import tiny
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.parallel.seeds import generator
from ddpo.rollout.sample import Sampler, chunks, sample, stored_steps
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers.ddim import ddim
from ddpo.samplers.ddpm import ddpm

PAIRS = 7 * 4


def rescored(
    policy: StableDiffusion, sampler: Sampler, trajectory: Trajectory, micro_batch: int, grad: bool
) -> Tensor:
    """(B, T) log-probabilities, `micro_batch` pairs at a time, steps and samples mixed."""
    count, steps = trajectory.logp_old.shape
    order = torch.randperm(count * steps, generator=torch.Generator().manual_seed(1))
    found = torch.zeros(count * steps, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for indices, genuine in chunks(count * steps, micro_batch):
            chosen = order[indices]
            arguments = (trajectory, chosen // steps, chosen % steps)
            found[chosen[:genuine]] = helpers.step_log_probs(policy, sampler, *arguments)[
                :genuine
            ].detach()
    return found.view(count, steps)


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-6), ("bf16", 1e-5)])
def test_recorded_is_recomputed(dtype: str, limit: float, micro_batch: int) -> None:
    """With guidance, an adapter that does something, and gradients enabled as in the update."""
    policy = helpers.policy(dtype=dtype, moved=0.3)
    sampler = helpers.sampler(policy, batch_size=4)
    trajectory, _ = helpers.rolled(policy, sampler, 7)
    assert trajectory.logp_old.dtype == torch.float64 and trajectory.latents.dtype == torch.float32
    again = rescored(policy, sampler, trajectory, micro_batch, grad=True)
    assert ((again - trajectory.logp_old).exp() - 1).abs().max() <= limit


def test_recorded_is_the_density_of_what_is_stored() -> None:
    """The log-probabilities are those of torch's Normal at the stored latents, and spread as a
    Gaussian's."""
    policy = helpers.policy(moved=0.3)
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, 8)
    rows, columns = torch.cartesian_prod(torch.arange(8), torch.arange(4)).T
    with torch.no_grad():
        mean = stored_steps(policy, sampler, trajectory, rows, columns).mean
    std = sampler.steps.std[columns].view(-1, 1, 1, 1)
    normal = torch.distributions.Normal(mean.double(), std.double())
    expected = normal.log_prob(trajectory.latents[rows, columns + 1].double()).flatten(1).mean(1)
    torch.testing.assert_close(trajectory.logp_old.flatten(), expected, rtol=0, atol=1e-6)
    noise = (trajectory.latents[rows, columns + 1] - mean) / std
    assert noise.std().item() == pytest.approx(1, abs=0.02) and abs(noise.mean().item()) < 0.02


def test_steps_without_noise_have_log_probability_0() -> None:
    policy = helpers.policy()
    sampler = Sampler(ddpm(policy.schedule, 4), 3.0, 4)
    trajectory, _ = helpers.rolled(policy, sampler, 3, reference=True)
    assert trajectory.logp_ref is not None
    for logp in (trajectory.logp_old, trajectory.logp_ref):
        assert logp[:, -1].tolist() == [0.0] * 3 and (logp[:, :-1] != 0).all()


def test_the_reference_is_scored_with_the_adapter_off() -> None:
    policy = helpers.policy(moved=0.3)
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, 5, reference=True)
    assert trajectory.logp_ref is not None
    fresh = helpers.policy()
    expected = rescored(fresh, sampler, trajectory, 20, grad=False)
    torch.testing.assert_close(trajectory.logp_ref, expected, rtol=0, atol=1e-5)
    assert (trajectory.logp_ref - trajectory.logp_old).abs().max() > 1e-3
    assert helpers.rolled(policy, sampler, 2)[0].logp_ref is None


def test_a_fresh_adapter_has_its_own_reference() -> None:
    policy = helpers.policy()
    trajectory, _ = helpers.rolled(policy, helpers.sampler(policy), 5, reference=True)
    assert trajectory.logp_ref is not None
    torch.testing.assert_close(trajectory.logp_ref, trajectory.logp_old, rtol=0, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_is_that_of_diffusers(eta: float, prediction: str) -> None:
    """StableDiffusionPipeline.__call__ from generators with the same keys: the same noise, step by
    step."""
    policy = helpers.policy(prediction_type=prediction)
    sampler = Sampler(ddim(policy.schedule, 5, eta=eta), 4.0, 3)
    keys, prompts = [(9, i) for i in range(5)], helpers.WORDS[:5]
    with torch.no_grad():
        parts = list(sample(policy, sampler, helpers.as_prompts(prompts), keys))
    ours = torch.cat([part.images for part in parts])
    pipeline = tiny(prediction)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompts,
        num_inference_steps=5,
        guidance_scale=4.0,
        eta=eta,
        output_type="pt",
        generator=[generator(*key) for key in keys],
    ).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.05


@torch.no_grad()
def images(
    policy: StableDiffusion, prompts: list[str], numbers: list[int], batch_size: int
) -> Tensor:
    sampler = helpers.sampler(policy, batch_size=batch_size)
    parts = sample(policy, sampler, helpers.as_prompts(prompts), [(5, n) for n in numbers])
    return torch.cat([part.images for part in parts])


def test_an_image_depends_on_its_prompt_and_key_alone() -> None:
    policy = helpers.policy(moved=0.3)
    prompts, numbers = helpers.WORDS[:7], list(range(7))
    whole = images(policy, prompts, numbers, 4)
    for n in range(7):
        alone = images(policy, [prompts[n]], [n], 4)
        assert torch.equal(alone[0], whole[n]), (
            "neither its neighbors nor its place matter, bit for bit"
        )
    backwards = images(policy, prompts[::-1], numbers[::-1], 4)
    assert torch.equal(backwards.flip(0), whole)
    for batch_size in (1, 3, 16):
        torch.testing.assert_close(
            images(policy, prompts, numbers, batch_size), whole, rtol=0, atol=1e-4
        )
    other = images(policy, prompts, [n + 1 for n in numbers], 4)
    assert (other - whole).abs().amax((1, 2, 3)).min() > 0.01, "another key, another image"


def test_parts_are_numbered_without_the_padding() -> None:
    policy = helpers.policy()
    prompts = helpers.as_prompts(helpers.WORDS[:6])
    with torch.no_grad():
        parts = list(sample(policy, helpers.sampler(policy), prompts, [(0, i) for i in range(6)]))
    assert [part.samples for part in parts] == [[0, 1, 2, 3], [4, 5]]
    assert [part.prompts for part in parts] == [prompts[:4], prompts[4:]]
    for part in parts:
        count = len(part.samples)
        assert part.latents.shape == (count, 5, 4, 8, 8) and part.logp_old.shape == (count, 4)
        assert part.images.shape == (count, 3, 16, 16)


def test_every_network_call_has_one_shape() -> None:
    policy, shapes = helpers.policy(), set()
    policy.unet.register_forward_pre_hook(
        lambda module, arguments: shapes.add(tuple(arguments[0].shape))
    )
    helpers.rolled(policy, helpers.sampler(policy, batch_size=4), 6, reference=True)
    assert shapes == {(8, 4, 8, 8)}


def test_chunks_cover_and_repeat_the_last() -> None:
    assert list(chunks(5, 2)) == [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
    assert list(chunks(0, 2)) == []
    assert list(chunks(2, 5)) == [([0, 1, 1, 1, 1], 2)]


def test_generators_are_functions_of_their_whole_key() -> None:
    keys = [
        (1, 0, 0, 0),
        (1, 0, 0, 1),
        (1, 0, 1, 0),
        (1, 1, 0, 0),
        (2, 0, 0),
        (1, 2**40),
        (5, 0),
        (5, 1),
    ]
    draws = [torch.randn(4, generator=generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    assert torch.equal(draws[0], torch.randn(4, generator=generator(1, 0, 0, 0)))


def test_sampling_leaves_the_global_generator_alone() -> None:
    policy = helpers.policy()
    state = torch.get_rng_state()
    helpers.rolled(policy, helpers.sampler(policy), 2)
    assert torch.equal(torch.get_rng_state(), state)

"""Rectified flow: diffusers' noise levels, exact densities, the marginals of the flow itself."""

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ddpo import samplers
from ddpo.errors import UserError
from ddpo.models._tiny import tiny
from ddpo.samplers import Gaussian, RectifiedFlow, Steps
from ddpo.samplers._diffusers import rectified_flow, variance_preserving

SHAPE = (2, 4, 8, 8)
CONFIGS: list[dict[str, Any]] = [{}, {"shift": 3.0}, {"shift_terminal": 0.1}]
FLOW_SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("flow_sde", {}),
    ("flow_sde", {"noisy_last": True}),
    ("flow_sde", {"noise_level": 0.3, "constant": True}),
    ("flow_sde", {"integrator": "exponential"}),
    ("flow_sde", {"integrator": "exponential", "noise_level": 0.3, "constant": True}),
    ("cps", {}),
    ("cps", {"noise_level": 1.0}),
]


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(shift: float = 1.0) -> RectifiedFlow:
    return rectified_flow({"shift": shift}, uniform=True)


def levels(schedule: RectifiedFlow, steps: Steps) -> list[float]:
    """t of each step's beginning, and 0 at the end."""
    return [*schedule.levels(steps.timesteps)[1].tolist(), 0.0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("count", [1, 4, 10])
def test_noise_levels_are_those_of_diffusers(config: dict[str, Any], count: int) -> None:
    if count == 1 and config.get("shift_terminal"):
        with pytest.raises(UserError, match=r"shift_terminal .* take 2"):
            rectified_flow(config).timesteps(count)
        return
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(count)
    schedule = rectified_flow(config)
    timesteps = schedule.timesteps(count)
    torch.testing.assert_close(timesteps.float(), scheduler.timesteps, rtol=0, atol=0)
    signal, noise = schedule.levels(timesteps)
    torch.testing.assert_close(noise.float(), scheduler.sigmas[:-1], rtol=0, atol=1e-7)
    torch.testing.assert_close(signal + noise, torch.ones(count, dtype=torch.float64))
    assert [level.item() for level in schedule.levels(torch.tensor([-1]))] == [1, 0]


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_a_dynamic_shift_is_that_of_diffusers(tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    sigmas = [1 - i / 8 for i in range(8)]  # as FLUX's pipeline passes them
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    schedule = rectified_flow({"use_dynamic_shifting": True}, image_tokens=tokens, uniform=True)
    torch.testing.assert_close(schedule.timesteps(8).float(), scheduler.timesteps, rtol=0, atol=0)
    scheduler.set_timesteps(8, mu=mu)
    schedule = rectified_flow({"use_dynamic_shifting": True}, image_tokens=tokens)
    torch.testing.assert_close(schedule.timesteps(8).float(), scheduler.timesteps, rtol=0, atol=0)


def test_known_levels_of_stable_diffusion_3() -> None:
    """Its scheduler shifts its lowest level twice; ten uniform levels end at 0.25."""
    found = rectified_flow({"shift": 3.0}).levels(rectified_flow({"shift": 3.0}).timesteps(10))[1]
    expected = [1, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.009]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=6e-4)
    steps = samplers.build("flow_sde", uniform(3.0), 10, noisy_last=True)
    stds = [0.70, 0.74, 0.53, 0.44, 0.39, 0.35, 0.32, 0.29, 0.26, 0.20]
    torch.testing.assert_close(steps.std, torch.tensor(stds), rtol=0, atol=6e-3)
    steps = samplers.build("flow_sde", rectified_flow({"shift": 3.0}), 10, noisy_last=True)
    assert steps.std[-1].item() == pytest.approx(0.006, abs=5e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_flow_euler_is_that_of_diffusers_at_every_step(config: dict[str, Any]) -> None:
    for count in (2, 4, 10):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(count)
        steps = samplers.build("flow_euler", rectified_flow(config), count)
        assert not steps.stochastic.any()
        for t, timestep in enumerate(scheduler.timesteps):
            x, output = randn(2 * t), randn(2 * t + 1)
            theirs = scheduler.step(output, timestep, x).prev_sample
            ours = steps.step(torch.full((2,), t), x, output).sample(randn(99))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("constant", [False, True])
def test_flow_sde_is_the_formula_of_the_papers(constant: bool) -> None:
    """Flow-GRPO's update written out, and DanceGRPO's in its own words: a score of x and x_0."""
    schedule, a = uniform(3.0), 0.3 if constant else 0.7
    steps = samplers.build(
        "flow_sde", schedule, 10, noise_level=a, constant=constant, noisy_last=True
    )
    t = levels(schedule, steps)
    for i in range(10):
        x, v, dt = randn(i).double(), randn(i + 50).double(), t[i + 1] - t[i]
        if constant:
            x0 = x - t[i] * v
            score = -(x - x0 * (1 - t[i])) / t[i] ** 2
            mean, std = x + (v - 0.5 * a**2 * score) * dt, a * math.sqrt(-dt)
        else:
            g = a * math.sqrt(t[i] / (1 - (t[1] if i == 0 else t[i])))
            drift = v * (1 + g**2 * (1 - t[i]) / (2 * t[i]))
            mean, std = x * (1 + g**2 / (2 * t[i]) * dt) + drift * dt, g * math.sqrt(-dt)
        step = steps.step(torch.full((2,), i), x.float(), v.float())
        torch.testing.assert_close(step.mean, mean.float(), rtol=1e-5, atol=1e-5)
        assert steps.std[i].item() == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.0])
def test_cps_is_the_formula_of_the_paper(noise_level: float) -> None:
    schedule = uniform(3.0)
    steps = samplers.build("cps", schedule, 10, noise_level=noise_level)
    t = levels(schedule, steps)
    for i in range(10):
        x, v = randn(i).double(), randn(i + 50).double()
        x0, x1 = x - t[i] * v, x + (1 - t[i]) * v
        std = t[i + 1] * math.sin(noise_level * math.pi / 2)
        mean = (1 - t[i + 1]) * x0 + math.sqrt(t[i + 1] ** 2 - std**2) * x1
        step = steps.step(torch.full((2,), i), x.float(), v.float())
        torch.testing.assert_close(step.mean, mean.float(), rtol=1e-5, atol=1e-5)
        assert steps.std[i].item() == pytest.approx(std, rel=1e-6, abs=1e-9)
    assert steps.stochastic.tolist() == [True] * 9 + [False]


def test_reweighted_cps_scores_by_the_squared_distance() -> None:
    plain, steps = (
        samplers.build("cps", uniform(), 5, reweighted=weighted) for weighted in (False, True)
    )
    index, x, v, other = torch.tensor([0, 3]), randn(0), randn(1), randn(2)
    step, moved = steps.step(index, x, v), steps.step(index, x, other)
    reached = step.sample(randn(3))
    assert torch.equal(reached, plain.step(index, x, v).sample(randn(3))), "samples are the same"

    def distance(gaussian: Gaussian) -> Tensor:
        return (reached - gaussian.mean).flatten(1).double().square().mean(1)

    difference = step.log_prob(reached) - moved.log_prob(reached)
    torch.testing.assert_close(difference, distance(moved) - distance(step))
    torch.testing.assert_close(
        step.kl(moved), (step.mean - moved.mean).flatten(1).double().square().mean(1)
    )


@pytest.mark.parametrize(("name", "options"), FLOW_SAMPLERS)
def test_log_prob_and_kl_are_those_of_torch(name: str, options: dict[str, Any]) -> None:
    steps = samplers.build(name, uniform(3.0), 6, **options)
    for t in steps.stochastic.nonzero().flatten().tolist():
        index, x = torch.full((2,), t), randn(t)
        step, other = (steps.step(index, x, randn(seed)) for seed in (50 + t, 70 + t))
        reached = step.sample(randn(90 + t))
        wide = steps.std[t].double().expand(SHAPE)
        ours, theirs = (Independent(Normal(each.mean.double(), wide), 3) for each in (step, other))
        expected = ours.log_prob(reached.double()) / reached[0].numel()
        torch.testing.assert_close(step.log_prob(reached), expected, rtol=1e-5, atol=1e-6)
        expected = kl_divergence(ours, theirs) / reached[0].numel()
        torch.testing.assert_close(step.kl(other), expected, rtol=1e-5, atol=1e-6)


def propagated(
    schedule: RectifiedFlow, steps: Steps, mean: float, std: float
) -> list[tuple[float, float]]:
    """Mean and variance after each step for data from N(mean, std^2): all steps are linear in x.

    x_t ~ N((1 - t) mean, (1 - t)^2 std^2 + t^2), and the posterior mean of x_0 is linear in x_t.
    """
    t, moments, found = levels(schedule, steps), (0.0, 1.0), []
    for i in range(len(steps)):
        total = (1 - t[i]) ** 2 * std**2 + t[i] ** 2
        slope = (1 - t[i]) * std**2 / total
        of_x = (1 - slope) / t[i]  # v = (x - x_0) / t
        constant = (slope * (1 - t[i]) * mean - mean) / t[i]
        x_coefficient, output = steps.x_coefficient[i].item(), steps.output_coefficient[i].item()
        factor = x_coefficient + output * of_x
        moments = (
            factor * moments[0] + output * constant,
            factor**2 * moments[1] + steps.std[i].item() ** 2,
        )
        found.append(moments)
    return found


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flow_sde", {"integrator": "exponential"}),
        ("flow_sde", {"noise_level": 0.3, "constant": True}),
        ("flow_sde", {"noise_level": 0.3, "constant": True, "noisy_last": True}),
        ("cps", {"noise_level": 0.05}),
    ],
)
def test_samplers_keep_the_flow_s_mean_and_variance_at_each_level(
    name: str, options: dict[str, Any], shift: float
) -> None:
    """200 steps, data from N(1, 0.5^2), against Euler's steps along the flow itself."""
    schedule = uniform(shift)
    ode, sde = (
        propagated(schedule, samplers.build(*built, schedule, 200, **more), 1.0, 0.5)
        for *built, more in (("flow_euler", {}), (name, options))
    )
    for (mean, variance), (own_mean, own_variance) in zip(ode, sde, strict=True):
        assert own_mean == pytest.approx(mean, abs=0.01)
        assert own_variance == pytest.approx(variance, rel=0.01)


def test_the_published_sde_ends_where_the_flow_does() -> None:
    """In between its variance is up to 10 % too large, at any number of steps: see there."""
    for count in (200, 1000):
        moments = propagated(uniform(), samplers.build("flow_sde", uniform(), count), 1.0, 0.5)
        exact = [
            (t, (1 - t) ** 2 * 0.25 + t**2)
            for t in levels(uniform(), samplers.build("flow_sde", uniform(), count))[1:]
        ]
        excess = [v / expected - 1 for (_, v), (_, expected) in zip(moments, exact, strict=True)]
        assert 0.09 < max(excess) < 0.1 and abs(excess[-1]) < 0.01
        assert moments[-1][0] == pytest.approx(1, abs=1e-3)


def test_cps_keeps_signal_and_noise_exactly() -> None:
    """For data at one point x_0 is known, and mean and variance are 1 - t and t^2, however few."""
    for level in (0.3, 0.7, 1.0):
        schedule = uniform(3.0)
        steps = samplers.build("cps", schedule, 5, noise_level=level)
        found = propagated(schedule, steps, 2.0, 0.0)
        for t, (mean, variance) in zip(levels(schedule, steps)[1:], found, strict=True):
            assert mean == pytest.approx(2 * (1 - t), abs=1e-5)
            assert variance == pytest.approx(t**2, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["flow_sde", "cps"])
def test_without_noise_they_are_flow_euler(name: str) -> None:
    euler = samplers.build("flow_euler", uniform(3.0), 7)
    integrators = ["euler_maruyama", "exponential"] if name == "flow_sde" else [None]
    for integrator in integrators:
        options = {"integrator": integrator} if integrator else {}
        steps = samplers.build(name, uniform(3.0), 7, noise_level=0.0, **options)
        assert not steps.stochastic.any()
        for table in ("x_coefficient", "output_coefficient"):
            torch.testing.assert_close(
                getattr(steps, table), getattr(euler, table), rtol=1e-6, atol=1e-7
            )


def test_noised_latents_and_draws() -> None:
    schedule = rectified_flow({"shift_terminal": 0.1})
    x0, epsilon, timesteps = randn(0), randn(1), torch.tensor([913.3, 20.0])
    x, target = schedule.noised(x0, epsilon, timesteps)
    t = (timesteps / 1000).view(2, 1, 1, 1)
    torch.testing.assert_close(x, (1 - t) * x0 + t * epsilon)
    assert torch.equal(target, epsilon - x0)
    source = torch.Generator().manual_seed(0)
    drawn = torch.stack([schedule.draw(source) for _ in range(2000)])
    assert 100 - 1e-3 <= drawn.min() < 110 and 990 < drawn.max() <= 1000, "levels of the sampler"
    assert drawn.mean().item() == pytest.approx(550, abs=20)


def test_models_of_the_other_kind_are_refused() -> None:
    flow, other = uniform(), variance_preserving(tiny().scheduler.config)
    for name in ("flow_sde", "flow_euler", "cps"):
        with pytest.raises(
            UserError, match=rf"sampler\.name: {name} samples rectified-flow .* ddim"
        ):
            samplers.build(name, other, 4)
    for name in ("ddim", "ddpm"):
        with pytest.raises(UserError, match=rf"sampler\.name: {name} .* take flow_sde"):
            samplers.build(name, flow, 4)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.noisy_last"):
        samplers.build("flow_sde", uniform(), 4, integrator="exponential", noisy_last=True)
    with pytest.raises(UserError, match="stochastic_sampling"):
        rectified_flow({"stochastic_sampling": True})
    with pytest.raises(UserError, match=r"sampler\.num_steps: 1001"):
        samplers.build("flow_euler", uniform(), 1001)

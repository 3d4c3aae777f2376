"""Samplers of few-step models: every step is that of diffusers, with torch's density."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler
from torch import Tensor
from torch.distributions import Independent, Normal

from ddpo import samplers
from ddpo.errors import UserError
from ddpo.models._tiny import tiny
from ddpo.samplers import Gaussian, NoiseSchedule, Steps
from ddpo.samplers._diffusers import variance_preserving

SHAPE = (2, 4, 8, 8)


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def schedule(**changes: Any) -> NoiseSchedule:
    return variance_preserving(DDIMScheduler.from_config(tiny().scheduler.config, **changes).config)


def step_at(steps: Steps, t: int, x: Tensor, output: Tensor) -> Gaussian:
    return steps.step(torch.full((len(x),), t), x, output)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "count"), [("trailing", 1), ("trailing", 4), ("leading", 8), ("linspace", 4)]
)
def test_euler_ancestral_is_that_of_diffusers_at_every_step(
    prediction: str, spacing: str, count: int
) -> None:
    changes = {"prediction_type": prediction, "timestep_spacing": spacing}
    steps = samplers.build("euler_ancestral", schedule(**changes), count)
    scheduler = EulerAncestralDiscreteScheduler.from_config(tiny().scheduler.config, **changes)
    scheduler.set_timesteps(count)
    assert steps.timesteps.tolist() == scheduler.timesteps.tolist()
    scale = (1 + scheduler.sigmas.double().square()).sqrt()  # x = y / sqrt(1 + sigma^2)
    for t, timestep in enumerate(scheduler.timesteps):
        x, output, source = randn(2 * t), randn(2 * t + 1), torch.Generator()
        y = (x.double() * scale[t]).float()
        theirs = scheduler.step(output, timestep, y, generator=source.manual_seed(t)).prev_sample
        noise = torch.randn(SHAPE, generator=source.manual_seed(t))
        ours = step_at(steps, t, x, output).sample(noise)
        close(ours, (theirs.double() / scale[t + 1]).float(), 2e-5)  # diffusers computes in fp32
    assert steps.stochastic.tolist() == [True] * (count - 1) + [False]


def test_euler_ancestral_with_eta_1_is_the_ddpm_posterior() -> None:
    ours, theirs = (samplers.build(name, schedule(), 20) for name in ("euler_ancestral", "ddpm"))
    for table in ("timesteps", "x_coefficient", "output_coefficient", "std"):
        torch.testing.assert_close(
            getattr(ours, table), getattr(theirs, table), rtol=1e-6, atol=1e-7
        )


def test_euler_ancestral_begins_at_no_signal_too() -> None:
    """Zero terminal SNR (SDXL variants): sigma is infinite there, the step is not."""
    changes = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    steps = samplers.build("euler_ancestral", schedule(**changes), 5)
    ddim = samplers.build("ddim", schedule(**changes), 5)
    for table in ("x_coefficient", "output_coefficient", "std"):
        torch.testing.assert_close(
            getattr(steps, table)[:-1], getattr(ddim, table)[:-1], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_eta_shares_the_noise_between_old_and_fresh(eta: float) -> None:
    """What is not fresh is the old one's: the step ends at the noise level of the next timestep."""
    steps = samplers.build("euler_ancestral", schedule(), 6, eta=eta)
    full = samplers.build("euler_ancestral", schedule(), 6)
    torch.testing.assert_close(steps.std, eta * full.std, rtol=1e-6, atol=0)
    signal, noise = schedule().levels(steps.timesteps)
    x0, epsilon = randn(0).double(), randn(1).double()
    for t in range(5):
        x = signal[t] * x0 + noise[t] * epsilon
        old = (noise[t + 1].square() - steps.std[t].double().square()).sqrt()
        expected = signal[t + 1] * x0 + old * epsilon
        close(step_at(steps, t, x.float(), epsilon.float()).mean, expected.float(), 1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_lcm_is_that_of_diffusers_at_every_step(prediction: str, count: int) -> None:
    steps = samplers.build("lcm", schedule(prediction_type=prediction), count)
    scheduler = LCMScheduler.from_config(
        tiny().scheduler.config, prediction_type=prediction, clip_sample=False
    )
    scheduler.set_timesteps(count)
    assert steps.timesteps.tolist() == scheduler.timesteps.tolist()
    for t, timestep in enumerate(scheduler.timesteps):
        x, output, source = randn(2 * t), randn(2 * t + 1), torch.Generator()
        theirs = scheduler.step(output, timestep, x, generator=source.manual_seed(t)).prev_sample
        noise = torch.randn(SHAPE, generator=source.manual_seed(t))
        close(step_at(steps, t, x, output).sample(noise), theirs, 2e-5)
    assert steps.stochastic.tolist() == [True] * (count - 1) + [False]


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm"])
def test_log_prob_is_that_of_torch(name: str) -> None:
    steps = samplers.build(name, schedule(), 4)
    for t in range(3):
        x, output = randn(2 * t), randn(2 * t + 1)
        step = step_at(steps, t, x, output)
        reached = step.sample(randn(50 + t))
        wide = steps.std[t].double().expand(SHAPE)
        expected = Independent(Normal(step.mean.double(), wide), 3).log_prob(reached.double())
        torch.testing.assert_close(step.log_prob(reached, "sum"), expected, rtol=1e-5, atol=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.eta: 1\.5"):
        samplers.build("euler_ancestral", schedule(), 4, eta=1.5)
    with pytest.raises(UserError, match=r"sampler\.original_steps: 4 .* 8"):
        samplers.build("lcm", schedule(), 8, original_steps=4)
    with pytest.raises(UserError, match=r"sampler\.original_steps: 2000 .* 1000"):
        samplers.build("lcm", schedule(), 8, original_steps=2000)

"""Every step is the Gaussian that diffusers samples from, with the density of
torch.distributions."""

import itertools
from typing import Any

import helpers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ddpo.errors import UserError
from ddpo.models._tiny import tiny
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.samplers import Gaussian, NoiseSchedule, Steps, gaussian_steps
from ddpo.samplers.ddim import ddim
from ddpo.samplers.ddpm import ddpm

SHAPE = (2, 4, 8, 8)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return helpers.policy()


def with_scheduler(model: StableDiffusion, **changes: Any) -> DDIMScheduler:
    """Puts a changed scheduler into the model's pipeline and returns it."""
    scheduler = DDIMScheduler.from_config(tiny().scheduler.config, **changes)
    model.pipeline.scheduler = scheduler
    vars(model).pop("schedule", None)  # made once, of the scheduler that was there
    return scheduler


def in_fp64(scheduler: Any) -> None:
    """1 - alpha is 0.0009 at the last step: in fp32 diffusers loses four digits of it."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor) -> None:
    """To fp32 rounding at the tensors' scale: near pure noise, x_0 = (x - eps) / 0.07 is large."""
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def ours_at(steps: Steps, t: int, x: Tensor, output: Tensor, noise: Tensor) -> Tensor:
    index = torch.full((len(x),), t)
    return steps.step(index, x, output).sample(noise)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("offset", "to_one", "spacing"),
    [*itertools.product((0, 1), (True, False), ("leading", "trailing"))],
)
def test_ddim_is_that_of_diffusers_at_every_step(
    model: StableDiffusion, eta: float, prediction: str, offset: int, to_one: bool, spacing: str
) -> None:
    scheduler = with_scheduler(
        model,
        prediction_type=prediction,
        steps_offset=offset,
        set_alpha_to_one=to_one,
        timestep_spacing=spacing,
    )
    in_fp64(scheduler)
    for count in (1, 7, 10):
        steps = ddim(model.schedule, count, eta=eta)
        scheduler.set_timesteps(count)
        assert steps.timesteps.tolist() == scheduler.timesteps.tolist() and len(steps) == count
        for t, timestep in enumerate(scheduler.timesteps):
            x, output, noise = randn(3 * t), randn(3 * t + 1), randn(3 * t + 2)
            asked = output.double(), timestep, x.double()
            theirs = scheduler.step(
                *asked, eta=eta, variance_noise=noise if eta else None
            ).prev_sample
            close(ours_at(steps, t, x, output, noise), theirs)
            quiet = scheduler.step(
                *asked, eta=eta, variance_noise=0 * noise if eta else None
            ).prev_sample
            std = (theirs - quiet).norm() / noise.double().norm()
            assert steps.std[t].item() == pytest.approx(std.item(), rel=1e-6), (
                "alone, beside so large a mean"
            )


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("offset", "spacing"), [(0, "leading"), (1, "leading"), (0, "trailing"), (0, "linspace")]
)
def test_ddpm_is_that_of_diffusers_at_every_step(
    model: StableDiffusion, variance: Any, prediction: str, offset: int, spacing: str
) -> None:
    config = with_scheduler(
        model, prediction_type=prediction, steps_offset=offset, timestep_spacing=spacing
    ).config
    scheduler = DDPMScheduler.from_config(
        config, variance_type=f"fixed_{variance}", clip_sample=False
    )
    in_fp64(scheduler)
    for count in (1, 7, 10):
        steps = ddpm(model.schedule, count, variance=variance)
        scheduler.set_timesteps(count)
        assert steps.timesteps.tolist() == scheduler.timesteps.tolist()
        for t, timestep in enumerate(scheduler.timesteps[:-1].tolist()):
            x, output = randn(3 * t), randn(3 * t + 1)
            asked = output.double(), timestep, x.double()
            noise = torch.randn(
                SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64
            )
            theirs = scheduler.step(*asked, generator=torch.Generator().manual_seed(t)).prev_sample
            close(ours_at(steps, t, x, output, noise.float()), theirs)
        assert not steps.stochastic[-1] and steps.std[-1] == 0 and steps.stochastic[:-1].all()
        x, output, last = randn(0), randn(1), int(scheduler.timesteps[-1])
        x0 = scheduler.step(output.double(), last, x.double()).pred_original_sample
        close(ours_at(steps, count - 1, x, output, randn(2)), x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_1_is_the_ddpm_posterior(model: StableDiffusion, prediction: str) -> None:
    with_scheduler(model, prediction_type=prediction)
    one, other = ddim(model.schedule, 50), ddpm(model.schedule, 50)
    for name in ("x_coefficient", "output_coefficient", "std"):
        torch.testing.assert_close(
            getattr(one, name)[:-1], getattr(other, name)[:-1], rtol=1e-6, atol=1e-7
        )


def test_known_numbers_of_stable_diffusion(model: StableDiffusion) -> None:
    """50 steps of Stable Diffusion 1.x: 981, 961, ..., 1; standard deviations from 0.4545 to
    0.0206."""
    with_scheduler(model)
    steps = ddim(model.schedule, 50)
    assert steps.timesteps[[0, 1, -2, -1]].tolist() == [981, 961, 21, 1]
    torch.testing.assert_close(
        steps.std[[0, 1, 2, -2, -1]],
        torch.tensor([0.4545, 0.448, 0.442, 0.0395, 0.0206]),
        rtol=0,
        atol=5e-4,
    )
    assert steps.stochastic.all()


def marked(model: StableDiffusion, eta: float = 1.0, **changes: Any) -> list[bool]:
    with_scheduler(model, **changes)
    return ddim(model.schedule, 5, eta=eta).stochastic.tolist()


def test_steps_without_noise_are_marked(model: StableDiffusion) -> None:
    assert marked(model) == [True] * 5, "final alpha is alpha_0 < 1, the last timestep is 1"
    assert marked(model, set_alpha_to_one=True) == [True] * 4 + [False]
    assert marked(model, steps_offset=0) == [True] * 4 + [False], (
        "the last step goes from alpha_0 to alpha_0"
    )
    assert marked(model, eta=0.0) == [False] * 5
    with_scheduler(model)
    assert ddpm(model.schedule, 5).stochastic.tolist() == [True] * 4 + [False]


def test_zero_terminal_signal(model: StableDiffusion) -> None:
    """Schedules rescaled to zero terminal SNR begin at alpha 0; a v-prediction model can start
    there."""
    changes = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    scheduler = with_scheduler(model, **changes)
    steps = ddim(model.schedule, 5)
    scheduler.set_timesteps(5)
    x, output, noise = randn(0), randn(1), randn(2)
    theirs = scheduler.step(
        output, scheduler.timesteps[0], x, eta=1.0, variance_noise=noise
    ).prev_sample
    close(ours_at(steps, 0, x, output, noise), theirs)


def test_what_is_refused(model: StableDiffusion) -> None:
    with_scheduler(model)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"sampler\.eta"):
            ddim(model.schedule, 4, eta=eta)
    for count in (0, 1001):
        with pytest.raises(UserError, match=rf"sampler\.num_steps: {count} .*1000"):
            ddim(model.schedule, count)
    for option in ("clip_sample", "thresholding"):
        with_scheduler(model, **{option: True})
        with pytest.raises(UserError, match="clip_sample and thresholding to false"):
            ddim(model.schedule, 4)


def gaussians(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, mean, other = (randn(seed, (3, 4, 5, 6)).to(dtype) for seed in range(3))
    return x, mean, other, torch.tensor([0.02, 0.4, 1.7], dtype=torch.float32)


def normal(mean: Tensor, std: Tensor) -> Independent:
    wide = std.double()[:, None, None, None].expand_as(mean)
    return Independent(Normal(mean.double(), wide), 3)


@pytest.mark.parametrize(("reduction", "dimensions"), [("sum", 1), ("mean", 4 * 5 * 6)])
def test_log_prob_and_kl_are_those_of_torch(reduction: Any, dimensions: int) -> None:
    x, mean, other, std = gaussians(torch.float64)
    found = Gaussian(mean, std).log_prob(x, reduction)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, normal(mean, std).log_prob(x) / dimensions, rtol=1e-12, atol=0
    )
    found = Gaussian(mean, std).kl(Gaussian(other, std), reduction)
    expected = kl_divergence(normal(mean, std), normal(other, std)) / dimensions
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_mean_is_the_default_reduction() -> None:
    x, mean, _, std = gaussians()
    step, other = Gaussian(mean, std), Gaussian(x, std)
    assert torch.equal(step.log_prob(x), step.log_prob(x, "mean"))
    assert torch.equal(step.kl(other), step.kl(other, "mean"))


def test_fp32_latents_are_reduced_in_fp64() -> None:
    """65,536 dimensions: a sum in fp32 would be wrong in the sixth digit, a ratio in its fourth."""
    x, mean = randn(0, (1, 4, 128, 128)), randn(1, (1, 4, 128, 128))
    std = torch.tensor([0.0206])
    exact = normal(mean, std).log_prob((x - mean).double() + mean.double())
    torch.testing.assert_close(Gaussian(mean, std).log_prob(x, "sum"), exact, rtol=1e-12, atol=0)


def test_kl_is_the_mean_log_ratio() -> None:
    """Monte Carlo: E_p[log p - log q]; its standard error is sqrt(2 KL / n)."""
    mean = randn(0, (1, 1, 2, 2))
    other = randn(1, (1, 1, 2, 2))
    std = torch.tensor([0.8])
    n = 200_000
    many = [tensor.expand(n, 1, 2, 2) for tensor in (mean, other)]
    steps = [Gaussian(center, std.expand(n)) for center in many]
    x = steps[0].sample(randn(2, (n, 1, 2, 2)))
    ratio = [step.log_prob(x, "sum") for step in steps]
    expected = Gaussian(mean, std).kl(Gaussian(other, std), "sum").item()
    assert (ratio[0] - ratio[1]).mean().item() == pytest.approx(
        expected, abs=5 * (2 * expected / n) ** 0.5
    )


def test_sample_has_the_mean_and_std_it_is_given() -> None:
    mean, std = torch.full((2, 100_000), 3.0), torch.tensor([0.5, 0.0])
    x = Gaussian(mean, std).sample(randn(0, (2, 100_000)))
    assert x[0].mean().item() == pytest.approx(3, abs=0.01) and x[0].std().item() == pytest.approx(
        0.5, abs=0.005
    )
    assert torch.equal(x[1], mean[1])


def test_bf16_inputs_are_computed_in_fp32(model: StableDiffusion) -> None:
    with_scheduler(model)
    steps, index = ddim(model.schedule, 10), torch.tensor([0, 9])
    x, output = randn(0).bfloat16(), randn(1).bfloat16()
    found = steps.step(index, x, output).mean
    assert found.dtype == torch.float32
    exact = steps.x_coefficient[index].double()[:, None, None, None] * x.double()
    exact += steps.output_coefficient[index].double()[:, None, None, None] * output.double()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_the_gradient_of_log_prob_is_the_score() -> None:
    """d log N / d mean = (x - mean) / std^2."""
    x, mean, _, std = gaussians(torch.float64)
    mean.requires_grad_()
    Gaussian(mean, std).log_prob(x, "sum").sum().backward()
    expected = (x - mean.detach()) / std.double()[:, None, None, None] ** 2
    torch.testing.assert_close(mean.grad, expected)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "velocity"])
def test_the_tables_do_not_depend_on_what_is_predicted(prediction: Any) -> None:
    """From x_0 and epsilon that are known, every prediction's output gives the same mean."""
    angle = torch.linspace(0.2, 1.4, 5, dtype=torch.float64)
    schedule = NoiseSchedule(
        angle.cos(), angle.sin(), (1.0, 0.0), prediction, lambda count: torch.arange(5)
    )
    timesteps = torch.tensor([4, 3, 2, 1, 0])
    weights = {name: randn(seed, (5,)).double() for seed, name in enumerate(("x0", "epsilon", "x"))}
    steps = gaussian_steps(
        schedule, timesteps, **weights, variance=torch.ones(5, dtype=torch.float64)
    )
    x0, epsilon = (randn(seed, (5, 4, 8, 8)) for seed in (1, 2))
    x, output = schedule.noised(x0, epsilon, timesteps)
    expected = sum(
        weights[name].float().view(5, 1, 1, 1) * part
        for name, part in (("x0", x0), ("epsilon", epsilon), ("x", x))
    )
    torch.testing.assert_close(
        steps.step(torch.arange(5), x, output).mean, expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noised_latents_and_targets_are_those_of_diffusers(
    model: StableDiffusion, prediction: str
) -> None:
    scheduler = with_scheduler(model, prediction_type=prediction)
    x0, epsilon, timesteps = randn(0), randn(1), torch.tensor([7, 981])
    x, target = model.schedule.noised(x0, epsilon, timesteps)
    torch.testing.assert_close(x, scheduler.add_noise(x0, epsilon, timesteps))
    velocity = scheduler.get_velocity(x0, epsilon, timesteps)
    targets = {"epsilon": epsilon, "v_prediction": velocity, "sample": x0}
    torch.testing.assert_close(target, targets[prediction])

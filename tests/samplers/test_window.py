"""A window of steps with noise: MixGRPO's rollouts, and plain ones where it holds all steps."""

from dataclasses import fields, replace
from typing import Any

import helpers
import pytest
import torch

from ddpo import samplers
from ddpo.errors import UserError
from ddpo.models._tiny import tiny
from ddpo.parallel.seeds import generator
from ddpo.rollout.sample import Sampler
from ddpo.samplers import NoiseSchedule, Steps, Window
from ddpo.samplers._diffusers import rectified_flow, variance_preserving
from ddpo.training.terms.log_probs import LogProbs

SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {}),
    ("euler_ancestral", {"eta": 0.5}),
    ("flow_sde", {}),
    ("flow_sde", {"integrator": "exponential"}),
    ("cps", {"reweighted": True}),
]


def schedule_for(name: str) -> NoiseSchedule:
    vp = name in ("ddim", "euler_ancestral")
    return variance_preserving(tiny().scheduler.config) if vp else rectified_flow({"shift": 3.0})


def both(name: str, options: dict[str, Any], count: int = 8) -> tuple[Steps, Steps]:
    arguments = name, schedule_for(name), count
    return samplers.build(*arguments, **options), samplers.deterministic(*arguments, **options)


def window(quiet: Steps, size: int, start: int = 0, stride: int = 1, every: int = 1) -> Window:
    return Window(size, start, stride, every, quiet)


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_with_all_steps_it_is_the_plain_sampler(name: str, options: dict[str, Any]) -> None:
    steps, quiet = both(name, options)
    for size in (8, int(steps.stochastic.sum())):
        whole = window(quiet, size, stride=3).at(steps, iteration=5)
        for field in fields(steps):
            assert torch.equal(getattr(whole, field.name), getattr(steps, field.name))


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_outside_the_window_steps_are_deterministic(name: str, options: dict[str, Any]) -> None:
    steps, quiet = both(name, options)
    assert not quiet.stochastic.any() and not quiet.std.any()
    mixed = window(quiet, 3, start=2).at(steps, 0)
    inside = torch.tensor([False, False, True, True, True, False, False, False])
    assert torch.equal(mixed.stochastic, inside) and torch.equal(mixed.timesteps, steps.timesteps)
    for table in ("x_coefficient", "output_coefficient", "std", "scored_std"):
        ours, noisy, still = (getattr(each, table) for each in (mixed, steps, quiet))
        assert torch.equal(ours[inside], noisy[inside])
        assert torch.equal(ours[~inside], still[~inside])


def test_the_place_is_a_function_of_the_iteration() -> None:
    """MixGRPO: every 2 iterations one step on, from high noise to low; then from the start."""
    steps, quiet = both("flow_sde", {}, count=6)  # 5 of its steps have noise
    moving = window(quiet, 2, start=1, stride=1, every=2)
    firsts = [int(moving.inside(steps, i).nonzero()[0]) for i in range(10)]
    assert firsts == [1, 1, 2, 2, 3, 3, 0, 0, 1, 1]
    assert all(int(moving.inside(steps, i).sum()) == 2 for i in range(10))
    still = window(quiet, 2, start=1, stride=0)
    assert {int(still.inside(steps, i).nonzero()[0]) for i in range(10)} == {1}


def test_a_trajectory_has_noise_and_a_density_in_the_window_only() -> None:
    policy = helpers.policy(moved=0.1)
    steps, quiet = (
        build("ddim", policy.schedule, 6) for build in (samplers.build, samplers.deterministic)
    )
    sampler = Sampler(steps, 3.0, 4, window=window(quiet, 2, start=3))
    mixed = sampler.at(0)
    trajectory, _ = helpers.rolled(policy, mixed, 4)
    assert (trajectory.logp_old != 0).any(0).tolist() == [False] * 3 + [True] * 2 + [False]
    deterministic, _ = helpers.rolled(policy, Sampler(quiet, 3.0, 4), 4)
    plain, _ = helpers.rolled(policy, Sampler(steps, 3.0, 4), 4)
    assert torch.equal(trajectory.latents[:, :4], deterministic.latents[:, :4])
    assert not torch.allclose(trajectory.latents[:, 4], deterministic.latents[:, 4], atol=1e-2)
    whole, _ = helpers.rolled(policy, replace(sampler, window=window(quiet, 6)).at(7), 4)
    assert torch.equal(whole.latents, plain.latents) and torch.equal(whole.logp_old, plain.logp_old)
    rows, columns = torch.arange(4).repeat_interleave(2), torch.tensor([3, 4]).repeat(4)
    again = LogProbs(policy, mixed, trajectory)(rows, columns)["logp"].detach()
    assert ((again - trajectory.logp_old[rows, columns]).exp() - 1).abs().max() <= 1e-6


def test_an_iteration_trains_on_the_window_and_moves_it() -> None:
    policy = helpers.policy()
    steps, quiet = (
        build("ddim", policy.schedule, 4) for build in (samplers.build, samplers.deterministic)
    )
    sampler = Sampler(steps, 3.0, 16, window=window(quiet, 1))
    trainer = helpers.make_trainer(policy, "grpo", sampler=sampler)
    for iteration in range(3):
        prompts = trainer.draw()
        trajectory, values, _, _ = trainer.rollout(prompts)
        batch, _ = trainer.outcome(prompts, trajectory, values)
        assert batch.stochastic.nonzero().flatten().tolist() == [iteration]
        metrics = trainer.iterate()
        assert metrics["ratio/max_dev"] <= 1e-6 and metrics["kl_ref"] >= 0


def test_what_is_refused() -> None:
    steps, quiet = both("flow_sde", {}, count=6)
    with pytest.raises(UserError, match=r"sde_window\.size: 7 is more than the 6"):
        window(quiet, 7).check(steps)
    with pytest.raises(UserError, match=r"sde_window\.start: 4 .* take 3"):
        window(quiet, 2, start=4).check(steps)
    for name in ("ddpm", "lcm"):
        with pytest.raises(UserError, match=f"sde_window: {name} has no deterministic"):
            samplers.deterministic(name, schedule_for("ddim"), 4)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.6, 0.7), (1.0, 1.0)])
def test_timesteps_to_train_on_are_drawn_from_the_window(window: tuple[float, float]) -> None:
    """From 0, the least noise, to 1, of both kinds of schedules; without one: from all."""
    for schedule in map(schedule_for, ("ddim", "flow_sde")):
        drawn = [float(schedule.draw(generator(0, i), window)) for i in range(300)]
        shares = torch.tensor(drawn) / len(schedule)
        low, high = min(window[0], 0.999), max(window[1], 0.001)
        assert low - 1e-6 <= shares.min() and shares.max() <= high + 1e-6
        assert window[0] == window[1] or shares.max() - shares.min() > 0.9 * (high - low)
        usual = [float(schedule.draw(generator(0, i))) for i in range(300)]
        assert (drawn == usual) == (window == (0.0, 1.0))

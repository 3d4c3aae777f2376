"""Predictions of x_0 along a trajectory: what they are, of which samples, and where they lie."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import helpers
import numpy as np
import pytest
import torch

from ddpo.evaluation import trajectories
from ddpo.evaluation.pages import gallery
from ddpo.prompts import Prompt
from ddpo.rollout.sample import Sampler, sample
from ddpo.samplers import build


@pytest.fixture(scope="module")
def made() -> tuple[Any, Sampler, Any]:
    """The tiny model, a sampler of ten steps, and two trajectories by it."""
    policy = helpers.policy()
    sampler = Sampler(build("ddim", policy.schedule, 10, eta=1.0), 1.0, 4)
    prompts = [Prompt("a fox"), Prompt("an owl")]
    with torch.no_grad():
        (part,) = sample(policy, sampler, prompts, [(0, 1), (0, 2)])
    return policy, sampler, part


def test_a_network_that_knows_x0_predicts_it_at_every_step(
    made: tuple[Any, Sampler, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler, part = made
    known = torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(3))

    def predict(x: Any, timesteps: Any, condition: Any, scale: float) -> Any:
        signal, noise = (
            level.float().view(-1, 1, 1, 1) for level in policy.schedule.levels(timesteps)
        )
        return (x - signal * known) / noise  # epsilon

    assert policy.schedule.prediction == "epsilon"
    monkeypatch.setattr(policy, "predict", predict)
    found = trajectories.predictions(policy, sampler, part, 1)
    (wanted,) = policy.medium.pictures(policy.decode(known[None]))
    assert [*found] == [0, 1, 3, 4, 5, 6, 8, 9]  # eight of ten, evenly spaced (halves to even)
    for picture in found.values():
        difference = np.abs(np.asarray(picture, int) - np.asarray(wanted, int))
        assert difference.max() <= 1


def test_a_row_is_its_own(made: tuple[Any, Sampler, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """States, timesteps, prompt and guidance of the row that is asked for."""
    policy, sampler, part = made
    seen: list[Any] = []

    def predict(x: Any, timesteps: Any, condition: Any, scale: float) -> Any:
        seen.append((x, timesteps, scale))
        return torch.zeros_like(x)

    monkeypatch.setattr(policy, "predict", predict)
    trajectories.predictions(policy, sampler, part, 1)
    steps = [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(torch.cat([x for x, _, _ in seen]), part.latents[1, steps])
    assert torch.equal(torch.cat([t for _, t, _ in seen]), sampler.steps.timesteps[steps])
    assert {len(x) for x, _, _ in seen} == {4} and {scale for _, _, scale in seen} == {1.0}


@pytest.mark.parametrize(
    ("prompts", "per_prompt", "numbers"),
    [(4, 2, []), (10, 2, [0]), (45, 4, [0, 88]), (1, 40, [0]), (40, 1, [0, 20])],
)
def test_few_are_chosen(prompts: int, per_prompt: int, numbers: list[int]) -> None:
    assert trajectories.chosen(prompts, per_prompt) == numbers


def test_kept_beside_the_sample_and_found_by_the_page(
    made: tuple[Any, Sampler, Any], tmp_path: Path
) -> None:
    policy, sampler, part = made
    sample_file = tmp_path / "pictures" / "ab" / "abcd.png"
    trajectories.keep(policy, sampler, part, {trajectories.folder_of(sample_file): 0})
    target = tmp_path / "evaluation" / gallery.trajectory("images/animals_00000_base.png")
    trajectories.copy(sample_file, target)
    names = sorted(path.name for path in target.iterdir())
    assert names[0] == "step_001_of_010.webp" and names[-1] == "step_010_of_010.webp"
    assert len(names) == trajectories.STEPS
    trajectories.copy(sample_file.with_name("other.png"), tmp_path / "none")
    trajectories.copy(None, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_letters_have_none(made: tuple[Any, Sampler, Any]) -> None:
    policy = cast(Any, SimpleNamespace(schedule=object()))
    assert trajectories.predictions(policy, made[1], made[2], 0) == {}

"""The KL of a chain to the base's: torch's closed form, and what it asks the network for."""

from typing import Any

import helpers
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpo.evaluation import trajectories
from ddpo.rollout.divergence import divergences
from ddpo.rollout.sample import Sampler, sample, stored_steps
from ddpo.rollout.trajectory import Trajectory

PROMPTS = helpers.as_prompts(["a fox", "an owl", "two bees", "a cat", "a dog"])
KEYS = [(0, i) for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def made() -> tuple[Any, Sampler]:
    """An adapter that does something, with guidance."""
    policy = helpers.policy(moved=0.3)
    return policy, helpers.sampler(policy, batch_size=3)


def parts(made: tuple[Any, Sampler], remembered: set[int]) -> list[Trajectory]:
    with torch.no_grad():
        return list(sample(*made, PROMPTS, KEYS, remembered=remembered))


def test_it_is_torchs_closed_form(made: tuple[Any, Sampler]) -> None:
    policy, sampler = made
    (part, _) = parts(made, set())
    rows, columns = torch.full((4,), 1), torch.arange(4)
    with torch.no_grad():
        ours = stored_steps(policy, sampler, part, rows, columns).mean.double()
        with policy.weights("base"):
            theirs = stored_steps(policy, sampler, part, rows, columns).mean.double()
    std = sampler.steps.std.double().view(-1, 1, 1, 1)
    expected = kl_divergence(Normal(ours, std), Normal(theirs, std)).sum().item()
    (found,) = divergences(policy, sampler, part, [1])
    assert found == pytest.approx(expected, rel=1e-4) and found > 0.01


def test_what_the_chain_was_told_is_not_asked_again(
    made: tuple[Any, Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers and pictures, and the network's rows are those of the base alone."""
    policy, sampler = made
    forgotten, remembered = parts(made, set()), parts(made, {1, 2, 3})
    assert [[*part.outputs] for part in remembered] == [[1, 2], [0]]
    for before, after in zip(forgotten, remembered, strict=True):
        assert torch.equal(before.latents, after.latents) and not before.outputs
        rows = [*after.outputs]
        expected = divergences(policy, sampler, before, rows)
        assert divergences(policy, sampler, after, rows) == pytest.approx(expected, rel=1e-4)
        again = trajectories.predictions(policy, sampler, before, rows[0])
        for step, picture in trajectories.predictions(policy, sampler, after, rows[0]).items():
            difference = np.abs(np.asarray(picture, int) - np.asarray(again[step], int))
            assert difference.max() <= 1
    asked, predict = [], policy.predict

    def counted(x: Any, *arguments: Any) -> Any:
        asked.append(len(x))
        return predict(x, *arguments)

    monkeypatch.setattr(policy, "predict", counted)
    trajectories.predictions(policy, sampler, remembered[0], 1)
    assert not asked
    divergences(policy, sampler, remembered[0], [1])
    assert sum(asked) == 4  # two calls of two steps

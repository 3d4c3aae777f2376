"""`auto` sizes of network calls: the largest that fit by the estimate, and by a trial."""

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from ddpo import config
from ddpo.commands import frame
from ddpo.commands import plan as command
from ddpo.errors import UserError
from ddpo.planning import fitting, memory
from ddpo.planning import plan as planning

OPEN = {"sampler__batch_size": "auto", "trainer__micro_batch": "auto"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> config.Config:
    """8 prompts of 16 samples in one minibatch: more than a call may have."""
    return helpers.settings(
        tmp_path_factory.mktemp("fitting"),
        **OPEN,
        trainer__prompts_per_iteration=8,
        trainer__samples_per_prompt=16,
        trainer__minibatches=1,
        trainer__while_sampling=False,
    )


@pytest.fixture(scope="module")
def footprints(settings: config.Config) -> dict[tuple[int, int], dict[str, int]]:
    """By the sizes of calls of images and of pairs."""
    plans = {
        each: planning.plan(config.with_calls(settings, *each, 2))
        for each in [(2, 2), (4, 4), (8, 24)]
    }
    return {each: memory.footprint(found) for each, found in plans.items()}


@pytest.fixture
def known(footprints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan of those sizes needs, without counting it again."""

    def footprint(plan: planning.Plan) -> dict[str, int]:
        size = min(4, int(plan.settings.trainer.micro_batch))
        return footprints[size, size]

    monkeypatch.setattr(memory, "footprint", footprint)


def test_two_estimates_give_all_others(settings: config.Config, footprints: Any) -> None:
    plan = planning.plan(config.with_calls(settings, 2, 2, 2))
    for on_gpu in (True, False):
        estimate = fitting.Estimate(plan, footprints[2, 2], footprints[4, 4], on_gpu)
        other = footprints[8, 24]
        true = other["peak"] if on_gpu else memory.on_cpu(other, 0.0)
        assert estimate.bytes(8, 24) == pytest.approx(true, rel=0.02)


@pytest.mark.usefixtures("known")
def test_they_are_the_largest_that_fit(settings: config.Config, footprints: Any) -> None:
    ample = fitting.settled(settings, 1, 1e12, on_gpu=True)
    assert (ample.sampler.batch_size, ample.trainer.micro_batch) == (64, 64)
    room = footprints[8, 24]["peak"] / fitting.SPARE
    found = fitting.settled(settings, 1, room, on_gpu=True)
    # of 384 pairs, 24 are a sixteenth
    assert found.trainer.micro_batch in (23, 24, 25)


def test_calls_are_of_one_size(settings: config.Config) -> None:
    """12 images with room for 8 are two calls of 6; a process has its share of them."""
    estimate = fitting.Estimate(planning.plan(config.with_calls(settings, 2, 2, 2)), {}, {}, True)
    assert estimate.largest(12, 8.0, float) == 6
    assert estimate.largest(7, 8.0, float) == 7
    assert estimate.largest(1000, 1e9, float) == 63  # 16 calls of at most 64
    assert estimate.largest(5, 0.0, float) == 1


@pytest.mark.usefixtures("known")
def test_given_numbers_stay_and_nothing_fits_is_said(
    settings: config.Config, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = config.with_calls(settings, 5, 1, 5)
    mixed.trainer.micro_batch = "auto"
    found = fitting.settled(mixed, 2, 1e6, on_gpu=False)
    assert (found.sampler.batch_size, found.trainer.micro_batch) == (5, 1)
    assert "even calls of one image" in caplog.text
    assert fitting.settled(found, 1, 0.0, on_gpu=False) is found


def test_a_trial_goes_down_until_a_call_has_room(
    settings: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The imagined device holds 6 images of a rollout, and 3 pairs with their graph."""
    policy = helpers.policy()
    predict = policy.predict

    def small(latents: Any, *rest: Any) -> Any:
        if len(latents) > (3 if torch.is_grad_enabled() else 6):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(latents, *rest)

    monkeypatch.setattr(policy, "predict", small)
    sizes = config.with_calls(settings, 24, 24, 24)
    assert fitting.tried(policy, sizes, grad=False) == (6, 3)
    assert all(parameter.grad is None for parameter in policy.parameters().values())
    monkeypatch.setattr(policy, "predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitting.tried(policy, sizes, grad=False)

    def none(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(policy, "predict", none)
    with pytest.raises(UserError, match="no room for a call of one image"):
        fitting.tried(policy, sizes, grad=False)


@pytest.mark.usefixtures("known")
def test_a_plan_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = helpers.smoke(tmp_path / "run", "--trainer.micro_batch", "auto")
    assert frame.run(command.main, [*flags, "--gpu", "8"]) == 0
    said = capsys.readouterr().out
    assert "trainer.micro_batch 12, for the 8 GB of a GPU" in said and "12 pairs a call" in said
    assert frame.run(command.main, [*flags[:-2], "--gpu", "8"]) == 2
    assert "--gpu: is for sizes that are auto" in capsys.readouterr().err

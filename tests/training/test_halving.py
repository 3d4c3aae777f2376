"""Memory that runs out halves a call once, and the iteration's result is the same."""

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from ddpo import config, finetune
from ddpo.errors import Stopped
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.planning import memory
from ddpo.rollout.gradients import trained_layers
from ddpo.training.halving import Halving
from ddpo.training.trainer import Trainer


class Device:
    """One that has room for so many rows of a call, with a graph or without."""

    def __init__(self, policy: StableDiffusion, without: int, with_graph: int) -> None:
        self.room, self.predict, self.failed = (without, with_graph), policy.predict, 0

    def __call__(self, latents: Any, *rest: Any) -> Any:
        if len(latents) > self.room[torch.is_grad_enabled()]:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.predict(latents, *rest)


def trained(objective: str, device: tuple[int, int] | None, **changes: Any) -> Any:
    policy = helpers.policy(moved=0.1)
    trainer = helpers.make_trainer(policy, objective, minibatches=2, **changes)
    # AdamW would turn the rounding of a tiny gradient into a full step
    trainer.optimizer = torch.optim.SGD(list(policy.parameters().values()), 1e-2)
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, 1.0)
    trainer.sizes = helpers.Sizes(4, 4, minibatches=2, micro_batch=16)
    failing = Device(policy, *device) if device else None
    if failing:
        policy.predict = failing  # pyright: ignore[reportAttributeAccessIssue]
    # a first pass' loss is a sum of terms that cancel: in single precision what is left is rounding
    with helpers.in_double(policy.unet):
        rows = [trainer.iterate() for _ in range(2)]
    return trainer, rows, failing


@pytest.mark.parametrize("objective", ["ddpo", "prdp"])
def test_the_result_is_the_same(objective: str) -> None:
    """In a rollout of 16 images and an update of 16 pairs, each too many by half."""
    _, plain, _ = trained(objective, None)
    trainer, halved, device = trained(objective, (8, 8))
    assert device.failed == 2
    assert (trainer.sampler.batch_size, trainer.sizes.micro_batch) == (8, 8)
    for row, same in zip(halved, plain, strict=True):
        for name in ("reward/mean", "loss", "grad_norm", "approx_kl", "ratio/mean"):
            assert row[name] == pytest.approx(same[name], rel=1e-4, abs=2e-8), name


def test_gradients_of_images_are_collected_again() -> None:
    """The second chunk of a rollout runs out of memory; the first one's gradients stay."""
    found = {}
    for room in (None, 8):
        policy = helpers.policy(moved=0.1)
        trainer = helpers.make_trainer(policy, "ddpo")
        layers = trained_layers(policy.modules, policy.parameters())
        trainer.gradient_layers, calls = layers, []
        predict = policy.predict

        def once(latents: Any, *rest: Any, room: Any = room, of: Any = (calls, predict)) -> Any:
            calls, predict = of
            calls.append(len(latents))
            if room and len(calls) > 6 and len(latents) > room:  # in the second chunk of 10
                raise torch.OutOfMemoryError
            return predict(latents, *rest)

        policy.predict = once  # pyright: ignore[reportAttributeAccessIssue]
        trainer.sampler = helpers.sampler(policy, batch_size=10)
        work = trainer.image_gradients()
        trainer.rollout(trainer.draw(), work)
        found[room] = work.weighted(torch.linspace(-1, 1, 16))
    for name, gradient in found[None].items():
        assert helpers.difference(found[8][name], gradient) < 1e-5, name


def test_a_second_time_ends_the_run() -> None:
    trainer, *_ = trained("ddpo", (16, 8))
    trainer.policy.predict.room = (16, 4)
    with pytest.raises(Stopped, match=r"trainer\.micro_batch 8, and it was halved once already"):
        trainer.iterate()
    with pytest.raises(Stopped, match=r"no room for trainer\.micro_batch 1; take model\.grad"):
        Halving().halve("trainer.micro_batch", 1)


def test_config_yaml_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that was found, then its half; a resume takes that, whatever auto would be."""
    parts = ("weights", "offloaded", "training", "latents", "images", "embeddings", "gradients")
    nothing = dict.fromkeys((*parts, "sampling", "decoding", "update"), 0)
    monkeypatch.setattr(memory, "footprint", lambda plan: nothing)
    settings = helpers.settings(
        tmp_path / "run",
        sampler__batch_size="auto",
        trainer__micro_batch="auto",
        trainer__iterations=1,
        checkpoint__every=1,
    )
    iterate = Trainer.iterate

    def small(self: Trainer) -> Any:
        self.policy.predict = Device(self.policy, 16, 6)  # pyright: ignore
        return iterate(self)

    monkeypatch.setattr(Trainer, "iterate", small)
    finetune(settings)
    kept = config.load(tmp_path / "run" / "config.yaml")
    assert (kept.sampler.batch_size, kept.trainer.micro_batch) == (8, 6)
    monkeypatch.setattr(Trainer, "iterate", iterate)
    settings.trainer.iterations = 2
    finetune(settings, resume=True)
    kept = config.load(tmp_path / "run" / "config.yaml")
    assert (kept.sampler.batch_size, kept.trainer.micro_batch) == (8, 6)

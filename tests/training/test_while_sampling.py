"""The first update's gradient, collected while sampling, is that of scoring the images again."""

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from ddpo import objectives, plugins
from ddpo.building import build
from ddpo.errors import UserError
from ddpo.objectives import Objective
from ddpo.parallel.seeds import Purpose
from ddpo.rollout.gradients import ImageGradients, trained_layers
from ddpo.rollout.sample import sample
from ddpo.rollout.trajectory import join

UNIFORM = {
    "ddpo": {},
    "ddpo, blocks": {"block_size": 2},
    "ddpo_sf": {},
    "grpo": {},
    "prdp": {"beta": 0.1},
    "prdp, sums": {"beta": 3.0, "sum_steps": True},
    "p3o": {},
    "p3o, separate": {"joint": False},
}


@pytest.mark.parametrize("name", UNIFORM)
def test_the_gradient_is_that_of_scoring_the_images_again(name: str) -> None:
    """A sample is left out, and one step has no density."""
    objective = objectives.build(name.split(",")[0], **UNIFORM[name])
    assert objective.uniform_over_steps
    policy = helpers.policy(moved=0.2)
    scheduler = policy.pipeline.scheduler
    policy.pipeline.scheduler = type(scheduler).from_config(scheduler.config, set_alpha_to_one=True)
    sampler = helpers.sampler(policy, steps=4)
    layers = trained_layers(policy.modules, policy.parameters())
    assert layers is not None
    gradients = ImageGradients(layers, sampler.steps.stochastic)
    prompts = helpers.as_prompts(f"prompt {i // 2}" for i in range(6))
    keys = [(Purpose.NOISE, 0, 0, i) for i in range(6)]
    with torch.no_grad():
        parts = list(sample(policy, sampler, prompts, keys, ("logp_ref",), gradients=gradients))
    work = helpers.work_on(policy, join(parts), sampler, objective, micro_batch=5)
    work.moved, samples = False, [5, 0, 2, 3, 4]
    scored = helpers.gradient(work, samples)
    loss = work.backward(samples)
    work.gradients = gradients
    assert helpers.difference(helpers.gradient(work, samples), scored) < 1e-5
    assert work.backward(samples) == pytest.approx(loss, rel=1e-6)


def test_no_objective_claims_to_be_uniform_and_is_not() -> None:
    """All that declare it are in the list above."""
    named = [
        name for name in plugins.names("objectives") if objectives.build(name).uniform_over_steps
    ]
    assert sorted(named) == sorted({name.split(",")[0] for name in UNIFORM})


def test_a_false_declaration_is_found_out(tmp_path: Path) -> None:
    def later_steps_weigh_more(logp: Any, batch: Any) -> Any:
        return batch.mean(logp * torch.arange(logp.shape[1]))

    lying = Objective("lying", later_steps_weigh_more, {}, uniform_over_steps=True)
    policy = helpers.policy()
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, 2)
    work = helpers.work_on(policy, trajectory, sampler, lying, micro_batch=4)
    layers = trained_layers(policy.modules, policy.parameters())
    assert layers is not None
    work.gradients, work.moved = ImageGradients(layers, sampler.steps.stochastic), False
    with pytest.raises(UserError, match="lying is declared uniform_over_steps"):
        work.backward([0, 1])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"objective__name": "rwr"}, "rwr does not weigh"),
        ({"objective__kl_weight": 0.1}, "kl_weight"),
        ({"lora__text_encoder": True}, "text_encoder"),
        ({"lora": None}, "lora: null"),
        ({"lora__target_modules": ["conv1"]}, "not linear"),
        ({"model__gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"objective__guidance_scale": 1.0}, "guidance_scale"),
    ],
)
def test_what_cannot_be_is_refused_and_auto_scores_again(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    one = {"trainer__minibatches": 1, "trainer__micro_batch": 64, **changes}
    with pytest.raises(UserError, match=rf"trainer\.while_sampling: true: .*{why}"):
        build.trainer(helpers.settings(tmp_path, trainer__while_sampling=True, **one))
    assert build.trainer(helpers.settings(tmp_path, **one)).gradient_layers is None


def test_auto_takes_it_for_one_update_that_memory_allows(tmp_path: Path) -> None:
    def collects(**changes: Any) -> bool:
        one = {"trainer__minibatches": 1, "trainer__micro_batch": 64, **changes}
        return build.trainer(helpers.settings(tmp_path, **one)).gradient_layers is not None

    assert collects()
    assert collects(trainer__epochs=2, objective__name="prdp")
    assert not collects(trainer__minibatches=2)
    assert not collects(trainer__micro_batch=1)
    assert not collects(trainer__while_sampling=False)
    assert collects(trainer__while_sampling=True, trainer__micro_batch=1, trainer__minibatches=2)


def test_a_run_learns_the_same(tmp_path: Path) -> None:
    """Two passes: the second one scores all pairs, with ratios that are no longer 1."""
    rows = {}
    for way in (True, False):
        settings = helpers.settings(
            tmp_path / str(way),
            trainer__while_sampling=way,
            trainer__minibatches=1,
            trainer__epochs=2,
            objective__name="prdp",
        )
        trainer = build.trainer(settings)
        rows[way] = [trainer.iterate() for _ in range(2)]
    for collected, scored in zip(rows[True], rows[False], strict=True):
        for name in ("loss", "grad_norm", "reward/mean"):
            assert collected[name] == pytest.approx(scored[name], rel=1e-4), name
    assert rows[True][0]["ratio/max_dev"] > 0

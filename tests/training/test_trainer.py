"""The loop: gates, what is left out and counted, and that a reward rises."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from ddpo import advantages, objectives, plugins
from ddpo.errors import Stopped, UserError
from ddpo.media import MEDIA
from ddpo.objectives import Batch, Objective
from ddpo.prompts import Prompt, PromptSet
from ddpo.records.metrics import METRICS
from ddpo.rewards import Reward
from ddpo.rollout.sample import sample
from ddpo.scoring.scorer import Scorer
from ddpo.training.measures import kl_pairs
from ddpo.training.trainer import Trainer
from ddpo.training.update import Pass


def weights(trainer: Any) -> Tensor:
    return torch.cat(
        [parameter.detach().flatten().clone() for parameter in trainer.policy.parameters().values()]
    )


def test_the_ratio_is_1_until_the_first_update() -> None:
    """With one update per iteration every pair is scored at the weights that sampled it."""
    for minibatches, epochs in ((1, 1), (2, 1), (1, 2)):
        trainer = helpers.make_trainer(
            helpers.policy(), minibatches=minibatches, epochs=epochs, micro_batch=5
        )
        for _ in range(2):
            row = trainer.iterate()
            moved = minibatches * epochs > 1
            assert (row["ratio/max_dev"] > 1e-6) == moved, row
            assert abs(row["ratio/mean"] - 1) < (0.1 if moved else 1e-6)
            assert (row["approx_kl"] > 1e-12) == moved and (row["clip_frac"] > 0) == moved
            assert row["skipped_steps"] == 0 and row["grad_norm"] > 0


def test_every_metric_is_in_the_table() -> None:
    row = helpers.make_trainer(helpers.policy()).iterate()
    assert {name.replace("redness", "<name>") for name in row} <= METRICS.keys()
    assert all(math.isfinite(value) for value in row.values())
    # written by the session, by some objectives, for rewards with a gate, of sequences
    later = ["eval/<name>", "eval/kl", "objective/<name>", "gated/<name>"]
    later += [f"guard/{name}" for name in MEDIA["dna"].guards]
    assert METRICS.keys() == {name.replace("redness", "<name>") for name in row} | set(later)


def test_the_minibatches_of_a_pass_share_out_its_gradient() -> None:
    """At a learning rate of 0: two steps on 8 of 16 images each have the mean gradient of one step
    on all."""
    found: list[list[Tensor]] = []
    for minibatches in (1, 2):
        trainer = helpers.make_trainer(
            helpers.policy(), "ddpo_sf", lr=0.0, minibatches=minibatches, max_grad_norm=1e9
        )
        seen: list[Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, seen=seen: seen.append(
                helpers.flat_gradient(trainer.policy)
            )
        )
        trainer.iterate()
        found.append(seen)
    (whole,), (one, other) = found
    assert (
        helpers.difference((one + other) / 2, whole) < 1e-5 and helpers.difference(one, whole) > 0.1
    )


def test_reward_statistics_are_those_of_the_images() -> None:
    seen: list[Tensor] = []

    def reward(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        seen.append(helpers.redness(images, prompts, metadata))
        return seen[-1]

    rewards = [Reward("own", 2.0, reward)]
    scorer = Scorer(rewards, threads=1)
    row = helpers.make_trainer(helpers.policy(), scorer=scorer, rewards=rewards).iterate()
    values = torch.cat(seen).double()
    assert len(values) == 16 and row["images_seen"] == 16 and row["iteration"] == 1
    assert row["reward/own"] == pytest.approx(values.mean().item(), rel=1e-6)
    assert row["reward/mean"] == pytest.approx(2 * values.mean().item(), rel=1e-6)
    assert row["reward/std"] == pytest.approx(2 * values.std(correction=0).item(), rel=1e-5)


def test_kl_ref_is_0_at_the_reference_and_grows() -> None:
    trainer = helpers.make_trainer(helpers.policy(), lr=1e-2)
    first, second = trainer.iterate(), trainer.iterate()
    assert 0 < first["kl_ref"] < second["kl_ref"], "measured after the update"
    still = helpers.make_trainer(
        helpers.policy(), reward=lambda images, *rest: torch.zeros(len(images))
    )
    still.optimizer.param_groups[0]["weight_decay"] = 0.0
    assert still.iterate()["kl_ref"] == 0


def test_kl_ref_is_measured_on_pairs_in_the_middle_of_equal_parts() -> None:
    """A fiftieth of the pairs, at least 1 and at most 4; steps without a density are none of
    them."""
    assert kl_pairs(16, range(4)) == [(8, 2)]
    assert kl_pairs(10, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12]) == [(2, 3), (7, 9)]
    assert kl_pairs(32, range(8)) == [(4, 1), (12, 3), (20, 5), (28, 7)]
    assert kl_pairs(1, [5]) == [(0, 5)]


def test_equal_rewards_change_no_weight() -> None:
    trainer = helpers.make_trainer(
        helpers.policy(), reward=lambda images, *rest: torch.full((len(images),), 0.3)
    )
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    before = weights(trainer)
    row = trainer.iterate()
    assert row["grad_norm"] == 0 and torch.equal(weights(trainer), before)


def test_a_gate_of_ones_own() -> None:
    """It takes the place of the usual limit, which a device that rounds more would not pass."""
    trainer = helpers.make_trainer(helpers.policy(), "ddpo")
    trajectory, values, _, _ = trainer.rollout(trainer.draw())
    trajectory.logp_old += 1e-3
    batch, _ = trainer.outcome(trainer.draw(), trajectory, values)
    terms = trainer.terms(trajectory, 0)
    work = helpers.Pass(terms, batch, trainer.objective, 16, helpers.Measured(None))
    trainer.ratio_gate = 1.1e-3
    trainer.gate(work)
    trainer.ratio_gate = 0.9e-3
    with pytest.raises(Stopped, match=r"above 9.0e-04: .*trainer.ratio_gate"):
        trainer.gate(work)


class Dropout(torch.nn.Module):
    """A layer and a dropout that eval mode does not switch off."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(self.layer(x), 0.1, training=True)


def test_dropout_is_stopped_before_the_first_update() -> None:
    policy = helpers.policy()
    policy.unet.conv_norm_out = Dropout(policy.unet.conv_norm_out)
    trainer = helpers.make_trainer(policy)
    before = weights(trainer)
    with pytest.raises(Stopped, match=r"ratio gate: .*\|ratio - 1\| is .*dropout") as told:
        trainer.iterate()
    assert "\n" not in str(told.value) and torch.equal(weights(trainer), before)


def gate(policy: Any, shift: float, **options: float) -> None:
    """The gate on a record that is off by `shift`."""
    trainer = helpers.make_trainer(
        policy, objectives.build("ddpo", **options) if options else "ddpo"
    )
    trajectory, values, _, _ = trainer.rollout(trainer.draw())
    trajectory.logp_old += shift
    batch, _ = trainer.outcome(trainer.draw(), trajectory, values)
    trainer.gate(
        helpers.Pass(
            trainer.terms(trajectory, 0), batch, trainer.objective, 16, helpers.Measured(None)
        )
    )


def test_the_gates_limit() -> None:
    """max(0.1 clip_range, 1e-6 in fp32, 1e-5 in half precision), and never more than 1e-2."""
    full, half = helpers.policy(), helpers.policy(dtype="bf16")
    for policy, shift, options in (
        (full, 8e-6, {"clip_range": 1e-4}),
        (full, 8e-5, {"clip_range": 1e-3}),
        (half, 3e-6, {"clip_range": 1e-6}),
        (full, 8e-3, {"clip_range": 1.0}),
    ):
        gate(policy, shift, **options)
        with pytest.raises(Stopped):
            gate(policy, 4 * shift, **options)
    with pytest.raises(Stopped):
        gate(full, 3e-6, clip_range=1e-7)
    with pytest.raises(Stopped):
        gate(full, float("nan"))


def missing(count: int) -> Any:
    """Redness, but the first `count` of an iteration's 16 images get no value."""

    def reward(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        values = helpers.redness(images, prompts, metadata)
        values[:count] = torch.nan
        return values

    return reward


def test_images_without_a_reward_are_counted_and_left_out() -> None:
    """The gradient is that of the other 11, divided by 11: as if the five had never been drawn."""
    trainer = helpers.make_trainer(helpers.policy(), "ddpo_sf", missing(5))
    gradients: list[Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(helpers.flat_gradient(trainer.policy))
    )
    prompts, trainer.max_grad_norm = trainer.draw(), 1e9
    trajectory, values, _, _ = trainer.rollout(prompts)
    rewards = values["redness"].double()
    # groups of 4, the first empty, the second of 3
    advantage = torch.zeros(16, dtype=torch.float64)
    for group in (slice(5, 8), slice(8, 12), slice(12, 16)):
        own = rewards[group]
        advantage[group] = (own - own.mean()) / (own.std(correction=0) + 1e-6)
    rows, columns = torch.cartesian_prod(torch.arange(5, 16), torch.arange(4)).T
    logp = helpers.step_log_probs(trainer.policy, trainer.sampler, trajectory, rows, columns)
    loss = (-advantage[rows] * logp).sum() / (11 * 4)
    parameters = list(trainer.policy.parameters().values())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    row = trainer.iterate()
    assert row["reward/missing"] == 5 and row["images_seen"] == 16
    assert row["reward/mean"] == pytest.approx(rewards[5:].mean().item())
    assert len(gradients) == 1 and helpers.difference(gradients[0], expected) < 1e-5


@pytest.mark.parametrize("objective", ["ddpo", "prdp"])
def test_a_minibatch_without_any_reward_is_no_step(objective: Any) -> None:
    """AdamW would move the weights by their momentum and decay even at a gradient of 0."""
    trainer = helpers.make_trainer(helpers.policy(), objective, missing(4), minibatches=4)
    row = trainer.iterate()
    assert row["skipped_steps"] == 1 and row["reward/missing"] == 4
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3} and trainer.lr_scheduler.last_epoch == 3


def test_too_many_missing_rewards_stop_the_run() -> None:
    for count in (9, 16):
        trainer = helpers.make_trainer(
            helpers.policy(),
            reward=missing(count),
            make=partial(advantages.build, "per_prompt", min_count=1),
        )
        with pytest.raises(Stopped, match=f"{count} of 16 images got no value"):
            trainer.iterate()
        assert trainer.mixture.state() == {}, "nothing that a resume would count twice"
    assert (
        helpers.make_trainer(helpers.policy(), reward=missing(8)).iterate()["reward/missing"] == 8
    )


def test_infinite_rewards_are_no_value() -> None:
    def reward(images: Tensor, *rest: object) -> Tensor:
        values = images.mean((1, 2, 3))
        values[0], values[1] = torch.inf, -torch.inf
        return values

    row = helpers.make_trainer(helpers.policy(), reward=reward).iterate()
    assert (
        row["reward/missing"] == 2
        and math.isfinite(row["reward/mean"])
        and row["skipped_steps"] == 0
    )


def broken_gradient(logp: Tensor, batch: Batch) -> Tensor:
    """A finite loss whose derivative is not: sqrt at 0."""
    return (logp - logp.detach()).square().sum().sqrt()


def broken_loss(logp: Tensor, batch: Batch) -> Tensor:
    return logp.sum() * torch.inf


def broken_value(logp: Tensor, batch: Batch) -> Tensor:
    """A loss that is not finite, with a derivative that is."""
    return logp.sum() + torch.inf


@pytest.mark.parametrize("function", [broken_gradient, broken_loss, broken_value])
def test_steps_that_are_not_finite_are_left_out_and_then_stop(function: Any) -> None:
    policy = helpers.policy()
    ema = EMAModel(list(policy.parameters().values()), decay=0.5)
    trainer = helpers.make_trainer(
        policy, Objective("broken", function, {}), minibatches=2, ema=ema
    )
    before = weights(trainer)
    for _ in range(2):
        assert trainer.iterate()["skipped_steps"] == 2
        assert torch.equal(weights(trainer), before) and not trainer.optimizer.state
        assert ema.optimization_step == trainer.lr_scheduler.last_epoch == 0
    with pytest.raises(Stopped, match="3 iterations") as told:
        trainer.iterate()
    assert "\n" not in str(told.value) and torch.equal(weights(trainer), before)


def test_one_broken_step_of_two_is_counted_and_the_run_goes_on() -> None:
    calls: list[int] = []

    def sometimes(logp: Tensor, batch: Batch) -> Tensor:
        calls.append(1)
        return (-batch.advantage[:, None] * logp).mean() * (torch.nan if len(calls) % 2 else 1)

    trainer = helpers.make_trainer(
        helpers.policy(), Objective("sometimes", sometimes, {}), minibatches=2
    )
    for _ in range(4):
        assert trainer.iterate()["skipped_steps"] == 1
    assert weights(trainer).isfinite().all() and trainer.skipped_in_a_row == 0
    assert trainer.lr_scheduler.last_epoch == 4, "the schedule counts the steps that were taken"


def test_prompts_come_in_passes_over_the_set() -> None:
    """8 prompts, 3 an iteration: each comes once in a pass, and each pass has an order of its
    own."""
    trainer = helpers.make_trainer(helpers.policy(), prompts_per_iteration=3, samples_per_prompt=2)
    drawn: list[str] = []
    for trainer.iteration in range(16):
        texts = [prompt.text for prompt in trainer.draw()]
        assert texts[::2] == texts[1::2], "the samples of a prompt stay together"
        drawn += texts[::2]
        assert texts == [prompt.text for prompt in trainer.draw()], (
            "a function of seed and iteration"
        )
    passes = [drawn[i : i + 8] for i in range(0, 48, 8)]
    assert all(sorted(each) == sorted(helpers.WORDS) for each in passes)
    assert len({tuple(each) for each in passes}) == 6
    trainer.seed, trainer.iteration = 1, 0
    assert [prompt.text for prompt in trainer.draw()][::2] != drawn[:3]


def test_minibatches_are_dealt_anew_each_pass_and_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two passes of two iterations and of another seed: no two alike, and the same again when
    repeated."""
    steps: list[int] = []
    monkeypatch.setattr(Pass, "backward", lambda _, samples: steps.append(samples[0]) or 0.0)
    trainer = helpers.make_trainer(
        helpers.policy(), prompts_per_iteration=8, samples_per_prompt=2, minibatches=8, epochs=2
    )
    trainer.sampler = helpers.sampler(trainer.policy, steps=1, batch_size=16)
    prompts = trainer.draw()
    trajectory, values, _, _ = trainer.rollout(prompts)
    batch, _ = trainer.outcome(prompts, trajectory, values)
    work = Pass(trainer.terms(trajectory, 0), batch, trainer.objective, 16, helpers.Measured(None))
    for trainer.iteration, trainer.seed in ((0, 0), (1, 0), (0, 1), (0, 0)):
        trainer.update(work)
    *different, first, second = (tuple(steps[i : i + 8]) for i in range(0, 64, 8))
    assert different[:2] == [first, second] and len(set(different)) == 6
    assert all(sorted(each) == list(range(0, 16, 2)) for each in different)


def test_every_iteration_has_noise_of_its_own() -> None:
    trainer = helpers.make_trainer(
        helpers.policy(), prompts=PromptSet("one", (Prompt("a fox", {}),))
    )
    first = trainer.rollout(trainer.draw())[0].latents
    assert len({tuple(row) for row in first[:, 0].flatten(1)[:, :3].tolist()}) == 16, (
        "and every image"
    )
    assert torch.equal(trainer.rollout(trainer.draw())[0].latents, first)
    trainer.iteration = 1
    second = trainer.rollout(trainer.draw())[0].latents
    assert (second[:, 0] - first[:, 0]).abs().flatten(1).amax(1).min() > 0.1
    trainer.iteration, trainer.seed = 0, 1
    assert (trainer.rollout(trainer.draw())[0].latents[:, 0] - first[:, 0]).abs().max() > 0.1


def test_rewards_get_the_prompt_and_metadata_of_their_image() -> None:
    seen: list[tuple[str, int]] = []

    def reward(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        seen.extend((prompt, row["number"]) for prompt, row in zip(prompts, metadata, strict=True))
        return torch.arange(len(images)).float()

    words = PromptSet(
        "words", tuple(Prompt(word, {"number": i}) for i, word in enumerate(helpers.WORDS))
    )
    rewards = [Reward("own", 1.0, reward)]
    scorer = Scorer(rewards, threads=1)
    trainer = helpers.make_trainer(helpers.policy(), prompts=words, scorer=scorer, rewards=rewards)
    expected = [(prompt.text, prompt.metadata["number"]) for prompt in trainer.draw()]
    trainer.iterate()
    assert seen == expected and all(helpers.WORDS[number] == text for text, number in seen)


def test_advantages_are_clipped() -> None:
    def reward(images: Tensor, *rest: object) -> Tensor:
        return torch.tensor([100.0] + [0.0] * 15)

    trainer = helpers.make_trainer(helpers.policy(), reward=reward, clip=1.2)
    prompts = trainer.draw()
    trajectory, values, _, _ = trainer.rollout(prompts)
    batch, _ = trainer.outcome(prompts, trajectory, values)
    third = 25 / (1875**0.5 + 1e-6)  # mean 25, std sqrt((75^2 + 3 * 25^2) / 4)
    assert batch.advantage[:4].tolist() == pytest.approx([1.2, -third, -third, -third])
    assert batch.group.tolist() == [i // 4 for i in range(16)]


def test_ema_follows_the_weights() -> None:
    """diffusers' warm-up: a decay of min(0.5, (1 + n) / (10 + n)), 0 at the first of n + 1
    steps."""
    policy = helpers.policy()
    ema = EMAModel(list(policy.parameters().values()), decay=0.5)
    trainer = helpers.make_trainer(policy, ema=ema, lr=1e-2)
    average = None
    for step in range(3):
        trainer.iterate()
        decay = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))
        average = (
            weights(trainer)
            if average is None
            else decay * average + (1 - decay) * weights(trainer)
        )
    found = torch.cat([shadow.flatten() for shadow in ema.shadow_params])
    assert average is not None and found.dtype == average.dtype
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)


def test_a_reward_of_the_wrong_shape_is_told_in_one_line() -> None:
    trainer = helpers.make_trainer(
        helpers.policy(), reward=lambda images, *rest: torch.zeros(len(images), 1)
    )
    with pytest.raises(
        UserError, match=r"reward redness returned shape \(16, 1\) for 16 images; return one number"
    ):
        trainer.iterate()


@torch.no_grad()
def mean_reward(trainer: Any) -> float:
    """Of 32 images at fixed keys that training never uses."""
    keys, texts = [(99, i) for i in range(32)], [helpers.WORDS[i % 8] for i in range(32)]
    parts = list(sample(trainer.policy, trainer.sampler, helpers.as_prompts(texts), keys))
    return torch.cat([helpers.redness(part.images, texts, []) for part in parts]).mean().item()


def fresh(objective: Objective, reward: Any = helpers.redness) -> Trainer:
    """A trainer of the whole tiny network; objectives on denoising errors get one that predicts v.

    The noise that is added does not depend on the picture, so an untrained network that predicts it
    learns next to nothing from which of two pictures is better.
    """
    prediction = "v_prediction" if objective.denoising_errors else "epsilon"
    policy = helpers.policy(lora=None, prediction_type=prediction)
    return helpers.make_trainer(
        policy, objective, reward, prompts_per_iteration=8, micro_batch=64, draws=4
    )


ON_IMAGES = [name for name in plugins.names("objectives") if name != "drakes"]
"""DRAKES differentiates letters: tests/training/test_letters.py has it ascend."""


@pytest.mark.parametrize("name", ON_IMAGES)
def test_every_objective_raises_a_reward(name: str) -> None:
    """Redness on the tiny model, above that of training without a reward, by 0.3 of its spread.

    Without one, RWR still learns to denoise what it has drawn, which changes pictures; others learn
    nothing. Clip ranges, and DPO's beta, are in the units of 256 latent dimensions; RWR's beta in
    those of the spread.
    """
    defaults = objectives.build(name).options
    options = {key: value * 16384 / 256 for key, value in defaults.items() if key == "clip_range"}
    options |= {"dpo": {"beta": 2500 * 256 / 16384}, "rwr": {"beta": 100.0}}.get(name, {})
    objective = objectives.build(name, **options)
    trainer = fresh(objective)
    control = fresh(objective, lambda images, *_: torch.zeros(len(images)))
    spread, *_ = [trainer.iterate()["reward/std"] for _ in range(6)]
    for _ in range(6 if name == "rwr" else 0):
        control.iterate()
    after, without = mean_reward(trainer), mean_reward(control)
    assert after > without + 0.3 * spread, (after, without, spread)


def test_an_iteration_that_broke_off_is_taken_back() -> None:
    """The memory of the advantage is; weights that an optimizer step has moved are not, and that is
    said."""
    make = partial(advantages.build, "per_prompt", min_count=1)
    asked: list[int] = []

    def fails(logp: Tensor, batch: Batch) -> Tensor:
        asked.append(1)
        if len(asked) == fails_at:
            raise ValueError("enough")
        return batch.mean(-batch.advantage[:, None] * logp)

    for number, whole in ((1, True), (2, False)):
        fails_at = number
        asked.clear()
        trainer = helpers.make_trainer(
            helpers.policy(), Objective("fails", fails, {}), make=make, minibatches=2
        )
        with pytest.raises(UserError, match="objective fails raised ValueError: enough"):
            trainer.iterate()
        assert trainer.mixture.state() != {} and trainer.iteration == 0
        assert trainer.rewind() == whole and trainer.mixture.state() == {}
    fails_at = 0
    trainer.iterate()
    assert trainer.rewind() and len(trainer.mixture.state()) == 4, "a whole iteration stays"


def test_a_state_is_what_the_next_iteration_depends_on() -> None:
    """Two iterations, or one, its state in another trainer, and one more: the same numbers and
    weights."""

    def built() -> Trainer:
        policy = helpers.policy()
        ema = EMAModel(list(policy.parameters().values()), decay=0.5)
        make = partial(advantages.build, "per_prompt", min_count=1)
        return helpers.make_trainer(policy, make=make, ema=ema)

    one, other = built(), built()
    one.iterate()
    state = one.state()
    tensors = {
        kind: {k: v.clone() for k, v in own.items()} for kind, own in state.pop("tensors").items()
    }
    assert set(tensors) == {"parameters", "optimizer", "ema"}
    keys = {
        "iteration",
        "images_seen",
        "skipped_in_a_row",
        "advantage",
        "lr_scheduler",
        "ema_steps",
    }
    assert set(state) == keys, "state.json of runs that are there already"
    other.restore({**json.loads(json.dumps(state)), "tensors": tensors})
    rows = [trainer.iterate() for trainer in (one, other)]
    for name in ("iteration", "images_seen", "reward/mean", "loss", "grad_norm", "kl_ref"):
        assert rows[0][name] == rows[1][name]
    assert torch.equal(weights(one), weights(other))
    assert one.mixture.state() == other.mixture.state()


def test_a_dropped_in_objective_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a plugin folder, without any declaration."""
    (tmp_path / "objectives").mkdir()
    text = (
        "def own(logp, batch):\n"
        "    return -(batch.advantage[:, None] * logp)[:, batch.stochastic].mean()\n"
    )
    (tmp_path / "objectives" / "own.py").write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    found = []
    for name in ("own", "ddpo_sf"):
        trainer = helpers.make_trainer(helpers.policy(), name)
        row = trainer.iterate()
        found.append((row["loss"], row["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0][1] > 0

"""Gradients of the reward through the sampler: what is replayed is what a plain loop of diffusers'
scheduler with autograd gives, however it is cut up."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ddpo import objectives
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.objectives import Replay
from ddpo.parallel.seeds import generator
from ddpo.records import metrics
from ddpo.rewards import Reward
from ddpo.rollout.sample import Sampler
from ddpo.training.measures import Measured
from ddpo.training.terms.outcomes import Outcomes
from ddpo.training.update import Pass

COUNT, STEPS, GUIDANCE = 4, 4, 3.0
WEIGHT, KL = 2.0, 5.0


def contrast(
    images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Tensor:
    """Nonlinear in the picture, and another for each prompt."""
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return (images - 0.4).square().mean((1, 2, 3)) * lengths


@cache
def tiny(whole: bool = False, **options: Any) -> StableDiffusion:
    return helpers.policy(moved=0.1, **({"lora": None} if whole else {}), **options)


def outcomes(
    policy: StableDiffusion,
    replay: Replay,
    *,
    decode_batch: int = 16,
    reference: bool = False,
    steps: int = STEPS,
) -> Outcomes:
    """Replays of `COUNT` images drawn by the policy, in two groups of two."""
    sampler = helpers.sampler(policy, steps=steps)
    assert isinstance(sampler, Sampler) and sampler.guidance_scale == GUIDANCE
    trajectory, _ = helpers.rolled(policy, sampler, COUNT)
    return Outcomes(
        policy,
        sampler,
        trajectory,
        [Reward("contrast", WEIGHT, contrast)],
        replay,
        count=replay.last_steps[1],
        keys=[(0, i) for i in range(COUNT)],
        fresh=[(77, i) for i in range(COUNT)],
        decode_batch=decode_batch,
        reference=reference,
    )


def pathwise_pass(terms: Outcomes, micro_batch: int, **options: Any) -> Pass:
    objective = objectives.build("draft", **options)
    helper = helpers.work_on(
        terms.policy, terms.trajectory, terms.sampler, objectives.build("ddpo_sf"), micro_batch
    )
    columns = torch.ones(terms.replay.columns, dtype=torch.bool)
    batch = helper.batch.with_matrices()
    batch = type(batch)(**{**vars(batch), "stochastic": columns, "matrices": {}})
    return Pass(terms, batch, objective, micro_batch, Measured(None))


# what it must equal: diffusers' DDIM step, in one graph, without a checkpoint


def scheduler(policy: StableDiffusion, steps: int = STEPS) -> DDIMScheduler:
    found = DDIMScheduler.from_config(policy.pipeline.scheduler.config)
    found.set_timesteps(steps)
    return found


def predicted(policy: StableDiffusion, x: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
    return policy.predict(
        x, t.expand(len(x)), policy.condition(helpers.as_prompts(texts), ""), GUIDANCE
    )


def plain_chain(
    policy: StableDiffusion, texts: Sequence[str], keys: Sequence[tuple[int, ...]], graph: int
) -> Tensor:
    """x_0 of the whole chain from its noise; only the last `graph` steps have a graph."""
    ddim = scheduler(policy)
    shape = (STEPS + 1, *policy.latent_shape)
    noise = torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])
    x = noise[:, 0]
    for number, t in enumerate(ddim.timesteps):
        with torch.set_grad_enabled(number >= STEPS - graph):
            output = predicted(policy, x, t, texts)
            x = ddim.step(output, int(t), x, eta=1.0, variance_noise=noise[:, number + 1])[0]
    return x


def score(policy: StableDiffusion, x0: Tensor, texts: Sequence[str]) -> Tensor:
    return WEIGHT * contrast(policy.decode(x0), texts, [])


def flat(policy: StableDiffusion, loss: Tensor) -> Tensor:
    parameters = list(policy.parameters().values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
    )


def texts_of(terms: Outcomes) -> list[str]:
    return [prompt.text for prompt in terms.trajectory.prompts]


@pytest.mark.parametrize("last_steps", [1, 2, STEPS])
@pytest.mark.parametrize("target", [None, 0.1])
def test_the_gradient_is_that_of_the_sampler_with_earlier_steps_detached(
    last_steps: int, target: float | None
) -> None:
    """K = T is full autograd; the fourth row of a chunk of three and its padding have their
    parts."""
    policy = tiny()
    terms = outcomes(policy, Replay((last_steps, last_steps)))
    work = pathwise_pass(terms, 3, last_steps=last_steps, target=target)
    found = helpers.gradient(work, range(COUNT)).clone()
    x0 = plain_chain(policy, texts_of(terms), terms.keys, last_steps)
    torch.testing.assert_close(x0, terms.trajectory.latents[:, -1], rtol=1e-4, atol=1e-5)
    rewards = score(policy, x0, texts_of(terms))
    loss = -rewards.mean() if target is None else (rewards - target).abs().mean()
    expected = flat(policy, loss)
    assert expected.norm() > 0 and helpers.difference(found, expected) < 1e-5
    assert work.backward(range(COUNT)) == pytest.approx(loss.item(), rel=1e-5)
    if last_steps < STEPS:
        more = score(
            policy,
            plain_chain(policy, texts_of(terms), terms.keys, last_steps + 1),
            texts_of(terms),
        )
        assert helpers.difference(found, flat(policy, -more.mean())) > 1e-2, "another K is another"


def test_the_text_encoder_is_reached_through_every_step() -> None:
    policy = helpers.policy(lora=helpers.adapter(target_modules=[]), train_text_encoder=True)
    helpers.move(policy, 0.1)
    terms = outcomes(policy, Replay((STEPS, STEPS)))
    found = helpers.gradient(pathwise_pass(terms, 4, last_steps=STEPS), range(COUNT)).clone()
    x0 = plain_chain(policy, texts_of(terms), terms.keys, STEPS)
    expected = flat(policy, -score(policy, x0, texts_of(terms)).mean())
    assert expected.norm() > 0 and helpers.difference(found, expected) < 1e-5


@pytest.mark.parametrize("renoisings", [1, 3])
def test_renoisings_are_averaged(renoisings: int) -> None:
    """DRaFT-LV: x_0 noised to the last level, and the last step from there; the mean of n
    gradients."""
    policy = tiny()
    terms = outcomes(policy, Replay((1, 1), renoisings))
    work = pathwise_pass(terms, 3, renoisings=renoisings)
    found = helpers.gradient(work, range(COUNT)).clone()
    ddim, texts = scheduler(policy), texts_of(terms)
    t, x0 = ddim.timesteps[-1], terms.trajectory.latents[:, -1]
    gradients = []
    for number in range(renoisings):
        draws = [
            torch.randn((2, *policy.latent_shape), generator=generator(77, i, number))
            for i in range(COUNT)
        ]
        noise = torch.stack(draws)
        x = ddim.add_noise(x0, noise[:, 0], t.expand(COUNT))  # pyright: ignore[reportArgumentType]
        output = predicted(policy, x, t, texts)
        again = ddim.step(output, int(t), x, eta=1.0, variance_noise=noise[:, 1])[0]
        gradients.append(flat(policy, -score(policy, again, texts).mean()))
    expected = torch.stack(gradients).mean(0)
    assert helpers.difference(found, expected) < 1e-5
    if renoisings > 1:
        assert helpers.difference(gradients[0], expected) > 1e-3, "each has noise of its own"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_refl_goes_to_the_predicted_x0(prediction_type: str) -> None:
    policy = tiny(prediction_type=prediction_type)
    terms = outcomes(policy, Replay((2, 2), to_x0=True))
    work = pathwise_pass(terms, 4, last_steps=2, to_x0=True)
    found = helpers.gradient(work, range(COUNT)).clone()
    ddim, texts = scheduler(policy), texts_of(terms)
    t, x = ddim.timesteps[STEPS - 2], terms.trajectory.latents[:, STEPS - 2]
    step = ddim.step(predicted(policy, x, t, texts), int(t), x, eta=1.0)
    x0: Any = step.pred_original_sample  # pyright: ignore[reportAttributeAccessIssue]
    expected = flat(policy, -score(policy, x0, texts).mean())
    assert expected.norm() > 0 and helpers.difference(found, expected) < 1e-5


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("last_steps", [1, 3])
def test_kl_along_the_replay(whole: bool, last_steps: int) -> None:
    """|mean - mean_ref|^2 / (2 std^2 D), averaged over the replayed steps; its derivative goes
    through the states too, with an adapter that is switched off and with a copy of the weights."""
    policy = tiny(whole)
    terms = outcomes(policy, Replay((last_steps, last_steps)), reference=True)
    work = pathwise_pass(terms, 3, last_steps=last_steps, kl_weight=KL)
    found = helpers.gradient(work, range(COUNT)).clone()
    twin = helpers.policy(**({"lora": None} if whole else {}))  # as it was before it moved
    ddim, texts = scheduler(policy), texts_of(terms)
    noise = torch.stack(
        [
            torch.randn((STEPS + 1, *policy.latent_shape), generator=generator(*k))
            for k in terms.keys
        ]
    )
    x, kls = terms.trajectory.latents[:, STEPS - last_steps], []
    for number in range(STEPS - last_steps, STEPS):
        t = ddim.timesteps[number]
        without, mean = torch.zeros_like(x), {}
        for name, model in (("own", policy), ("base", twin)):
            output = predicted(model, x, t, texts)
            mean[name] = ddim.step(output, int(t), x, eta=1.0, variance_noise=without)[0]
        variance = ddim._get_variance(int(t), int(t) - 1000 // STEPS)
        kls.append((mean["own"] - mean["base"]).square().mean((1, 2, 3)) / (2 * variance))
        x = mean["own"] + variance**0.5 * noise[:, number + 1]
    reward = score(policy, x, texts).mean()
    expected = flat(policy, -reward + KL * torch.stack(kls).mean())
    # a difference of two means in fp32, over a small std
    assert helpers.difference(found, expected) < 1e-3
    assert (
        helpers.difference(
            flat(
                policy,
                -score(policy, plain_chain(policy, texts, terms.keys, last_steps), texts).mean(),
            ),
            expected,
        )
        > 1e-2
    ), "KL has a part"


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
@pytest.mark.parametrize("decode_batch", [1, 2, 16])
def test_chunks_change_nothing(micro_batch: int, decode_batch: int) -> None:
    policy, replay = tiny(), Replay((2, 2), 2)
    options = {"last_steps": 2, "renoisings": 2, "kl_weight": KL}
    whole = outcomes(policy, replay, reference=True)
    expected = helpers.gradient(pathwise_pass(whole, 8, **options), range(COUNT)).clone()
    parts = outcomes(policy, replay, decode_batch=decode_batch, reference=True)
    found = helpers.gradient(pathwise_pass(parts, micro_batch, **options), range(COUNT))
    assert helpers.difference(found, expected) < 1e-5


# the trainer around it


def red(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    return helpers.redness(images, prompts, metadata)


def test_a_gated_image_has_no_part() -> None:
    """The gate is a reward without a gradient, of weight 0: the update is that of the others."""

    def bright(images: Tensor, *_: object) -> Tensor:
        return images.round().mean((1, 2, 3))

    rewards = [Reward("red", 1.0, red), Reward("bright", 0.0, bright)]
    draft = objectives.build("draft", last_steps=2)
    plain = helpers.make_trainer(helpers.policy(), draft, rewards=rewards)
    trajectory, values, _, _ = plain.rollout(plain.draw())
    limit = values["bright"].median().item()
    inside = (values["bright"] <= limit).nonzero().flatten().tolist()
    assert 0 < len(inside) < 16
    gradients = []
    plain.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(helpers.flat_gradient(plain.policy))
    )
    plain.mixture.rewards = [rewards[0], Reward("bright", 0.0, bright, max=limit)]
    plain.mixture.pathwise, plain.max_grad_norm = True, 1e9
    batch, metrics = plain.outcome(plain.draw(), trajectory, values)
    assert batch.present.nonzero().flatten().tolist() == inside
    assert metrics["reward/gated"] == pytest.approx(1 - len(inside) / 16)
    work = Pass(plain.terms(trajectory, 0), batch, draft, 5, Measured(None))
    expected = helpers.gradient(work, inside).clone()
    for parameter in plain.policy.parameters().values():
        parameter.grad = None
    plain.update(work)
    assert helpers.difference(gradients[0], expected) < 1e-5


def test_a_pass_goes_on_from_its_state() -> None:
    """Two iterations at a randomized truncation, or one and its state in another trainer: the same
    numbers, bit for bit; each pass has a truncation and re-noisings of its own."""
    draft = objectives.build("draft", last_steps=(1, 4), renoisings=2)

    def built() -> Any:
        return helpers.make_trainer(helpers.policy(), draft, red, epochs=2)

    one, other = built(), built()
    one.iterate()
    state = one.state()
    tensors = {k: {n: v.clone() for n, v in own.items()} for k, own in state["tensors"].items()}
    other.restore({**state, "tensors": tensors})
    rows = [trainer.iterate() for trainer in (one, other)]
    for name in ("reward/mean", "loss", "grad_norm", "kl_ref"):
        assert rows[0][name] == rows[1][name]
    counts, fresh = set(), set()
    trajectory = one.rollout(one.draw())[0]
    for one.iteration in range(4):
        for epoch in range(2):
            terms = one.terms(trajectory, epoch)
            counts.add(terms.count)
            fresh.add(tuple(terms.fresh))
    assert len(counts) > 1 and len(fresh) == 8


def test_the_reference_is_not_computed_in_the_rollout() -> None:
    """The KL is that of the replay."""
    draft = objectives.build("draft", kl_weight=1.0)
    trainer = helpers.make_trainer(helpers.policy(), draft, red)
    trajectory = trainer.rollout(trainer.draw())[0]
    assert trajectory.output_ref is None and trajectory.logp_ref is None
    assert trainer.terms(trajectory, 0).names == ("rewards", "kl")


BRIGHT = "[{name: brightness}]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "rewards.0: jpeg_compressibility passes no gradient on to the images"),
        (
            ["--rewards", "[{name: brightness}, {name: jpeg_compressibility, weight: 2}]"],
            "rewards.1: jpeg_compressibility passes no gradient",
        ),
        (
            ["--rewards", "[{name: diversity, params: {pretrained: emoji}}]"],
            "rewards.0: diversity compares images",
        ),
        (
            ["--rewards", "[{name: brightness, cache: kept}]"],
            "rewards.0: brightness is cached, and a kept value has no gradient",
        ),
        (
            ["--rewards", BRIGHT, "--objective.last_steps", "4"],
            "objective.last_steps: 4 does not lie between 1 and sampler.num_steps 3",
        ),
        (
            ["--rewards", BRIGHT, "--objective.last_steps", "[2, 1]"],
            "objective.last_steps: [2, 1] is no range of steps",
        ),
        (
            ["--rewards", BRIGHT, "--objective.timestep_window", "[0, 1]"],
            "objective.timestep_window: draft works on rewards with a graph; leave it out",
        ),
        (
            ["--rewards", BRIGHT, "--objective.draws", "2"],
            "objective.draws: draft works on rewards with a graph; leave it out",
        ),
        (
            ["--rewards", BRIGHT, "--objective.block_size", "2"],
            "objective.block_size: draft works on rewards",
        ),
        (
            ["--rewards", BRIGHT, "--advantage.per_reward", "true"],
            "advantage.per_reward: draft follows the gradient of the weighted sum",
        ),
    ],
)
def test_what_a_pathwise_objective_refuses(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before a model is loaded or anything is written."""
    run = tmp_path / "run"
    code, line = helpers.call(capsys, *helpers.smoke(run), "--objective.name", "draft", *flags)
    assert code == 2 and line.startswith(message) and not run.exists()


def test_others_do_not_decode_with_a_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = helpers.call(
        capsys, *helpers.smoke(tmp_path / "run"), "--trainer.decode_batch", "2"
    )
    assert code == 2 and line.startswith("trainer.decode_batch: ddpo decodes without a gradient")


def test_rewards_without_a_gradient_stand_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is logged and gates, another judges."""
    rewards = "[{name: brightness}, {name: jpeg_compressibility, weight: 0, min: -100}]"
    code, line = helpers.call(
        capsys,
        *helpers.smoke(tmp_path / "run"),
        *("--objective.name", "draft", "--rewards", rewards),
        *("--eval_rewards", "[{name: color_entropy}]", "--trainer.iterations", "1"),
        *("--evaluation.num_prompts", "2", "--trainer.decode_batch", "2"),
    )
    assert code == 0, line
    (row,) = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(-row["reward/brightness"], rel=1e-2)
    assert row["gated/jpeg_compressibility"] == 0 and row["grad_norm"] > 0

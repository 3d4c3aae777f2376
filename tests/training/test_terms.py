"""What objectives are functions of: KLs, denoising errors, pairs; which steps and samples take
part."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ddpo import objectives
from ddpo.__main__ import main
from ddpo.errors import UserError
from ddpo.images import from_pil
from ddpo.models._tiny import tiny
from ddpo.parallel import ranks
from ddpo.prompts import Prompt, PromptSet
from ddpo.rollout import pairs as offline
from ddpo.rollout.sample import sample, stored_steps
from ddpo.samplers.ddim import ddim
from ddpo.scoring import ranking
from ddpo.training.selection import Subset, extremes
from ddpo.training.terms.denoising_errors import DenoisingErrors
from ddpo.training.terms.log_probs import LogProbs


def every_pair(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    found = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return found[:, 0], found[:, 1]


def test_the_kl_of_a_step_is_that_of_two_gaussians() -> None:
    """Against torch.distributions, per latent dimension; 0 with the adapter off, and it has a
    gradient."""
    policy = helpers.policy(moved=0.3)
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, 3, reference=True)
    rows, columns = every_pair(3, 4)
    arguments = (policy, sampler, trajectory, rows, columns)
    with torch.no_grad():
        mean = stored_steps(*arguments).mean.double()
        with policy.weights("base"):
            mean_ref = stored_steps(*arguments).mean.double()
    std = sampler.steps.std[columns].double().view(-1, 1, 1, 1)
    normal = torch.distributions.Normal
    expected = (
        torch.distributions.kl_divergence(normal(mean, std), normal(mean_ref, std))
        .flatten(1)
        .mean(1)
    )
    terms = LogProbs(policy, sampler, trajectory)
    assert terms.names == ("logp", "kl")
    found = terms(rows, columns)["kl"]
    assert found.requires_grad and (found > 0).all()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-9)
    with policy.weights("base"), torch.no_grad():
        assert terms(rows, columns)["kl"].max() < 1e-9
    assert LogProbs(policy, sampler, replace(trajectory, output_ref=None)).names == ("logp",)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_denoising_errors(prediction: str) -> None:
    """Noised by hand, x_t = sqrt(a) x_0 + sqrt(1 - a) eps; the target by its definition."""
    policy = helpers.policy(moved=0.3, prediction_type=prediction)
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, 4)
    terms = DenoisingErrors(
        policy, sampler, trajectory, [(1, 0), (1, 0), (1, 1), (1, 1)], 2, ("errors_ref",)
    )
    rows, columns = every_pair(4, 2)
    timesteps, noise = terms._draw(rows.tolist(), columns.tolist())
    assert torch.equal(noise[:2], noise[2:4]) and torch.equal(timesteps[:2], timesteps[2:4]), (
        "one group"
    )
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[4])
    a = policy.pipeline.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    x0 = trajectory.latents[rows, -1]
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    target = {
        "epsilon": noise,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0,
        "sample": x0,
    }[prediction]
    prompts = [trajectory.prompts[row] for row in rows.tolist()]
    found = terms(rows, columns)
    with torch.no_grad():
        for name, context in (("errors", None), ("errors_ref", policy.weights("base"))):
            if context:
                context.__enter__()
            output = policy.predict(x, timesteps, policy.condition(prompts, ""), 3.0)
            if context:
                context.__exit__(None, None, None)
            expected = (output - target).square().flatten(1).double().mean(1)
            torch.testing.assert_close(found[name].detach(), expected, rtol=1e-4, atol=1e-6)
    assert found["errors"].requires_grad and not found["errors_ref"].requires_grad
    assert (found["errors"] - found["errors_ref"]).abs().min() > 0


def test_timesteps_of_training_are_all_drawn() -> None:
    policy = helpers.policy()
    sampler = helpers.sampler(policy)
    terms = DenoisingErrors(policy, sampler, helpers.rolled(policy, sampler, 1)[0], [(3,)], 1)
    drawn = terms._draw([0] * 2000, list(range(2000)))[0]
    assert 0 <= drawn.min() < 5 and 994 < drawn.max() < len(policy.schedule) == 1000
    assert drawn.double().mean().item() == pytest.approx(499.5, abs=4 * 289 / 2000**0.5)


def test_each_pass_of_each_iteration_has_draws_of_its_own() -> None:
    trainer = helpers.make_trainer(helpers.policy(), "rwr", draws=3, epochs=2)
    trajectory, _, _, _ = trainer.rollout(trainer.draw())
    terms: list[Any] = []
    for trainer.iteration, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        terms.append(trainer.terms(trajectory, epoch))
    trainer.iteration, trainer.seed = 0, 1
    terms.append(trainer.terms(trajectory, 0))
    first, *others = [each._draw([0, 5], [0, 2])[1] for each in terms]
    assert [torch.equal(first, other) for other in others] == [False, False, True, False]


def test_guidance_in_the_update_alone() -> None:
    """Log-probabilities of guided samples, recorded and scored under another guidance: the ratio is
    1."""
    trainer = helpers.make_trainer(helpers.policy(moved=0.2), "prdp", guidance_scale=1.0, lr=0.0)
    trajectory, _, _, _ = trainer.rollout(trainer.draw())
    assert trajectory.logp_ref is not None
    rows, columns = every_pair(len(trajectory.samples), 4)
    arguments = (trajectory, rows, columns)
    unguided = replace(trainer.sampler, guidance_scale=1.0)
    with torch.no_grad():
        own = helpers.step_log_probs(trainer.policy, unguided, *arguments)  # pyright: ignore[reportArgumentType]
        guided = helpers.step_log_probs(trainer.policy, trainer.sampler, *arguments)  # pyright: ignore[reportArgumentType]
        with trainer.policy.weights("base"):
            reference = helpers.step_log_probs(trainer.policy, unguided, *arguments)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(trajectory.logp_old.flatten(), own, rtol=0, atol=1e-6)
    torch.testing.assert_close(trajectory.logp_ref.flatten(), reference, rtol=0, atol=1e-6)
    assert (guided - own).abs().max() > 1e-4
    row = trainer.iterate()
    assert row["ratio/max_dev"] < 1e-6
    same = helpers.make_trainer(helpers.policy(moved=0.2))
    assert torch.equal(same.rollout(same.draw())[0].latents, trajectory.latents), (
        "sampled as without"
    )


# Which steps and which samples


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.floats(0.01, 1),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_subsets_of_steps(
    stochastic: list[bool], fraction: float, drop_last: int, seed: int
) -> None:
    marks = torch.tensor(stochastic)
    found = Subset(fraction, (1, 9), drop_last)(marks, torch.Generator().manual_seed(seed))
    allowed = [
        i
        for i, yes in enumerate(stochastic)
        if yes and 1 <= i < min(9, len(stochastic) - drop_last)
    ]
    chosen = found.nonzero().flatten().tolist()
    assert set(chosen) <= set(allowed)
    assert len(chosen) == int(np.ceil(fraction * len(allowed) - 1e-9))


def test_a_window_of_all_steps_is_all_steps() -> None:
    steps = ddim(helpers.policy().schedule, 6)
    noise = torch.Generator()
    assert torch.equal(Subset(window=(0, 6))(steps.stochastic, noise), steps.stochastic)
    assert Subset(window=(2, 4))(steps.stochastic, noise).nonzero().flatten().tolist() == [2, 3]
    assert Subset(drop_last=5)(steps.stochastic, noise).nonzero().flatten().tolist() == [0]


def test_an_iteration_trains_on_its_subset() -> None:
    """Only these columns are scored; another iteration draws others; the gradient is theirs
    alone."""
    trainer = helpers.make_trainer(helpers.policy(), "ddpo_sf", subset=Subset(fraction=0.5), lr=0.0)
    seen = []
    for _ in range(6):
        trajectory, values, _, _ = trainer.rollout(prompts := trainer.draw())
        batch, _ = trainer.outcome(prompts, trajectory, values)
        seen.append(tuple(batch.stochastic.tolist()))
        assert sum(seen[-1]) == 2
        trainer.iteration += 1
    assert len(set(seen)) > 2
    window = helpers.make_trainer(helpers.policy(), "ddpo_sf", subset=Subset(window=(1, 2)), lr=0.0)
    calls: list[Tensor] = []
    window.policy.unet.register_forward_pre_hook(  # pyright: ignore[reportAttributeAccessIssue]
        lambda _, arguments: calls.append(arguments[1]) if torch.is_grad_enabled() else None
    )
    window.iterate()
    assert torch.cat(calls).unique().tolist() == [window.sampler.steps.timesteps[1].item()]


def test_extremes() -> None:
    reward = torch.tensor([3.0, 1.0, 2.0, 0.0, 7.0, 5.0, 6.0, 6.0, 6.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert extremes(reward, group, 1).nonzero().flatten().tolist() == [0, 3, 4, 5]
    assert extremes(reward, group, 2).sum() == 8
    assert extremes(reward, group, 9).sum() == 9


def test_only_extremes_are_trained_on_but_all_are_compared() -> None:
    """Two of each four samples take part; their advantages are those among all four."""
    all_four = helpers.make_trainer(helpers.policy())
    filtered = helpers.make_trainer(helpers.policy(), keep_extremes=1)
    found = []
    for trainer in (all_four, filtered):
        trajectory, values, _, _ = trainer.rollout(prompts := trainer.draw())
        batch, _ = trainer.outcome(prompts, trajectory, values)
        found.append(batch.advantage.view(4, 4))
        kept = batch.present.view(4, 4)
    assert kept.sum(1).tolist() == [2] * 4 and torch.equal(found[1], found[0])
    for everyone, chosen in zip(found[0], kept, strict=True):
        assert {everyone.argmax().item(), everyone.argmin().item()} == set(
            chosen.nonzero().flatten().tolist()
        )
    row = filtered.iterate()
    assert row["reward/missing"] == 0 and row["skipped_steps"] == 0


# Recorded pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six lines over three prompts: what was chosen is red, what was rejected is blue."""
    lines = []
    for i in range(6):
        for name, color in (("chosen", (200, 30, 30)), ("rejected", (30, 30, 200))):
            noise = np.random.default_rng(i).integers(-25, 25, (20, 16, 3))
            Image.fromarray((np.array(color) + noise).astype(np.uint8)).save(
                tmp_path / f"{i}_{name}.png"
            )
        images = {name: f"{i}_{name}.png" for name in ("chosen", "rejected")}
        lines.append(json.dumps({"prompt": helpers.WORDS[i % 3], **images}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path


def offline_run(pairs: Path, *flags: str) -> list[str]:
    return [
        "train",
        *helpers.smoke(pairs / "run"),
        "--objective.name",
        "dpo",
        "--prompts.path",
        str(pairs / "pairs.jsonl"),
        "--objective.offline",
        "true",
        *flags,
    ]


def test_recorded_images_are_encoded_as_they_are(pairs: Path) -> None:
    policy = helpers.policy()
    prompts = [Prompt("a fox", {"chosen": "0_chosen.png", "rejected": "0_rejected.png"})] * 2
    (found,) = offline.recorded(policy, prompts, pairs, batch_size=4)
    pictures = [
        Image.open(pairs / f"0_{name}.png").crop((0, 2, 16, 18)) for name in ("chosen", "rejected")
    ]
    assert torch.equal(found.images, from_pil(pictures)) and found.samples == [0, 1]
    vae = tiny().vae
    expected = vae.encode(2 * found.images - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(found.latents[:, 0], expected.detach())


def test_chosen_and_rejected_whatever_the_chunks(pairs: Path) -> None:
    """Three pairs in chunks of three: the second chunk begins with what was rejected."""
    lines = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()[:3]]
    prompts = [Prompt(line["prompt"], line) for line in lines for _ in offline.COLUMNS]
    parts = list(offline.recorded(helpers.policy(), prompts, pairs, batch_size=3))
    assert [part.samples for part in parts] == [[0, 1, 2], [3, 4, 5]]
    red = helpers.redness(torch.cat([part.images for part in parts]), [], [])
    assert (red > 0).tolist() == [True, False] * 3


def forbidden(*_: object) -> Tensor:
    raise AssertionError("a reward was asked")


def test_dpo_learns_from_recorded_pairs(pairs: Path) -> None:
    """Errors of red pictures fall beside those of blue ones; no image is sampled, no reward
    asked."""
    lines = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    trainer = helpers.make_trainer(
        helpers.policy(lora=None),
        objectives.build("dpo", beta=200.0),
        samples_per_prompt=2,
        draws=8,
        prompts=PromptSet("pairs", tuple(Prompt(line["prompt"], line) for line in lines)),
        pairs_folder=pairs,
        scorer=ranking.Ranking(),
        reward=forbidden,
        recorded=True,
        lr=1e-3,
    )
    first = trainer.iterate()
    assert first["reward/mean"] == 0.5 and first["loss"] == pytest.approx(np.log(2), rel=1e-5)
    losses = [trainer.iterate()["loss"] for _ in range(16)]
    assert np.mean(losses[-4:]) < 0.55, losses  # of several: each is of other noise


def test_an_offline_run(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(offline_run(pairs, "--trainer.iterations", "1", "--seed", "1")) == 0
    row = json.loads((pairs / "run" / "metrics.jsonl").read_text())
    assert row["reward/mean"] == 0.5 and row["ratio/mean"] is None and row["grad_norm"] > 0
    assert (pairs / "run" / "lora").is_dir()
    for flags, message in (
        (
            ["--objective.name", "prdp"],
            "objective.offline: prdp needs the steps by which images were sampled",
        ),
        (["--trainer.samples_per_prompt", "3"], "trainer.samples_per_prompt 2, these two; got"),
    ):
        assert main(offline_run(pairs, *flags, "--overwrite")) == 2
        assert message in capsys.readouterr().err
    (pairs / "3_chosen.png").unlink()
    assert main(offline_run(pairs, "--overwrite")) == 2
    assert (
        "prompts.path: chosen of 'a fox'" in (told := capsys.readouterr().err)
        and "no such file" in told
    )
    (pairs / "pairs.jsonl").write_text(json.dumps({"prompt": "a fox", "chosen": "0_chosen.png"}))
    assert main(offline_run(pairs, "--overwrite")) == 2
    assert "the line of 'a fox' has no 'rejected'" in capsys.readouterr().err


def test_more_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (
            [
                "--objective.name",
                "prdp",
                "--trainer.samples_per_prompt",
                "1",
                "--advantage.name",
                "batch",
            ],
            (
                "trainer.samples_per_prompt: "
                "1 leaves nothing to compare with, and objective prdp compares"
            ),
        ),
        (
            ["--trainer.samples_per_prompt", "1", "--advantage.name", "group"],
            "samples_per_prompt: 1 leaves nothing to compare with, and advantage group compares",
        ),
        (
            ["--objective.timestep_window", "[3, 5]"],
            "timestep_window: (3, 5) leaves none of the 3 steps",
        ),
        (["--objective.drop_last", "3"], "objective.drop_last: 3 leaves none of the 3 steps"),
        (
            ["--objective.timestep_fraction", "0"],
            "timestep_fraction: must be above 0 and at most 1, got 0",
        ),
        (["--objective.block_size", "0"], "objective.block_size: must be at least 1, got 0"),
        (
            ["--objective.name", "rwr", "--objective.kl_weight", "0.1"],
            "kl_weight: rwr works on denoising",
        ),
        (
            ["--objective.name", "prdp", "--objective.bta", "1"],
            "bta: no such option of prdp; did you mean",
        ),
    ):
        for command in ("train", "plan"):
            assert main([command, *helpers.smoke(tmp_path / "run", *flags)]) == 2
            told = capsys.readouterr().err
            assert message in told and told.count("\n") == 1, told
        assert not (tmp_path / "run").exists()


def test_a_deterministic_sampler_will_do_for_denoising_errors(tmp_path: Path) -> None:
    flags = ["--objective.name", "rwr", "--sampler.eta", "0", "--trainer.iterations", "1"]
    assert main(["train", *helpers.smoke(tmp_path / "run", *flags)]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["grad_norm"] > 0 and row["kl_ref"] is None and 0 < row["objective/ess"] <= 8
    assert ranks.state().num_processes == 1
    with pytest.raises(UserError, match="eta"):
        from ddpo.runs.session import Session

        Session(helpers.settings(tmp_path / "other", sampler__options={"eta": 0.0}))


def test_samples_of_a_rollout_do_not_depend_on_the_reference() -> None:
    policy = helpers.policy(moved=0.3)
    sampler = helpers.sampler(policy)
    prompts, keys, extra = [Prompt("a fox")], [(1,)], ("logp_ref", "output_ref")
    with torch.no_grad():
        plain = next(sample(policy, sampler, prompts, keys))
        scored = next(sample(policy, sampler, prompts, keys, extra))
    assert torch.equal(plain.latents, scored.latents) and plain.output_ref is None
    assert scored.output_ref is not None and scored.output_ref.shape == plain.latents[:, 1:].shape


def test_a_later_pass_knows_that_the_weights_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first update may take the recorded matrix; each pass has noise of its own."""
    seen: list[tuple[bool, tuple[int, ...]]] = []
    backward = helpers.Pass.backward

    def watched(self: helpers.Pass, samples: list[int]) -> float:
        seen.append((self.moved, self.terms.keys[0]))  # pyright: ignore[reportAttributeAccessIssue]
        return backward(self, samples)

    monkeypatch.setattr(helpers.Pass, "backward", watched)
    helpers.make_trainer(helpers.policy(), "dpo", draws=2, epochs=2).iterate()
    assert [moved for moved, _ in seen] == [False, True] and seen[0][1] != seen[1][1]

"""What Flow-GRPO, DanceGRPO and GRPO-Guard add to grpo: shared noise and normalized ratios."""

import helpers
import pytest
import torch

from ddpo import objectives
from ddpo.objectives.grpo import grpo
from ddpo.training.terms.log_probs import LogProbs


def test_samples_of_a_prompt_may_begin_from_one_noise() -> None:
    trainer = helpers.make_trainer(helpers.policy(), "grpo", shared_noise=True)
    latents = trainer.rollout(trainer.draw())[0].latents
    groups = latents[:, 0].view(4, 4, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups)), "one x_T for each prompt"
    assert (groups[0, 0] - groups[1, 0]).abs().max() > 0.1, "another one for another prompt"
    after = latents[:, 1].view(4, 4, -1)
    assert (after[:, 0] - after[:, 1]).abs().amax(1).min() > 0.1, "the steps' noise is each one's"
    trainer.iterate()
    again = trainer.rollout(trainer.draw())[0].latents[:, 0]
    assert (again - latents[:, 0]).abs().max() > 0.1, "another one in another iteration"


def test_a_normalized_ratio_is_the_shift_along_the_noise() -> None:
    """log-ratio + KL, times std, is <mu - mu_old, z> / D: no bias, no factor of 1 / std."""
    policy = helpers.policy(moved=0.2)
    objective = objectives.build("grpo", ratio_norm=True)
    assert objective.needs == ("kl_old", "std") and objectives.build("grpo").needs == ()
    trainer = helpers.make_trainer(policy, objective)
    prompts = trainer.draw()
    trajectory, values, _, _ = trainer.rollout(prompts)
    batch, _ = trainer.outcome(prompts, trajectory, values)
    rows, columns = torch.arange(16).repeat(4), torch.arange(4).repeat_interleave(16)
    terms, steps = trainer.terms(trajectory, 0), trainer.sampler.steps
    assert isinstance(terms, LogProbs) and terms.names == ("logp", "kl_old", "std")

    def mean() -> torch.Tensor:
        with torch.no_grad():
            texts = [trajectory.prompts[row] for row in rows.tolist()]
            x = trajectory.latents[rows, columns]
            condition = policy.condition(texts, "")
            output = policy.predict(x, steps.timesteps[columns], condition, 3.0)
            return steps.step(columns, x, output).mean.double()

    with torch.no_grad():
        at_old = terms(rows, columns)
    assert at_old["kl_old"].max() <= 1e-12
    assert ((at_old["logp"] - batch.logp_old[rows, columns]).exp() - 1).abs().max() <= 1e-6
    old = mean()
    helpers.move(policy, 0.02)
    with torch.no_grad():
        found = terms(rows, columns)
    std = steps.std[columns].double().view(-1, 1, 1, 1)
    z = (trajectory.latents[rows, columns + 1].double() - old) / std
    expected = ((mean() - old) * z).flatten(1).mean(1)
    log_ratio = found["logp"] - batch.logp_old[rows, columns]
    normalized = found["std"] * (log_ratio + found["kl_old"])
    torch.testing.assert_close(normalized, expected, rtol=1e-3, atol=1e-8)
    assert (log_ratio - expected / std.flatten()).mean() < 0, "the plain one is biased downwards"


def test_grpo_clips_the_normalized_ratio() -> None:
    """A log-ratio of 0.3 at std 0.5 with a KL of 0.1 is one of 0.2."""
    given = objectives.Batch(
        advantage=torch.tensor([1.0, -1.0], dtype=torch.float64),
        reward=torch.zeros(2),
        group=torch.zeros(2, dtype=torch.long),
        present=torch.ones(2, dtype=torch.bool),
        stochastic=torch.ones(1, dtype=torch.bool),
    ).with_matrices(
        logp_old=torch.zeros(2, 1, dtype=torch.float64),
        kl_old=torch.full((2, 1), 0.1, dtype=torch.float64),
        std=torch.full((2, 1), 0.5, dtype=torch.float64),
    )
    logp = torch.full((2, 1), 0.3, dtype=torch.float64)
    ratio = torch.tensor(0.2, dtype=torch.float64).exp().item()
    loss = grpo(logp, given, clip_range=0.1, ratio_norm=True).item()
    assert loss == pytest.approx((-1.1 + ratio) / 2)
    assert grpo(logp, given, clip_range=0.5, ratio_norm=True).item() == pytest.approx(0)


def test_a_run_with_normalized_ratios_passes_the_gate() -> None:
    objective = objectives.build("grpo", ratio_norm=True, clip_range=6.4e-3)
    metrics = helpers.make_trainer(helpers.policy(), objective, minibatches=1).iterate()
    assert metrics["ratio/max_dev"] <= 1e-6 and metrics["grad_norm"] > 0

"""DiffusionNFT against the paper's formula, differentiated directly, and its old policy."""

from dataclasses import replace
from typing import Any

import helpers
import pytest
import torch
from torch import Tensor

from ddpo import objectives, samplers
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.objectives.nft import kept_share
from ddpo.records import checkpoint
from ddpo.samplers._diffusers import rectified_flow
from ddpo.training.update import Pass

WEIGHT = 0.3


def written_out(policy: StableDiffusion, work: Pass, options: dict[str, Any]) -> Tensor:
    """The loss of the paper (section 3, and the weighting of its appendix) on the same draws."""
    terms: Any = work.terms
    rows = torch.arange(4).repeat_interleave(3)
    columns = torch.arange(3).repeat(4)
    timesteps, noise = terms._draw(rows.tolist(), columns.tolist())
    x0, schedule = terms.trajectory.latents[rows, -1], policy.schedule
    x, _ = schedule.noised(x0, noise, timesteps)
    prompts = [terms.trajectory.prompts[row] for row in rows.tolist()]

    def output() -> Tensor:
        return policy.predict(x, timesteps, policy.condition(prompts, ""), 3.0)

    signal, level = (each.float().view(-1, 1, 1, 1) for each in schedule.levels(timesteps))

    def predicted(m: Tensor) -> Tensor:
        """x_0, by the definition of what the network predicts."""
        return {
            "epsilon": lambda: (x - level * m) / signal,
            "v_prediction": lambda: signal * x - level * m,
            "sample": lambda: m,
            "velocity": lambda: x - level * m,
        }[schedule.prediction]()

    with torch.no_grad():
        with policy.weights("old"):
            old = output()
        with policy.weights("base"):
            reference = output()
    present, beta = output(), options["beta"]
    losses = []
    for mixed in ((1 - beta) * old + beta * present, (1 + beta) * old - beta * present):
        error = predicted(mixed) - x0
        size = error.detach().double().abs().mean((1, 2, 3)).clamp(min=1e-5)
        squared = error.double().square().mean((1, 2, 3))
        losses.append(squared / size if options["adaptive"] else squared)
    advantage = work.batch.advantage[rows]
    optimal = 0.5 + 0.5 * (advantage / options["advantage_scale"]).clamp(-1, 1)
    loss = options["advantage_scale"] / beta * (optimal * losses[0] + (1 - optimal) * losses[1])
    apart = (present - reference).double().square().mean((1, 2, 3))
    return (loss + options["reference_weight"] * apart).mean()


class Flow(StableDiffusion):
    """The tiny UNet taken for a rectified flow's: its numbers mean nothing, the algebra does."""

    @property
    def schedule(self) -> Any:
        return rectified_flow({"shift": 3.0})


@pytest.mark.parametrize(
    ("prediction", "changes"),
    [
        ("epsilon", {"beta": 0.5}),
        ("v_prediction", {}),
        ("sample", {"adaptive": False}),
        ("velocity", {"beta": 0.1, "advantage_scale": 2.0}),
    ],
)
def test_nft_is_the_formula_of_the_paper(prediction: str, changes: dict[str, Any]) -> None:
    """Loss and gradient, streamed in chunks of any size, on UNets and on rectified flow."""
    flow = prediction == "velocity"
    policy = helpers.policy(moved=0.2, prediction_type="epsilon" if flow else prediction)
    sampler = helpers.sampler(policy)
    if flow:
        policy.__class__ = Flow
        steps = samplers.build("flow_euler", policy.schedule, 4)
        sampler = replace(sampler, steps=steps)
    trajectory, _ = helpers.rolled(policy, sampler, 4)
    objective = objectives.build("nft", reference_weight=WEIGHT, **changes)
    work = helpers.work_on(policy, trajectory, sampler, objective, micro_batch=5)
    helpers.move(policy, 0.1)  # away from the old policy
    loss = written_out(policy, work, dict(objective.options))
    parameters = list(policy.parameters().values())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    found = helpers.gradient(work, range(4))
    assert helpers.difference(found, expected) < 1e-5
    for parameter in parameters:
        parameter.grad = None
    assert work.backward(range(4)) == pytest.approx(loss.item(), rel=1e-6)


def test_good_images_attract_and_bad_ones_repel() -> None:
    """At theta_old: the gradient is that of the old policy's loss, times 2 p - 1."""
    errors = torch.full((3, 1), 0.7, dtype=torch.float64, requires_grad=True)
    old = errors.detach()
    given = objectives.Batch(
        advantage=torch.tensor([5.0, 0.0, -9.0], dtype=torch.float64),
        reward=torch.zeros(3),
        group=torch.zeros(3, dtype=torch.long),
        present=torch.ones(3, dtype=torch.bool),
        stochastic=torch.ones(1, dtype=torch.bool),
    )
    nft = objectives.build("nft", adaptive=False, reference_weight=0.0)
    assert "errors_ref" not in nft.needs and "errors_ref" in objectives.build("nft").needs
    # a residual r along one direction: |r|^2 and <r, r_old> move together
    cross = (errors * old).sqrt()
    scale = torch.ones(3, 1, dtype=torch.float64)
    loss = nft(errors, given.with_matrices(errors_old=old, cross_old=cross, x0_scale=scale))
    gradient = torch.autograd.grad(loss, errors)[0].flatten()
    torch.testing.assert_close(gradient, 5.0 / 3 * torch.tensor([1.0, 0.0, -1.0]).double())


def test_the_schedule_of_averages() -> None:
    paper = {"old_rate": 0.001, "old_start": 0, "old_most": 0.5}
    assert [kept_share(i, **paper) for i in (0, 1, 100, 500, 900)] == [0, 0.001, 0.1, 0.5, 0.5]
    paper = {"old_rate": 0.0075, "old_start": 75, "old_most": 0.999}
    shares = [kept_share(i, **paper) for i in (0, 75, 76, 175, 1000)]
    assert shares == pytest.approx([0, 0, 0.0075, 0.75, 0.999])


def test_the_old_policy_samples_and_follows() -> None:
    policy = helpers.policy()
    objective = objectives.build("nft", old_rate=0.25, old_most=0.6)
    trainer = helpers.make_trainer(policy, objective, draws=2)

    def flat(name: str) -> Tensor:
        with policy.weights(name):
            return torch.cat([p.detach().flatten() for p in policy.parameters().values()])

    old = flat("old")
    for share in (0.0, 0.25, 0.5, 0.6):
        with policy.weights("old"), torch.no_grad():
            expected, _ = next(
                (part.latents, part) for part in trainer.trajectories(trainer.draw(), [*range(16)])
            )
        assert torch.equal(trainer.rollout(trainer.draw())[0].latents, expected)
        trainer.iterate()
        old = share * old + (1 - share) * flat("present")
        torch.testing.assert_close(flat("old"), old, rtol=1e-6, atol=1e-7)
    assert (flat("old") - flat("present")).abs().max() > 1e-4


def test_a_resumed_run_has_its_old_policy(tmp_path: Any) -> None:
    def trainer() -> Any:
        return helpers.make_trainer(helpers.policy(), objectives.build("nft", old_rate=0.5))

    first = trainer()
    for _ in range(2):
        first.iterate()
    state = first.state()
    checkpoint.save(tmp_path / "000002", state.pop("tensors"), state)
    tensors, read = checkpoint.load(tmp_path / "000002")
    other = trainer()
    other.restore({**read, "tensors": tensors})
    for each in (first, other):
        each.iterate()
    for name, value in first.policy.snapshots["old"].items():
        assert torch.equal(value, other.policy.snapshots["old"][name])
    assert not all(
        torch.equal(value, first.policy.snapshots["old"][name])
        for name, value in first.policy.parameters().items()
    )

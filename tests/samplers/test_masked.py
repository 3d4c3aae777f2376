"""A masked step against enumeration: three places, three letters, a table of a joint law."""

import itertools
import math
from typing import Any

import pytest
import torch
import toy_sequences as toy
from torch import Tensor

from ddpo import samplers
from ddpo.errors import UserError
from ddpo.samplers import Masked, MaskSchedule
from ddpo.samplers.masked import masked

SCHEDULE = MaskSchedule(toy.LETTERS, toy.PLACES)
WAYS = [("independent", 1), ("independent", 4), ("counted", 3), ("counted", 2)]


def every_step(reveal: Any, num_steps: int, table: Tensor) -> Any:
    """For each step and state: the distribution, repeated for all 64 states to go to."""
    policy, steps = toy.Table(table), masked(SCHEDULE, num_steps, reveal=reveal)
    for t, state in itertools.product(range(num_steps), toy.STATES):
        if steps.left is not None and (state == toy.LETTERS).sum() < int(steps.left[t]):
            continue  # a chain of counted steps never comes there
        x, index = state.expand(64, -1), torch.full((64,), t)
        yield steps.step(index, x, policy.predict(x, index, None, 1.0)), x


@pytest.mark.parametrize(("reveal", "num_steps"), WAYS)
def test_probabilities_of_a_step_sum_to_one(reveal: Any, num_steps: int) -> None:
    for step, _ in every_step(reveal, num_steps, torch.randn(64, 3, 3).double()):
        assert abs(step.log_prob(toy.STATES, "sum").exp().sum().item() - 1) < 1e-12
        mean = step.log_prob(toy.STATES, "mean")
        torch.testing.assert_close(mean * 3, step.log_prob(toy.STATES, "sum"))


def test_probabilities_of_a_step_by_hand() -> None:
    """Two masks of three, stay .75: one is revealed as letter 2, the other stays."""
    letters = torch.tensor([[[0.2, 0.3, 0.5]] * 3], dtype=torch.float64).log()
    step = Masked(torch.tensor([[3, 1, 3]]), letters, torch.tensor([0.75], dtype=torch.float64))
    known = torch.tensor([0.25 * 0.5 * 0.75]).double().log()
    torch.testing.assert_close(step.log_prob(torch.tensor([[2, 1, 3]]), "sum"), known)
    assert step.log_prob(torch.tensor([[2, 0, 3]])).item() == -torch.inf
    counted = Masked(step.x, letters, step.stay, left=torch.tensor([1]))
    half = torch.tensor([0.5 * 0.5]).double().log()
    torch.testing.assert_close(counted.log_prob(torch.tensor([[2, 1, 3]]), "sum"), half)
    assert counted.log_prob(torch.tensor([[2, 1, 2]])).item() == -torch.inf


@pytest.mark.parametrize(("reveal", "num_steps"), WAYS)
def test_kl_of_a_step_is_the_enumerated_one(reveal: Any, num_steps: int) -> None:
    torch.manual_seed(0)
    mine, others = torch.randn(2, 64, 3, 3).double().unbind()
    pairs = zip(
        every_step(reveal, num_steps, mine), every_step(reveal, num_steps, others), strict=True
    )
    for (step, _), (other, _) in pairs:
        logp, base = (one.log_prob(toy.STATES, "sum") for one in (step, other))
        possible = logp > -torch.inf
        known = (logp.exp() * (logp - base))[possible].sum().item()
        assert step.kl(other, "sum")[0].item() == pytest.approx(known, abs=1e-12)
        assert step.kl(other)[0].item() == pytest.approx(known / 3, abs=1e-12)


@pytest.mark.parametrize(("reveal", "num_steps"), WAYS)
def test_path_kl_is_that_of_all_paths(reveal: Any, num_steps: int) -> None:
    """The chain rule: the sum of expected closed forms = KL of the laws of whole paths."""
    torch.manual_seed(1)
    mine, base = (toy.Table(table) for table in torch.randn(2, 64, 3, 3).double())
    steps = masked(SCHEDULE, num_steps, reveal=reveal)
    closed, paths = 0.0, {((3, 3, 3),): (0.0, 0.0)}
    for t in range(num_steps):
        following: dict[Any, tuple[float, float]] = {}
        for path, (logp, logp_base) in paths.items():
            x, index = torch.tensor([path[-1]]).expand(64, -1), torch.full((64,), t)
            step, other = (
                steps.step(index, x, p.predict(x, index, None, 1.0)) for p in (mine, base)
            )
            closed += math.exp(logp) * step.kl(other, "sum")[0].item()
            rows = zip(
                toy.STATES.tolist(),
                step.log_prob(toy.STATES, "sum").tolist(),
                other.log_prob(toy.STATES, "sum").tolist(),
                strict=True,
            )
            for state, one, two in rows:
                if one > -torch.inf:
                    following[(*path, tuple(state))] = (logp + one, logp_base + two)
        paths = following
    known = sum(math.exp(a) * (a - b) for a, b in paths.values())
    assert closed == pytest.approx(known, abs=1e-12)
    assert toy.law_of(mine, steps, base.table)[1].item() == pytest.approx(known, abs=1e-12)


def test_one_letter_at_a_time_draws_from_the_joint_and_parallel_steps_do_not() -> None:
    """The bias of parallel steps falls with their number: the base's own law is reached in the
    limit."""
    law = toy.joint()
    policy = toy.Table(toy.conditionals(law))
    exact = toy.law_of(policy, masked(SCHEDULE, 3, reveal="counted"))
    assert toy.variation(exact[0], law) < 1e-12
    biases = [toy.variation(toy.law_of(policy, masked(SCHEDULE, n))[0], law) for n in (1, 2, 8, 32)]
    assert biases == sorted(biases, reverse=True) and biases[0] > 0.1 > 0.02 > biases[-1]


@pytest.mark.parametrize(("reveal", "num_steps"), WAYS)
def test_samples_follow_their_probabilities(reveal: Any, num_steps: int) -> None:
    torch.manual_seed(2)
    policy, steps = (
        toy.Table(torch.randn(64, 3, 3).double()),
        masked(SCHEDULE, num_steps, reveal=reveal),
    )
    count = 40_000
    x, noise = torch.full((count, 3), 3), torch.randn(num_steps, count, 3, 4)
    for t in range(num_steps):
        index = torch.full((count,), t)
        step = steps.step(index, x, policy.predict(x, index, None, 1.0).detach())
        x = step.sample(noise[t])
    drawn = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / count
    assert toy.variation(drawn, toy.law_of(policy, steps)[0].detach()) < 0.02


def test_a_relaxed_sample_is_the_hard_one_with_a_derivative() -> None:
    torch.manual_seed(3)
    x, noise = toy.STATES[torch.randint(64, (200,))], torch.randn(200, 3, 4)
    logits = torch.randn(200, 3, 3).double().requires_grad_()
    steps, index = masked(SCHEDULE, 4), torch.randint(4, (200,))
    hard = steps.step(index, x, logits.log_softmax(-1)).sample(noise)
    for temperature, straight in ((0.3, False), (0.3, True)):
        relaxed = steps.relaxed(temperature, straight).step(index, x, logits.log_softmax(-1))
        rows = relaxed.rsample(noise)
        assert rows.argmax(-1).equal(hard)
        torch.testing.assert_close(rows.sum(-1), torch.ones(200, 3))
        (gradient,) = torch.autograd.grad(rows[..., 0].sum(), logits)
        touched = gradient.abs().sum(-1) > 0
        assert not (touched & ~((x == 3) & (hard != 3))).any() and touched.any()
    cold = steps.relaxed(1e-3, False).step(index, x, logits.log_softmax(-1)).rsample(noise)
    assert (cold.amax(-1) > 0.999).float().mean() > 0.98


def test_a_sampler_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.name: ddim does not fit .* take masked"):
        samplers.build("ddim", SCHEDULE, 4)
    with pytest.raises(UserError, match=r"sampler\.num_steps: 5 counted steps for 3 letters"):
        samplers.build("masked", SCHEDULE, 5, reveal="counted")

"""Discrete diffusion on a toy that can be counted: gradients, optima, and what relaxing costs.

One letter at a time in random order, so that the optimum of E[r] - alpha KL(path) is exactly
exp(r / alpha) p_pretrained (Wang et al. 2024, theorem 1).
"""

from typing import Any

import pytest
import torch
import toy_sequences as toy
from torch.nn import functional as F

from ddpo import objectives
from ddpo.objectives import Batch
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers.masked import masked
from ddpo.training.measures import Measured
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass

ONE_AT_A_TIME = masked(toy.Table(torch.zeros(64, 3, 3)).schedule, 3, reveal="counted")
QUICKLY: Any = {"iterations": 100, "rate": 0.1}
"""Of `toy.descend`: a third of what the figures of docs/sequences.md took."""

LAW, REWARD = toy.joint(), toy.reward_of()
BASE = toy.conditionals(LAW)
OPTIMUM = toy.optimum(LAW, REWARD)


def all_paths(steps: object) -> torch.Tensor:
    """Every path of states from all masks to no mask, (P, T + 1, 3)."""
    paths = torch.full((1, 1, 3), 3)
    for t in range(len(steps)):
        wide = paths.repeat_interleave(64, 0)
        following = toy.STATES.repeat(len(paths), 1)
        index = torch.full((len(wide),), t)
        uniform = torch.zeros(len(wide), 3, 3).double().log_softmax(-1)
        possible = steps.step(index, wide[:, -1], uniform).log_prob(following) > -torch.inf
        paths = torch.cat([wide, following[:, None]], dim=1)[possible]
    return paths


@pytest.mark.parametrize(("reveal", "num_steps"), [("counted", 3), ("independent", 2)])
def test_the_policy_gradient_is_the_enumerated_one(reveal: str, num_steps: int) -> None:
    """sum over all paths of p(path) r grad log p(path), through terms, objective and update."""
    torch.manual_seed(0)
    policy = toy.Table(torch.randn(64, 3, 3).double())
    steps = masked(policy.schedule, num_steps, reveal=reveal)
    paths = all_paths(steps)
    count = len(paths)
    ends = (paths[:, -1] * torch.tensor([9, 3, 1])).sum(1)
    prompts = [toy.Prompt("toy")] * count
    decoded = policy.decode(paths[:, -1])
    nothing = torch.zeros(count, num_steps, dtype=torch.float64)
    trajectory = Trajectory(list(range(count)), prompts, paths, nothing, decoded)
    terms = LogProbs(policy, Sampler(steps, 1.0, 16), trajectory)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(num_steps)).unbind(1)
    with torch.no_grad():
        logp = terms(*pairs)["logp"].view(count, num_steps)
    chances = (3 * logp.sum(1)).exp()  # means over the three places
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    advantage = chances * REWARD[ends] * count * num_steps * 3
    group, present = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    batch = Batch(advantage, advantage, group, present, steps.stochastic, {"logp_old": logp})
    for name in ("ddpo_sf", "ddpo", "grpo"):
        policy.table.grad = None
        work = Pass(terms, batch, objectives.build(name), 64, Measured(None))
        work.backward(range(count))
        (known,) = torch.autograd.grad((toy.law_of(policy, steps)[0] * REWARD).sum(), policy.table)
        assert (policy.table.grad + known).abs().max() < 1e-6 * known.abs().max()


def test_prdp_is_0_at_the_tilted_law() -> None:
    """One letter at a time, the order of the letters cancels in log-ratios of whole paths."""
    paths = all_paths(ONE_AT_A_TIME)
    count, beta = len(paths), toy.ALPHA
    ends = (paths[:, -1] * torch.tensor([9, 3, 1])).sum(1)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(3)).unbind(1)
    trajectory = Trajectory(
        list(range(count)), [toy.Prompt("")] * count, paths, torch.zeros(count, 3).double(),
        torch.zeros(count, 3, 3),
    )  # fmt: skip
    logp = {}
    for name, law in {"tilted": OPTIMUM, "base": LAW, "other": toy.joint(5)}.items():
        terms = LogProbs(
            toy.Table(toy.conditionals(law)), Sampler(ONE_AT_A_TIME, 1.0, 16), trajectory
        )
        with torch.no_grad():
            logp[name] = terms(*pairs)["logp"].view(count, 3)
    # a sum over steps of means over 3 places: beta in nats is a third of the option
    prdp = objectives.build("prdp", beta=3 * beta, clip_range=1e3, sum_steps=True)
    group, present = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    for name, low in {"tilted": True, "other": False}.items():
        matrices = {"logp_old": logp[name], "logp_ref": logp["base"]}
        batch = Batch(
            REWARD[ends], REWARD[ends], group, present, ONE_AT_A_TIME.stochastic, matrices
        )
        assert (prdp(logp[name], batch).item() < 1e-20) == low


def test_exact_ascent_reaches_the_optimum() -> None:
    policy = toy.Table(BASE)

    def loss(iteration: int) -> torch.Tensor:
        law, kl = toy.law_of(policy, ONE_AT_A_TIME, BASE)
        return toy.ALPHA * kl - (law * REWARD).sum()

    start = toy.variation(toy.law_of(policy, ONE_AT_A_TIME)[0], OPTIMUM)
    toy.descend(policy, loss, **QUICKLY)
    assert toy.variation(toy.law_of(policy, ONE_AT_A_TIME)[0], OPTIMUM) <= 0.01 < 0.1 < start


def test_policy_gradient_reaches_the_optimum() -> None:
    """r - alpha log(p / p_pretrained) of the path as the reward: the exact objective's gradient."""
    policy = toy.Table(BASE)

    def loss(iteration: int) -> torch.Tensor:
        trajectory = toy.sampled(policy, ONE_AT_A_TIME, toy.BATCH, iteration)
        rows, columns = torch.cartesian_prod(torch.arange(toy.BATCH), torch.arange(3)).unbind(1)
        logp = LogProbs(policy, Sampler(ONE_AT_A_TIME, 1.0, 16), trajectory)(rows, columns)["logp"]
        ends = (trajectory.latents[:, -1] * torch.tensor([9, 3, 1])).sum(1)
        ratio = 3 * (trajectory.logp_old - trajectory.logp_ref).sum(1)
        advantage = REWARD[ends] - toy.ALPHA * ratio
        return -3 * ((advantage - advantage.mean()) * logp.view(-1, 3).sum(1)).mean()

    toy.descend(policy, loss, **QUICKLY)
    assert toy.variation(toy.law_of(policy, ONE_AT_A_TIME)[0].detach(), OPTIMUM) <= 0.03


def test_drakes_reaches_the_optimum_but_for_its_bias() -> None:
    """Soft letters at a temperature of .1."""
    policy = toy.Table(BASE)
    toy.descend(
        policy,
        lambda i: toy.drakes_loss(policy, ONE_AT_A_TIME, REWARD, i, temperature=0.1),
        **QUICKLY,
    )
    assert toy.variation(toy.law_of(policy, ONE_AT_A_TIME)[0].detach(), OPTIMUM) <= 0.05


def test_the_kl_of_a_replay_is_the_path_kl() -> None:
    """Its mean over many rollouts is the enumerated one, in nats."""
    policy = toy.Table(toy.conditionals(OPTIMUM))
    policy.base = BASE
    zero = torch.zeros(27).double()
    losses = [
        toy.drakes_loss(policy, ONE_AT_A_TIME, zero, i, temperature=1e-3, alpha=1.0).item()
        for i in range(8)
    ]
    known = toy.law_of(policy, ONE_AT_A_TIME, BASE)[1].item()
    exact = (OPTIMUM * (OPTIMUM / LAW).log()).sum().item()
    assert known == pytest.approx(exact, abs=1e-9), "the path KL is the KL of the ends here"
    assert sum(losses) / 8 == pytest.approx(known, rel=0.03)


def test_a_smooth_reward_is_the_tables_at_letters() -> None:
    rows = F.one_hot(toy.SEQUENCES, 3).float()
    torch.testing.assert_close(toy.smooth(REWARD)(rows, [], []), REWARD)

"""Objectives against their papers: optima, identities and clips that can be written down."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo import advantages, objectives
from ddpo.errors import UserError
from ddpo.objectives import Batch, Objective, Replay

STEPS, BETA, SLOPE = 3, 0.7, 1.3
# x_{t-1} ~ N(decay_t x_t + shift_t, std_t^2)
DECAY = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
STD = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)
OFF = 1e9
"""A clip range that never acts."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(count: int, start: float = 0.4) -> Tensor:
    """Trajectories x_T .. x_0 of one start, under any wide distribution."""
    x = [torch.full((count,), start, dtype=torch.float64)]
    for t in range(STEPS):
        x.append(DECAY[t] * x[-1] + 2 * STD[t] * random(count, seed=t))
    return torch.stack(x, 1)


def log_probs(x: Tensor, shift: Tensor) -> Tensor:
    """(B, T) of the chain whose means are shifted by `shift` (T)."""
    means = x[:, :-1] * DECAY + shift
    return torch.distributions.Normal(means, STD).log_prob(x[:, 1:])


def tilted() -> Tensor:
    """Shifts of pi_ref exp(r / beta) / Z for r = slope x_0: std_t^2 slope / beta x later decays.

    E[exp(slope x_0 / beta) | x_t] is exp(slope x_t / beta times the product of the decays to come),
    up to a factor.
    """
    later = torch.stack([DECAY[t + 1 :].prod() for t in range(STEPS)])
    return STD.square() * SLOPE / BETA * later


def outcomes(logp_old: Tensor, logp_ref: Tensor, reward: Tensor, groups: int = 1) -> Batch:
    group = torch.arange(len(reward)) * groups // len(reward)
    return Batch(
        advantage=reward - reward.mean(),
        reward=reward,
        group=group,
        present=torch.ones(len(reward), dtype=torch.bool),
        stochastic=torch.ones(logp_old.shape[1], dtype=torch.bool),
        matrices={"logp_old": logp_old, "logp_ref": logp_ref},
        all_reward=reward,
        all_group=group,
    )


def gradient(objective: Objective, logp: Tensor, batch: Batch) -> Tensor:
    leaf = logp.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf, batch), leaf)[0]


def noisy(
    rows: int = 8, steps: int = 4, groups: int = 2, spread: float = 0.01
) -> tuple[Tensor, Batch]:
    """Present log-probabilities near the old ones, which are near the reference's."""
    old = random(rows, steps)
    batch = outcomes(old, old + spread * random(rows, steps, seed=1), random(rows, seed=2), groups)
    return old + spread * random(rows, steps, seed=3), batch


def rdp_error(logp: Tensor, batch: Batch, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """rhat(a) - rhat(b) - (r(a) - r(b)) / beta of all pairs of a group, by two loops."""
    assert batch.logp_ref is not None
    rhat = (logp - batch.logp_ref).mean(1)
    pairs = [(a, b) for a in range(len(rhat)) for b in range(a) if batch.group[a] == batch.group[b]]
    first, second = torch.tensor(pairs).T
    return (
        rhat[first] - rhat[second] - (batch.reward[first] - batch.reward[second]) / beta,
        first,
        second,
    )


# PRDP


@pytest.mark.parametrize("keep_ties", [False, True])
def test_prdp_is_0_at_the_optimum_and_only_there(keep_ties: bool) -> None:
    """pi* = pi_ref exp(r / beta) / Z on a Gaussian chain; with a mean over steps at beta T."""
    x = chain(12)
    x[1] = x[0]  # a tie
    batch = outcomes(log_probs(x, 0 * STD), log_probs(x, 0 * STD), SLOPE * x[:, -1])
    prdp = objectives.build("prdp", beta=BETA, clip_range=OFF, sum_steps=True, keep_ties=keep_ties)
    mean = objectives.build("prdp", beta=BETA * STEPS, clip_range=OFF, keep_ties=keep_ties)
    for objective in (prdp, mean):
        assert objective(log_probs(x, tilted()), batch).item() == pytest.approx(0, abs=1e-24)
        assert objective(log_probs(x, 1.01 * tilted()), batch).item() > 1e-6
        assert gradient(objective, log_probs(x, tilted()), batch).abs().max() < 1e-12


def test_descending_prdp_reaches_the_optimum() -> None:
    x, shift = chain(64), torch.zeros(STEPS, dtype=torch.float64, requires_grad=True)
    batch = outcomes(log_probs(x, 0 * STD), log_probs(x, 0 * STD), SLOPE * x[:, -1])
    prdp = objectives.build("prdp", beta=BETA, clip_range=OFF, sum_steps=True)
    optimizer = torch.optim.LBFGS(
        [shift], line_search_fn="strong_wolfe", max_iter=100, tolerance_grad=1e-12
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = prdp(log_probs(x, shift), batch)
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(shift.detach(), tilted(), rtol=1e-5, atol=0)


def test_prdp_by_loops() -> None:
    """Without clipping: the mean over pairs of the squared error, and its derivative in the paper's
    form."""
    logp, batch = noisy()
    error, first, second = rdp_error(logp, batch, 0.3)
    prdp = objectives.build("prdp", beta=0.3, clip_range=OFF)
    assert prdp(logp, batch).item() == pytest.approx(error.square().mean().item())
    expected = torch.zeros_like(logp)
    for e, a, b in zip(error, first, second, strict=True):
        expected[a] += 2 * e / len(error) / logp.shape[1]
        expected[b] -= 2 * e / len(error) / logp.shape[1]
    torch.testing.assert_close(gradient(prdp, logp, batch), expected)


def test_prdp_clips_step_by_step_and_takes_the_worse() -> None:
    """Two images, two steps, means: rhat of the better moved by +0.3 and +0.1 from 0, at a clip of
    0.2.

    Below the target, clipping shrinks the difference and is the worse loss: only the step inside
    has a gradient. Above the target the unclipped loss is the worse one: both steps are pulled
    back.
    """
    zero = torch.zeros(2, 2, dtype=torch.float64)
    logp = torch.tensor([[0.3, 0.1], [0.0, 0.0]], dtype=torch.float64)
    for difference, rhat, moving in ((1.0, 0.15, [0.0, 1.0]), (0.1, 0.2, [1.0, 1.0])):
        batch = outcomes(zero, zero, torch.tensor([difference, 0.0], dtype=torch.float64))
        prdp = objectives.build("prdp", beta=1.0, clip_range=0.2)
        assert prdp(logp, batch).item() == pytest.approx((rhat - difference) ** 2)
        slope = 2 * (rhat - difference) / 2
        expected = torch.tensor(
            [[slope * m for m in moving], [-slope, -slope]], dtype=torch.float64
        )
        torch.testing.assert_close(gradient(prdp, logp, batch), expected)
        mirrored = -logp.flip(0)  # the worse moved down, to the lower ends of its clips
        assert prdp(mirrored, batch).item() == pytest.approx((rhat - difference) ** 2)
        torch.testing.assert_close(gradient(prdp, mirrored, batch), -expected.flip(0))


def test_prdp_clips_around_the_old_policy_not_the_reference() -> None:
    """A policy far from the reference that has not moved since the rollout is not clipped."""
    old = random(4, 3)
    batch = outcomes(
        old, old - 5, torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), groups=2
    )
    expected = gradient(objectives.build("prdp", beta=0.1, clip_range=OFF), old, batch)
    torch.testing.assert_close(gradient(objectives.build("prdp", beta=0.1), old, batch), expected)
    moved = old + 2 * batch.reward[:, None] - 1  # towards a target far away, beyond the clip: flat
    assert gradient(objectives.build("prdp", beta=1e-3), moved, batch).abs().max() == 0
    back = old - 2 * batch.reward[:, None] + 1  # the wrong way: pulled back
    assert gradient(objectives.build("prdp", beta=1e-3), back, batch).abs().min() > 0


def test_prdp_ties() -> None:
    """Dropped, a pair of equal rewards is no pair; kept, it is regressed to 0."""
    logp, batch = noisy(4, 2, 1)
    batch = replace(batch, reward=torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert objectives.build("prdp")(logp, batch).item() == 0
    error, _, _ = rdp_error(logp, batch, 1.0)
    kept = objectives.build("prdp", clip_range=OFF, keep_ties=True)
    assert (
        kept(logp, batch).item() == pytest.approx(error.square().mean().item()) and len(error) == 6
    )


# P3O


def test_p3o_coefficient_is_minus_beta_times_the_rdp_error() -> None:
    """Clip and weight off: grad P3O = 1/2 mean -q grad d with q = -beta e.

    That is beta / 4 of PRDP's gradient.
    """
    logp, batch = noisy()
    beta = 0.3
    p3o = objectives.build("p3o", kl_coef=beta, clip_range=OFF, max_weight=1.0)
    error, first, second = rdp_error(logp, batch, beta)
    expected = torch.zeros_like(logp)
    for e, a, b in zip(error, first, second, strict=True):
        q = -beta * e
        expected[a] -= 0.5 * q / len(error) / logp.shape[1]
        expected[b] += 0.5 * q / len(error) / logp.shape[1]
    torch.testing.assert_close(gradient(p3o, logp, batch), expected)
    prdp = objectives.build("prdp", beta=beta, clip_range=OFF)
    torch.testing.assert_close(gradient(p3o, logp, batch), beta / 4 * gradient(prdp, logp, batch))


@pytest.mark.parametrize("joint", [True, False])
def test_p3o_draws_equal_rewards_together(joint: bool) -> None:
    """A tie has nothing to gain but the KL: what has risen above the reference falls beside the
    other."""
    old = torch.zeros(2, 2, dtype=torch.float64)
    logp = torch.tensor([[0.3, 0.1], [0.0, 0.0]], dtype=torch.float64)
    batch = outcomes(old, old, torch.ones(2, dtype=torch.float64))
    found = gradient(objectives.build("p3o", kl_coef=0.5, clip_range=OFF, joint=joint), logp, batch)
    assert (found[0] > 0).all() and (found[1] < 0).all()


@pytest.mark.parametrize("joint", [True, False])
def test_all_pairs_are_the_group_mean_baseline(joint: bool) -> None:
    """Sum over unordered pairs of (r_i - r_j)(g_i - g_j) = G sum over i of (r_i - mean r) g_i."""
    logp, batch = noisy(6, 4, 1)
    p3o = objectives.build("p3o", kl_coef=0.0, clip_range=OFF, max_weight=1.0, joint=joint)
    baseline = advantages.build("group", std="none")(batch.reward, [""] * 6, batch.group)
    policy_gradient = gradient(
        objectives.build("ddpo_sf"), logp, replace(batch, advantage=baseline)
    )
    pairs, samples = 15, 6  # P3O: half a mean over pairs; the policy gradient: a mean over samples
    torch.testing.assert_close(
        2 * pairs * gradient(p3o, batch.logp_old, batch), samples * samples * policy_gradient
    )


def test_p3o_by_hand() -> None:
    """One pair, one step: q, weight, and both clips."""
    old = torch.zeros(2, 1, dtype=torch.float64)
    ref = torch.tensor([[-0.1], [0.2]], dtype=torch.float64)
    logp = torch.tensor([[0.3], [-0.1]], dtype=torch.float64)
    batch = outcomes(old, ref, torch.tensor([2.0, 0.5], dtype=torch.float64))
    difference, before = 0.4 - (-0.3), 0.1 - (-0.2)
    q, weight = 1.5 - 0.5 * difference, math.exp(0.3 - 0.1)
    joint = objectives.build("p3o", kl_coef=0.5, clip_range=0.25)
    assert joint(logp, batch).item() == pytest.approx(0.5 * -q * weight * (before + 0.25))
    assert gradient(joint, logp, batch).abs().max() == 0, "the pair has moved far enough"
    separate = objectives.build("p3o", kl_coef=0.5, clip_range=0.25, joint=False)
    first, second = -q * weight * (0.1 + 0.25), q * weight * -0.3  # only the first left its range
    assert separate(logp, batch).item() == pytest.approx(0.5 * (first + second))
    torch.testing.assert_close(
        gradient(separate, logp, batch),
        torch.tensor([[0.0], [0.5 * q * weight]], dtype=torch.float64),
    )
    bounded = objectives.build("p3o", kl_coef=0.5, clip_range=OFF, max_weight=1.1)
    assert bounded(logp, batch).item() == pytest.approx(0.5 * -q * 1.1 * difference)
    other_way = replace(batch, reward=-batch.reward)
    q = -1.5 - 0.5 * difference
    assert joint(logp, other_way).item() == pytest.approx(0.5 * -q * weight * difference), (
        "worse: not clipped"
    )


# GRPO, DPOK, the closed-form KL


def test_grpo_is_ddpo_where_both_clips_are_one() -> None:
    logp, batch = noisy(spread=0.1)
    for clip in (0.01, 0.1):
        one, other = (objectives.build(name, clip_range=clip) for name in ("grpo", "ddpo"))
        torch.testing.assert_close(
            gradient(one, logp, batch), gradient(other, logp, batch), rtol=0, atol=0
        )


def test_grpo_clips_higher() -> None:
    """A ratio of 1.15 at a positive advantage: beyond 1.1, within 1.2."""
    old = torch.zeros(1, 1, dtype=torch.float64)
    logp = torch.full_like(old, math.log(1.15))
    batch = replace(
        outcomes(old, old, torch.ones(1, dtype=torch.float64)), advantage=torch.ones(1).double()
    )
    assert gradient(objectives.build("grpo", clip_range=0.1), logp, batch).item() == 0
    higher = gradient(objectives.build("grpo", clip_range=0.1, clip_range_high=0.2), logp, batch)
    assert higher.item() == pytest.approx(-1.15)
    low = replace(batch, advantage=-batch.advantage)
    for ratio, slope in ((0.85, 0.0), (0.95, 0.95), (1.5, 1.5)):
        found = gradient(
            objectives.build("grpo", clip_range=0.1, clip_range_high=0.2),
            old + math.log(ratio),
            low,
        )
        assert found.item() == pytest.approx(slope)


def test_dpok_by_hand() -> None:
    """A plain clamp: no gradient on either side; and kl_coef times the closed-form KL."""
    old = torch.zeros(4, 1, dtype=torch.float64)
    logp = torch.tensor([[1.05], [1.3], [0.7], [0.95]], dtype=torch.float64).log()
    advantage = torch.tensor([1.0, 1.0, 1.0, -2.0], dtype=torch.float64)
    kl = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64, requires_grad=True)
    batch = replace(outcomes(old, old, advantage), advantage=advantage).with_matrices(kl=kl)
    dpok = objectives.build("dpok", clip_range=0.1, reward_weight=10.0, kl_coef=0.5)
    loss = dpok(logp, batch)
    assert loss.item() == pytest.approx((-10 * (1.05 + 1.1 + 0.9 - 2 * 0.95) + 0.5 * 1.0) / 4)
    found = gradient(dpok, logp, batch.with_matrices(kl=kl.detach())).flatten().tolist()
    assert found == pytest.approx([-10 * 1.05 / 4, 0, 0, 20 * 0.95 / 4])
    assert torch.autograd.grad(loss, kl)[0].flatten().tolist() == pytest.approx([0.5 / 4] * 4)


@pytest.mark.parametrize("name", ["ddpo", "grpo", "prdp"])
def test_kl_weight_adds_the_mean_kl(name: str) -> None:
    logp, batch = noisy()
    batch = replace(batch, stochastic=torch.tensor([True, True, True, False]))
    batch = batch.with_matrices(kl=random(8, 4).abs())
    plain, weighted = objectives.build(name), objectives.build(name, kl_weight=0.3)
    assert (
        "kl" in weighted.needs and "kl" not in plain.needs and weighted.separable == plain.separable
    )
    extra = 0.3 * batch.kl[:, :3].mean()
    assert weighted(logp, batch).item() == pytest.approx(plain(logp, batch).item() + extra.item())


# RWR


def weights(reward: Tensor, group: Tensor, **options: float | bool | None) -> Tensor:
    """As the loss applies them: d loss / d error, times the number of samples."""
    errors = torch.zeros(len(reward), 1, dtype=torch.float64)
    batch = replace(outcomes(errors, errors, reward), group=group, all_group=group)
    return gradient(objectives.build("rwr", **options), errors, batch).flatten() * len(reward)


def test_rwr_weights_are_a_softmax() -> None:
    reward, group = random(12) * 3 + 100, torch.arange(12) // 4
    whole = weights(reward, group, beta=0.7, per_prompt=False)
    torch.testing.assert_close(whole, 12 * torch.softmax(0.7 * reward, 0))
    own = weights(reward, group, beta=0.7)
    for g in range(3):
        torch.testing.assert_close(own[group == g], 4 * torch.softmax(0.7 * reward[group == g], 0))
    scaled = weights(7 * reward + 5, group, beta=0.7, standardize=True)
    for g in range(3):
        z = (reward[group == g] - reward[group == g].mean()) / reward[group == g].std(correction=0)
        torch.testing.assert_close(
            scaled[group == g], 4 * torch.softmax(0.7 * z, 0), rtol=1e-5, atol=0
        )
    assert weights(torch.full((4,), 3.0).double(), torch.zeros(4).long()).tolist() == [1.0] * 4
    assert weights(reward * 1e4, group).isfinite().all(), "no overflow"


def test_sparse_rwr_keeps_the_best() -> None:
    reward, group = torch.arange(20, dtype=torch.float64).roll(7), torch.arange(20) // 10
    whole = weights(reward, group, percentile=0.9, per_prompt=False)
    assert (
        sorted(reward[whole > 0].tolist()) == [18, 19] and whole[whole > 0].tolist() == [10.0] * 2
    )
    own = weights(reward, group, percentile=0.9)
    for g in (0, 1):
        assert (
            own[group == g].argmax() == reward[group == g].argmax()
            and (own[group == g] > 0).sum() == 1
        )
    tied = weights(torch.ones(4).double(), torch.zeros(4).long(), percentile=0.9)
    assert tied.tolist() == [1.0] * 4, "ties at the threshold are all kept"


def test_rwr_weights_do_not_depend_on_the_minibatch() -> None:
    errors, reward = random(8, 3).square(), random(8, seed=1)
    batch = outcomes(errors, errors, reward, 2)
    rwr = objectives.build("rwr", beta=1.0, per_prompt=False)
    whole = gradient(rwr, errors, batch)
    for rows in (torch.tensor([0, 5]), torch.tensor([7, 1, 2])):
        part = gradient(rwr, errors[rows], batch.rows(rows)) * len(rows) / 8
        torch.testing.assert_close(part, whole[rows])


def test_the_effective_sample_size() -> None:
    errors = torch.zeros(4, 1, dtype=torch.float64)
    batch = outcomes(errors, errors, torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    w = torch.softmax(2 * batch.reward, 0)
    found = objectives.build("rwr", beta=2.0).metrics(batch)
    assert found == {"objective/ess": pytest.approx(1 / w.square().sum().item())}
    assert objectives.build("rwr", beta=0.0).metrics(batch) == {"objective/ess": pytest.approx(4)}
    assert objectives.build("ddpo").metrics(batch) == {}


# RWR, PRDP and the KL-regularised policy gradient on one Gaussian


COUNT, MEAN, WIDTH = 4001, 0.4, 0.6


def quantiles() -> Tensor:
    """Samples of N(MEAN, WIDTH^2) without noise."""
    levels = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
    x = MEAN + WIDTH * math.sqrt(2) * torch.erfinv(2 * levels - 1)
    return MEAN + (x - x.mean()) * WIDTH / x.std(correction=0)


def slope_of_the_mean(objective: Objective, x: Tensor, mean: float, batch: Batch) -> float:
    """d loss / d mean, the matrix being exact log-likelihoods or twice the negative ones less a
    constant."""
    center = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
    errors = ((x - center) / WIDTH).square()[:, None]
    matrix = (
        errors
        if objective.denoising_errors
        else -0.5 * errors - math.log(WIDTH * math.sqrt(2 * math.pi))
    )
    if "kl" in batch.matrices:
        batch = batch.with_matrices(kl=(0.5 * ((center - MEAN) / WIDTH).square()).expand(COUNT, 1))
    return torch.autograd.grad(objective(matrix, batch), center)[0].item()


def at_the_reference(x: Tensor, reward: Tensor) -> Batch:
    logp = (-0.5 * ((x - MEAN) / WIDTH).square() - math.log(WIDTH * math.sqrt(2 * math.pi)))[
        :, None
    ]
    kl = torch.zeros(COUNT, 1, dtype=torch.float64)
    return outcomes(logp, logp, reward).with_matrices(kl=kl)


def test_small_steps_agree() -> None:
    """From the reference, all three move along the covariance of reward and score, in known
    proportions."""
    x = quantiles()
    reward = x.sin() + 0.3 * x.square()
    batch, beta = at_the_reference(x, reward), 1e-4
    policy_gradient = slope_of_the_mean(objectives.build("ddpo_sf", kl_weight=0.5), x, MEAN, batch)
    score = (x - MEAN) / WIDTH**2
    assert policy_gradient == pytest.approx(-((reward - reward.mean()) * score).mean().item())
    rwr = objectives.build("rwr", beta=beta, per_prompt=False)
    assert slope_of_the_mean(rwr, x, MEAN, batch) / (2 * beta) == pytest.approx(
        policy_gradient, rel=1e-3
    )
    prdp = objectives.build("prdp", beta=3.0, clip_range=OFF)
    in_pairs = slope_of_the_mean(prdp, x, MEAN, batch) * 3.0 / 4 * (COUNT - 1) / COUNT
    assert in_pairs == pytest.approx(policy_gradient, rel=1e-6)


def test_their_optimum_is_one() -> None:
    """Linear reward: pi_ref exp(r / beta) / Z is N(MEAN + WIDTH^2 slope / beta, WIDTH^2), for all
    three."""
    x = quantiles()
    batch, optimum = at_the_reference(x, SLOPE * x), MEAN + WIDTH**2 * SLOPE / BETA
    prdp = objectives.build("prdp", beta=BETA, clip_range=OFF)
    assert slope_of_the_mean(prdp, x, optimum, batch) == pytest.approx(0, abs=1e-9)
    rwr = objectives.build("rwr", beta=1 / BETA, per_prompt=False)
    assert slope_of_the_mean(rwr, x, optimum, batch) == pytest.approx(0, abs=0.02)
    at_optimum = x + optimum - MEAN  # on-policy samples there
    regularised = objectives.build("ddpo_sf", kl_weight=BETA)
    found = slope_of_the_mean(
        regularised, at_optimum, optimum, replace(batch, reward=SLOPE * at_optimum)
    )
    assert found == pytest.approx(0, abs=1e-9)
    for objective in (prdp, rwr):
        assert abs(slope_of_the_mean(objective, x, MEAN, batch)) > 1


# D3PO and DPO


def test_d3po_by_hand() -> None:
    """Two images, two steps, the second beyond the clip; at ratios of 1 every step pulls with
    beta / 2."""
    zero = torch.zeros(2, 2, dtype=torch.float64)
    batch = outcomes(random(2, 2), zero, torch.tensor([0.0, 1.0], dtype=torch.float64))
    d3po = objectives.build("d3po", beta=2.0, clip_range=0.1)
    logp = torch.tensor([[0.02, -0.3], [0.05, 0.4]], dtype=torch.float64)
    margins = [0.05 - 0.02, math.log(1.1) - math.log(0.9)]
    expected = sum(math.log1p(math.exp(-2 * m)) for m in margins) / 2
    assert d3po(logp, batch).item() == pytest.approx(expected)
    found = gradient(d3po, logp, batch)
    pull = 2 / (1 + math.exp(2 * margins[0])) / 2
    torch.testing.assert_close(
        found, torch.tensor([[pull, 0.0], [-pull, 0.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        gradient(d3po, zero, batch), torch.tensor([[0.5, 0.5], [-0.5, -0.5]]).double()
    )


def test_dpo_by_hand() -> None:
    errors = torch.tensor([[0.30, 0.10], [0.20, 0.25]], dtype=torch.float64)
    reference = torch.tensor([[0.28, 0.10], [0.25, 0.24]], dtype=torch.float64)
    batch = outcomes(errors, errors, torch.tensor([0.0, 1.0], dtype=torch.float64))
    dpo = objectives.build("dpo", beta=20.0)
    margins = [(0.20 - 0.25) - (0.30 - 0.28), (0.25 - 0.24) - 0.0]
    expected = sum(math.log1p(math.exp(20 * m)) for m in margins) / 2
    assert dpo(errors, batch.with_matrices(errors_ref=reference)).item() == pytest.approx(expected)
    at_reference = gradient(dpo, reference, batch.with_matrices(errors_ref=reference))
    torch.testing.assert_close(at_reference, torch.tensor([[-5.0, -5.0], [5.0, 5.0]]).double())


# What holds for several


@pytest.mark.parametrize("name", ["prdp", "p3o", "d3po", "dpo"])
def test_no_pair_is_no_gradient(name: str) -> None:
    """One image a prompt, as after NaN rewards: defined, and nothing to learn."""
    logp, batch = noisy(3, 4, 3)
    batch = batch.with_matrices(errors_ref=logp)
    loss = objectives.build(name)(leaf := logp.clone().requires_grad_(), batch)
    assert loss.item() == 0 and torch.autograd.grad(loss, leaf)[0].abs().max() == 0


@pytest.mark.parametrize("name", ["prdp", "p3o", "grpo"])
def test_a_shift_of_rewards_changes_nothing(name: str) -> None:
    """Each prompt's by another constant."""
    logp, batch = noisy()
    shifted = batch.reward + torch.tensor([5.0, -7.0]).double()[batch.group]
    found = []
    for reward in (batch.reward, shifted):
        advantage = advantages.build("group")(reward, [""] * 8, batch.group)
        given = replace(batch, reward=reward, advantage=advantage)
        found.append(gradient(objectives.build(name), logp, given))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpo", "grpo", "prdp", "d3po"])
def test_blocks(name: str) -> None:
    """Of 1 step: nothing changes. Of all steps: one ratio a trajectory. The last block may be
    shorter."""
    logp, batch = noisy(steps=5)
    one = objectives.build(name, block_size=1)
    torch.testing.assert_close(
        gradient(one, logp, batch), gradient(objectives.build(name), logp, batch), rtol=0, atol=0
    )
    batch = replace(batch, stochastic=torch.tensor([True, True, False, True, True]))
    for size, blocks in (
        (2, [[0, 1], [3, 4]]),
        (3, [[0, 1, 3], [4]]),
        (4, [[0, 1, 3, 4]]),
        (9, [[0, 1, 3, 4]]),
    ):
        found = objectives.build(name, block_size=size)
        assert not found.separable

        def add_up(matrix: Tensor, blocks: list[list[int]] = blocks) -> Tensor:
            return torch.stack([matrix[:, columns].sum(1) for columns in blocks], 1)

        matrices = {"logp_old": add_up(batch.logp_old), "logp_ref": add_up(batch.logp_ref)}
        every = torch.ones(len(blocks), dtype=torch.bool)
        by_hand = replace(batch, matrices=matrices, stochastic=every)
        expected = objectives.build(name)(add_up(logp), by_hand)
        assert found(logp, batch).item() == pytest.approx(expected.item())
        slopes = gradient(found, logp, batch)
        assert torch.equal(slopes[:, 0], slopes[:, 1]) and slopes[:, 2].abs().max() == 0


@pytest.mark.parametrize("switch", [{"kl_weight": 0.1}, {"block_size": 2}])
@pytest.mark.parametrize("name", ["rwr", "dpo"])
def test_denoising_errors_have_no_steps(name: str, switch: dict[str, float]) -> None:
    with pytest.raises(
        UserError, match=rf"objective\.{next(iter(switch))}: {name} works on denoising errors"
    ):
        objectives.build(name, **switch)


# DRaFT and its relatives


def test_draft_by_hand() -> None:
    """-r, or |r - target|, over samples and re-noisings; the KL beside it at its weight."""
    rewards = torch.tensor([[1.0, 3.0], [7.0, 5.0]], dtype=torch.float64)
    batch = outcomes(rewards, rewards, torch.zeros(2, dtype=torch.float64))
    kl = torch.tensor([[0.2, 0.4], [0.1, 0.1]], dtype=torch.float64)
    batch = replace(batch, matrices={"kl": kl}, stochastic=torch.ones(2, dtype=torch.bool))
    draft = objectives.build("draft")
    assert draft(rewards, batch).item() == pytest.approx(-4)
    assert gradient(draft, rewards, batch).tolist() == [[-0.25, -0.25]] * 2
    aimed = objectives.build("draft", target=4.0)
    assert aimed(rewards, batch).item() == pytest.approx((3 + 1 + 3 + 1) / 4)
    assert gradient(aimed, rewards, batch).tolist() == [[-0.25, -0.25], [0.25, 0.25]]
    weighted = objectives.build("draft", kl_weight=10.0)
    assert weighted(rewards, batch).item() == pytest.approx(-4 + 10 * 0.2)
    assert draft.needs == () and weighted.needs == ("kl",) and weighted.separable


@pytest.mark.parametrize(
    ("options", "replay"),
    [
        ({"last_steps": 3}, Replay((3, 3))),
        ({"renoisings": 2}, Replay((1, 1), 2)),
        ({"last_steps": (1, 8)}, Replay((1, 8))),
        ({"last_steps": (1, 10), "to_x0": True}, Replay((1, 10), to_x0=True)),
    ],
)
def test_four_methods_are_one_replay(options: dict[str, Any], replay: Replay) -> None:
    """DRaFT-K, DRaFT-LV, AlignProp, ReFL; all others replay nothing."""
    assert objectives.build("draft", **options).pathwise == replay
    assert objectives.build("ddpo").pathwise is objectives.build("dpo").pathwise is None


def test_truncation_is_drawn_uniformly_once_a_pass() -> None:
    """AlignProp's K: all of [2, 5], a quarter of the passes each, and the same again."""
    replay = Replay((2, 5))
    drawn = [replay.count(0, iteration, 0) for iteration in range(400)]
    assert {k: drawn.count(k) for k in range(2, 6)} == pytest.approx(
        dict.fromkeys(range(2, 6), 100), abs=30
    )
    assert drawn == [replay.count(0, iteration, 0) for iteration in range(400)]
    assert drawn[:20] != [replay.count(0, iteration, 1) for iteration in range(20)]
    assert {Replay((3, 3)).count(0, i, 0) for i in range(20)} == {3}


@pytest.mark.parametrize("steps", [0, (0, 2), (3, 2)])
def test_a_replay_of_no_steps_is_refused(steps: Any) -> None:
    with pytest.raises(UserError, match=r"objective\.last_steps: \[\d, \d\] is no range"):
        _ = objectives.build("draft", last_steps=steps).pathwise


@pytest.mark.parametrize("name", ["draft"])
def test_rewards_have_no_ratios(name: str) -> None:
    with pytest.raises(UserError, match=rf"objective\.block_size: {name} works on rewards"):
        objectives.build(name, block_size=2)

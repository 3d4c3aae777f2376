"""Objectives: DDPO by hand in every clipping case, and what every objective that is found must hold
to."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpo import objectives, plugins
from ddpo.errors import UserError
from ddpo.objectives import Batch, Objective

EVERY = plugins.names("objectives")
ON_ERRORS = [name for name in EVERY if objectives.build(name).denoising_errors]
PATHWISE = [name for name in EVERY if objectives.build(name).pathwise]
"""Each image follows its own gradient, whatever the others' rewards are: see test_papers."""
FITS_ITS_OWN = ("rwr",)
"""Equal rewards mean equal weights: plain fine-tuning on one's own images, which is not nothing."""
PRODUCTS = ("nft",)
"""Moves by products of residuals together, which test_nft does; here its errors move alone."""


def batch(
    logp_old: Tensor, advantage: Tensor, stochastic: list[bool] | None = None, groups: int = 2
) -> Batch:
    reward = 3 * advantage + 1
    group = torch.arange(len(advantage)) // max(len(advantage) // groups, 1)
    matrices = {
        "logp_old": logp_old,
        "logp_ref": logp_old - 0.01,
        "kl": torch.full_like(logp_old, 0.02),
        "errors_ref": logp_old + 0.01,
        "cross_ref": logp_old + 0.02,
        "errors_old": logp_old,
        "cross_old": logp_old,
        "absolute_plus": torch.full_like(logp_old, 0.8),
        "absolute_minus": torch.full_like(logp_old, 0.8),
        "x0_scale": torch.full_like(logp_old, 0.5),
    }
    return Batch(
        advantage=advantage,
        reward=reward,
        group=group,
        present=torch.ones(len(reward), dtype=torch.bool),
        stochastic=torch.tensor(stochastic or [True] * logp_old.shape[1]),
        matrices=matrices,
        all_reward=reward,
        all_group=group,
    )


def plain(name: str) -> Objective:
    """With the defaults, but without the pull to the pretrained model that some have by default."""
    objective = objectives.build(name)
    pulls = {"kl_coef", "reference_weight"} & objective.options.keys()
    return objectives.build(name, **dict.fromkeys(pulls, 0.0))


def random_batch(rows: int = 8, steps: int = 5, spread: float = 0.01) -> tuple[Tensor, Batch]:
    """Log-probabilities near the old ones, and advantages of both signs."""
    noise = torch.Generator().manual_seed(0)
    old = torch.randn(rows, steps, generator=noise, dtype=torch.float64)
    logp = old + spread * torch.randn(rows, steps, generator=noise, dtype=torch.float64)
    advantage = torch.randn(rows, generator=noise, dtype=torch.float64)
    return logp, batch(old, advantage - advantage.mean())


def loss_and_gradient(objective: Objective, logp: Tensor, given: Batch) -> tuple[float, Tensor]:
    leaf = logp.clone().requires_grad_()
    loss = objective(leaf, given)
    assert loss.shape == ()
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


CASES = [
    # advantage, ratio, loss, d loss / d log-ratio, with a clip range of 0.1: only what would
    # overshoot is cut
    (2.0, 1.05, -2.1, -2.1),  # inside
    (2.0, 0.95, -1.9, -1.9),
    (2.0, 1.3, -2.2, 0.0),  # better than it was and already far enough: flat at -A (1 + eps)
    (2.0, 0.5, -1.0, -1.0),  # worse than it was: pulled back, however far
    (-2.0, 1.05, 2.1, 2.1),
    (-2.0, 0.95, 1.9, 1.9),
    (-2.0, 0.5, 1.8, 0.0),  # flat at -A (1 - eps)
    (-2.0, 1.3, 2.6, 2.6),
    (0.0, 1.3, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "loss", "slope"), CASES)
def test_ddpo_by_hand(advantage: float, ratio: float, loss: float, slope: float) -> None:
    ddpo = objectives.build("ddpo", clip_range=0.1)
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    found = loss_and_gradient(
        ddpo, old + math.log(ratio), batch(old, torch.tensor([advantage], dtype=torch.float64))
    )
    assert found[0] == pytest.approx(loss) and found[1].item() == pytest.approx(slope)


def test_ddpo_is_the_mean_over_samples_and_stochastic_steps() -> None:
    """All nine cases at once, each on one of two steps; a third step without density holds
    nonsense."""
    advantage = torch.tensor([case[0] for case in CASES], dtype=torch.float64)
    ratio = torch.tensor([[case[1], 1.0] for case in CASES], dtype=torch.float64)
    old = torch.full((len(CASES), 3), -0.7, dtype=torch.float64)
    old[:, 2] = 0
    logp = old.clone()
    logp[:, :2] += ratio.log()
    logp[:, 2] = 5
    given = batch(old, advantage, [True, True, False])
    loss, gradient = loss_and_gradient(objectives.build("ddpo", clip_range=0.1), logp, given)
    pairs = 2 * len(CASES)
    assert loss == pytest.approx((sum(case[2] for case in CASES) - advantage.sum().item()) / pairs)
    assert gradient[:, 0].tolist() == pytest.approx([case[3] / pairs for case in CASES])
    assert gradient[:, 1].tolist() == pytest.approx((-advantage / pairs).tolist())
    assert gradient[:, 2].tolist() == [0.0] * len(CASES)


def test_ddpo_sf_by_hand() -> None:
    old = torch.zeros(2, 2, dtype=torch.float64)
    logp = torch.tensor([[-1.0, -3.0], [2.0, 4.0]], dtype=torch.float64)
    loss, gradient = loss_and_gradient(
        objectives.build("ddpo_sf"),
        logp,
        batch(old, torch.tensor([1.0, -2.0], dtype=torch.float64)),
    )
    assert loss == pytest.approx((4 + 12) / 4) and gradient.tolist() == [[-0.25, -0.25], [0.5, 0.5]]


def test_at_the_old_policy_is_and_sf_have_one_gradient() -> None:
    _, given = random_batch()
    at_old = given.logp_old
    one, other = (
        loss_and_gradient(objectives.build(name), at_old, given)[1] for name in ("ddpo", "ddpo_sf")
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        other, (-given.advantage[:, None] / 40).expand(8, 5), rtol=1e-12, atol=0
    )


def test_the_default_clip_range_is_the_papers() -> None:
    assert objectives.build("ddpo").options == {"clip_range": 1e-4}
    assert objectives.build("ddpo", clip_range=2e-3).options == {"clip_range": 2e-3}


def test_declarations() -> None:
    assert objectives.build("ddpo").separable and objectives.build("ddpo_sf").separable
    assert objectives.build("ddpo_sf").on_policy and not objectives.build("ddpo").on_policy


@pytest.mark.parametrize(
    "name", [n for n in EVERY if n not in (*FITS_ITS_OWN, *PRODUCTS, *PATHWISE)]
)
def test_equal_rewards_move_nothing(name: str) -> None:
    """Equal rewards mean advantages of 0 and no pair: no objective pulls anywhere."""
    logp, given = random_batch()
    nothing = torch.zeros_like(given.advantage)
    given = replace(given, advantage=nothing, reward=nothing, all_reward=nothing)
    gradient = loss_and_gradient(plain(name), logp, given)[1]
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("jump", [-50.0, 50.0])
def test_finite_far_from_the_old_policy(name: str, jump: float) -> None:
    logp, given = random_batch()
    loss, gradient = loss_and_gradient(objectives.build(name), logp.float() + jump, given)
    assert math.isfinite(loss) and gradient.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    logp, given = random_batch()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    loss, gradient = loss_and_gradient(objectives.build(name), logp, given)
    other_loss, other = loss_and_gradient(objectives.build(name), logp[order], given.rows(order))
    assert other_loss == pytest.approx(loss)
    torch.testing.assert_close(other, gradient[order])


@pytest.mark.parametrize("name", EVERY)
def test_steps_without_a_density_have_no_part(name: str) -> None:
    logp, given = random_batch()
    masked = replace(given, stochastic=torch.tensor([True, False, True, True, False]))
    loss, gradient = loss_and_gradient(objectives.build(name), logp, masked)
    assert gradient[:, [1, 4]].abs().max() == 0
    noise = logp.clone()
    noise[:, [1, 4]] = 123.0
    assert loss_and_gradient(objectives.build(name), noise, masked)[0] == loss


@pytest.mark.parametrize("name", [n for n in EVERY if n not in (*PRODUCTS, *PATHWISE)])
def test_better_samples_become_more_likely(name: str) -> None:
    """At the old policy: every step of a group's best sample goes up beside its worst; errors go
    down."""
    _, given = random_batch()
    gradient = loss_and_gradient(objectives.build(name), given.logp_old, given)[1]
    up = gradient if name in ON_ERRORS else -gradient
    for group in (0, 1):
        rows = (given.group == group).nonzero().flatten()
        best, worst = rows[given.reward[rows].argmax()], rows[given.reward[rows].argmin()]
        assert (up[best] > up[worst]).all()


@pytest.mark.parametrize("name", [name for name in EVERY if objectives.build(name).separable])
def test_what_is_declared_separable_is(name: str) -> None:
    """No pair sees another (second derivatives across pairs are 0), and chunks add up by their
    sizes."""
    objective = objectives.build(name)
    logp, given = random_batch(4, 3)
    hessian = torch.autograd.functional.hessian(
        lambda flat: objective(flat.view(4, 3), given), logp.flatten()
    )
    assert isinstance(hessian, Tensor)
    assert (hessian - hessian.diag().diag()).abs().max() == 0
    rows, columns = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T
    total, chunked = 0.0, torch.zeros(4, 3, dtype=torch.float64)
    for chosen in torch.randperm(12, generator=torch.Generator().manual_seed(1)).split(5):
        place = rows[chosen], columns[chosen]
        loss, gradient = loss_and_gradient(objective, logp[place][:, None], given.pairs(*place))
        total += loss * len(chosen) / 12
        chunked[place] = gradient[:, 0] * len(chosen) / 12
    loss, whole = loss_and_gradient(objective, logp, given)
    assert total == pytest.approx(loss)
    torch.testing.assert_close(chunked, whole)


@settings(deadline=None)
@given(st.permutations(range(8)), st.integers(1, 8))
def test_rows_of_a_batch(order: list[int], count: int) -> None:
    _, given = random_batch()
    rows = torch.tensor(order[:count])
    chosen = given.rows(rows)
    for name in ("logp_old", "advantage", "reward", "group", "logp_ref"):
        assert torch.equal(getattr(chosen, name), getattr(given, name)[rows])
    assert torch.equal(chosen.stochastic, given.stochastic)


def test_pairs_of_a_batch_keep_their_own_steps_mark() -> None:
    """A chunk never mixes both kinds; the mark is that of the chosen steps, not of the first."""
    _, given = random_batch()
    given = replace(given, stochastic=torch.tensor([False, True, True, True, False]))
    chosen = given.pairs(torch.tensor([3, 0, 7]), torch.tensor([1, 3, 2]))
    assert chosen.stochastic.tolist() == [True]
    assert torch.equal(chosen.logp_old, given.logp_old[[3, 0, 7], [1, 3, 2]][:, None])
    assert torch.equal(chosen.advantage, given.advantage[[3, 0, 7]])


def reads(name: str) -> Callable[[Tensor, Batch], Tensor]:
    """An objective's function that reads one matrix, and declares nothing."""
    return lambda matrix, batch: batch.mean(matrix - batch.matrix(name))


@pytest.mark.parametrize(
    ("name", "denoising_errors", "message"),
    [
        (
            "logp_ref",
            False,
            r'reads batch\.logp_ref, .*; declare it: @declare\(needs=\("logp_ref",\)\)',
        ),
        ("kl", False, r'reads batch\.kl, .*; declare it: @declare\(needs=\("kl",\)\)'),
        (
            "errors_ref",
            True,
            r'reads batch\.errors_ref, .*; declare it: @declare\(needs=\("errors_ref",\)\)',
        ),
        (
            "logp_old",
            True,
            r"reads batch\.logp_old, which denoising errors do not have; .*errors_ref",
        ),
        (
            "errors_ref",
            False,
            r"reads batch\.errors_ref, .* do not have; there may be logp_ref, kl",
        ),
    ],
)
def test_a_missing_matrix_names_the_objective_and_the_remedy(
    name: str, denoising_errors: bool, message: str
) -> None:
    logp, given = random_batch()
    left = {key: matrix for key, matrix in given.matrices.items() if key != name}
    objective = Objective("own", reads(name), {}, denoising_errors=denoising_errors)
    assert objective(logp, given).isfinite()
    with pytest.raises(UserError, match=f"objective own {message}") as told:
        objective(logp, replace(given, matrices=left))
    assert "\n" not in str(told.value)
    report = Objective(
        "own", plain("ddpo_sf").function, {}, report=lambda batch: {"x": batch.kl.mean()}
    )
    with pytest.raises(UserError, match=r"objective own reads batch\.kl"):
        report.metrics(replace(given, matrices={}))


def test_a_batch_says_what_it_was_made_of() -> None:
    """Rows, pairs and blocks carry every matrix along, those of a plugin too, and `present`."""
    logp, given = random_batch()
    given = replace(given.with_matrices(own=logp), present=torch.arange(8) % 2 == 0)
    rows, columns = torch.tensor([3, 0]), torch.tensor([1, 4])
    assert given.rows(rows).present.tolist() == [False, True]
    assert torch.equal(given.rows(rows).matrix("own"), logp[rows])
    assert torch.equal(given.pairs(rows, columns).matrix("own"), logp[rows, columns][:, None])
    blocks, batch = given.blocks(logp, 5)
    torch.testing.assert_close(batch.matrix("own"), blocks)
    torch.testing.assert_close(blocks[:, 0], logp.sum(1))


BOUNDS = {"ddpo": 1e-4, "grpo": 1e-4, "dpok": 1e-4, "p3o": 1e-4, "prdp": 1e-6, "d3po": 0.1}


@pytest.mark.parametrize("name", EVERY)
def test_the_trust_region_is_declared(name: str) -> None:
    """The ratio gate and clip_frac go by it; an option is none by its name alone."""
    assert objectives.build(name).ratio_bound == BOUNDS.get(name)
    if name in BOUNDS:
        assert objectives.build(name, clip_range=0.25).ratio_bound == 0.25
    undeclared = Objective("own", objectives.build("ddpo").function, {"clip_range": 0.1})
    assert undeclared.ratio_bound is None


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (
            'trust_region="clip_rang"',
            "own.py declares trust_region='clip_rang', .*; did you mean clip_range?",
        ),
        (
            'needs=("logp_reff",)',
            "own.py needs 'logp_reff', .* log-probabilities; did you mean logp_ref?",
        ),
        (
            'needs=("kl",), denoising_errors=True',
            "own.py needs 'kl', .* denoising errors; known: .*errors_ref",
        ),
        (
            'needs=("logp_ref",), replay=lambda clip_range: Replay()',
            "own.py needs 'logp_ref', .* rewards; known: kl",
        ),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(
    declaration: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        f"from ddpo.objectives import Replay, declare\n\n@declare({declaration})\n"
        "def own(logp, batch, *, clip_range: float = 0.1):\n    return batch.mean(logp)\n"
    )
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        objectives.build(f"{tmp_path / 'own.py'}")


DROPPED_IN = '''
def quadratic(logp, batch, *, target: float = 1.0):
    """A loss of one's own."""
    return ((logp - batch.logp_old - target) ** 2).mean()
'''


@pytest.fixture
def dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin folder with one objective."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "quadratic.py").write_text(DROPPED_IN)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    yield tmp_path


def test_an_objective_in_a_plugin_folder_is_found(dropped_in: Path) -> None:
    assert "quadratic" in plugins.names("objectives")
    found = objectives.build("quadratic", target=2.0)
    assert found.options == {"target": 2.0} and not found.separable and found.needs == ()
    logp, given = random_batch(spread=0)
    assert found(logp, given).item() == pytest.approx(4)


def test_an_unknown_objective_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean ddpo"):
        objectives.build("ddpoo")

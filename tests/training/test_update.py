"""The gradient is that of the objective over all pairs, however it is cut up, on one process or
two."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import helpers
import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from ddpo import objectives, train
from ddpo.commands import frame
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.objectives import Objective
from ddpo.parallel.sizes import Sizes
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
from ddpo.training.gates import first_pass_deviation
from ddpo.training.measures import Measured
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass, clip_gradients

COUNT = 6
SAMPLES = [5, 0, 2, 3]
OBJECTIVES = {
    "ddpo": objectives.build("ddpo"),
    "ddpo_sf": objectives.build("ddpo_sf"),
    "prdp": objectives.build("prdp", beta=0.1, clip_range=2e-3),
}
FURTHER = {
    "prdp, ties, sums": objectives.build(
        "prdp", beta=3.0, clip_range=1.0, keep_ties=True, sum_steps=True
    ),
    "p3o": objectives.build("p3o", clip_range=2e-3),
    "p3o, separate": objectives.build("p3o", clip_range=2e-3, joint=False),
    "grpo, kl": objectives.build("grpo", clip_range=2e-3, kl_weight=30.0),
    "dpok": objectives.build("dpok", clip_range=2e-3, kl_coef=3000.0),
    "d3po": objectives.build("d3po"),
    "ddpo, blocks, kl": objectives.build("ddpo", clip_range=2e-3, block_size=2, kl_weight=30.0),
    "prdp, kl": objectives.build("prdp", beta=0.1, clip_range=2e-3, kl_weight=3000.0),
    "rwr": objectives.build("rwr", beta=1.0),
    "rwr, sparse": objectives.build("rwr", percentile=0.6, per_prompt=False),
    "dpo": objectives.build("dpo"),
}
"""Options at which clips act on some pairs and every term has a part in the gradient."""


@pytest.fixture(scope="module")
def rolled() -> Iterator[tuple[StableDiffusion, Sampler, Trajectory]]:
    """The last step has no density, and the policy has moved since: ratios are not 1."""
    policy = helpers.policy(moved=0.2)
    scheduler = policy.pipeline.scheduler
    policy.pipeline.scheduler = type(scheduler).from_config(scheduler.config, set_alpha_to_one=True)
    sampler = helpers.sampler(policy, steps=4)
    assert sampler.steps.stochastic.tolist() == [True] * 3 + [False]
    trajectory, _ = helpers.rolled(policy, sampler, COUNT, reference=True)
    helpers.move(policy, 0.02)
    yield policy, sampler, trajectory


@pytest.fixture
def precise(
    rolled: tuple[StableDiffusion, Sampler, Trajectory],
) -> Iterator[tuple[StableDiffusion, Sampler, Trajectory]]:
    """Its network in double precision: what is left of a difference is no rounding."""
    with helpers.in_double(rolled[0].unet):
        yield rolled


def work(
    rolled: tuple[StableDiffusion, Sampler, Trajectory], objective: Objective, micro_batch: int = 4
) -> Pass:
    policy, sampler, trajectory = rolled
    return helpers.work_on(policy, trajectory, sampler, objective, micro_batch)


def autograd(given: Pass, samples: Sequence[int]) -> tuple[float, Tensor]:
    """All log-probabilities in one graph, then the objective: what streaming must equal."""
    parameters = list(given.terms.policy.parameters().values())
    steps = torch.tensor(given.terms.columns(given.batch))
    rows, columns = torch.cartesian_prod(torch.tensor(list(samples)), steps).T
    shape = len(given.batch.reward), len(given.batch.stochastic)
    found = {
        name: torch.zeros(shape, dtype=values.dtype).index_put((rows, columns), values)
        for name, values in given.terms(rows, columns).items()
    }
    chosen = torch.tensor(list(samples))
    argument = found.pop(given.terms.argument)
    batch = given.batch.with_matrices(**found).rows(chosen)
    loss = given.objective(argument[chosen], batch)
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize(
    ("name", "micro_batch"),
    [
        *((name, size) for name in OBJECTIVES for size in (1, 3, 16, 40)),
        *((name, 5) for name in FURTHER),
    ],
)
def test_streamed_is_full_autograd(
    precise: tuple[StableDiffusion, Sampler, Trajectory], name: str, micro_batch: int
) -> None:
    """Clips active, the last step without density; of pairs, some samples have lost their
    partner."""
    samples = range(COUNT) if name in FURTHER else SAMPLES
    given = work(precise, {**OBJECTIVES, **FURTHER}[name], micro_batch)
    loss, expected = autograd(given, samples)
    found = helpers.gradient(given, samples)
    assert expected.norm() > 0 and helpers.difference(found, expected) < 1e-12
    for parameter in given.terms.policy.parameters().values():
        parameter.grad = None
    assert given.backward(samples) == pytest.approx(loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in FURTHER if FURTHER[name].denoising_errors is False]
)
def test_every_part_of_an_objective_matters_here(
    rolled: tuple[StableDiffusion, Sampler, Trajectory], name: str
) -> None:
    """Without its clip, or its KL, the gradient would be another: what is streamed above is all of
    it."""
    objective = FURTHER[name]
    options = {**objective.options}
    switches = {"kl_weight": objective.kl_weight, "block_size": objective.block_size}
    here = helpers.gradient(work(rolled, objective), range(COUNT)).clone()
    if "kl" in objective.needs:
        changed = {"kl_coef": 0.0} if "kl_coef" in options else {}
        without = objectives.build(
            objective.name, **{**options, **changed, **switches, "kl_weight": 0.0}
        )
        assert (
            helpers.difference(helpers.gradient(work(rolled, without), range(COUNT)), here) > 1e-3
        )
    if options["clip_range"] < 0.1:
        without = objectives.build(objective.name, **{**options, **switches, "clip_range": 1e9})
        assert (
            helpers.difference(helpers.gradient(work(rolled, without), range(COUNT)), here) > 1e-3
        )


def test_before_any_update_a_coupled_objective_takes_the_recorded_matrix(
    rolled: tuple[StableDiffusion, Sampler, Trajectory],
) -> None:
    """One network call fewer a pair; the gradient is that of the matrix computed again."""
    policy = helpers.policy(moved=0.2)
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, COUNT, reference=True)
    calls: list[bool] = []
    policy.unet.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = []
    for moved in (True, False):
        given = helpers.work_on(
            policy, replace(trajectory, output_ref=None), sampler, OBJECTIVES["prdp"], 4
        )
        given.moved = moved
        calls.clear()
        found.append(helpers.gradient(given, range(COUNT)).clone())
        assert calls.count(False) == (6 if moved else 0) and calls.count(True) == 6
        assert given.measured.result()["ratio/max_dev"] < 1e-6
    assert helpers.difference(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("block_size", [1, 2])
def test_samples_without_an_advantage_are_left_out(
    rolled: tuple[StableDiffusion, Sampler, Trajectory], block_size: int
) -> None:
    """Fewer calls of the network; the gradient and the loss are those of all samples together."""
    objective = objectives.build("grpo", clip_range=2e-3, block_size=block_size)
    given = work(rolled, objective, micro_batch=3)
    given.batch.advantage[[0, 2, 5]] = 0.0
    calls: list[bool] = []
    hook = rolled[0].unet.register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    found, losses = [], []
    for follows in (False, True):
        given.objective = replace(objective, follows_advantage=follows)
        calls.clear()
        found.append(helpers.gradient(given, range(COUNT)).clone())
        assert calls.count(True) == (3 if follows else 6)  # 3 columns: a sample per call
        losses.append(given.backward(range(COUNT)))
    hook.remove()
    assert found[0].norm() > 0 and helpers.difference(found[1], found[0]) < 1e-6
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_what_an_advantage_of_0_leaves_out() -> None:
    """A KL has a gradient of its own, and so have rewards that are compared by themselves."""
    built = {name: objectives.build(name) for name in ("ddpo", "ddpo_sf", "grpo", "prdp", "dpok")}
    assert [name for name, each in built.items() if each.follows_advantage] == [
        *("ddpo", "ddpo_sf", "grpo")
    ]
    assert not objectives.build("grpo", kl_weight=0.1).follows_advantage


def test_an_objective_that_declares_nothing_is_streamed_alike(
    rolled: tuple[StableDiffusion, Sampler, Trajectory],
) -> None:
    separable = objectives.build("ddpo", clip_range=1e-3)
    coupled = Objective("ddpo", separable.function, separable.options)
    one, other = (helpers.gradient(work(rolled, each), SAMPLES) for each in (separable, coupled))
    assert helpers.difference(other, one) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_samplers_chunks_do_not_change_the_gradient(batch_size: int) -> None:
    """From rollout to gradient, with chunks of `batch_size` against all in one."""
    found = []
    for size in (6, batch_size):
        policy = helpers.policy(moved=0.2)
        sampler = helpers.sampler(policy, batch_size=size)
        trajectory, _ = helpers.rolled(policy, sampler, COUNT)
        found.append(
            helpers.gradient(
                work((policy, sampler, trajectory), OBJECTIVES["ddpo_sf"]), range(COUNT)
            )
        )
    assert helpers.difference(found[1], found[0]) < 1e-4


def test_minibatches_add_up_to_the_whole(
    rolled: tuple[StableDiffusion, Sampler, Trajectory],
) -> None:
    """Each of 2 and 4 samples is the mean over its own: weighted by their sizes they give the
    whole's."""
    given = work(rolled, OBJECTIVES["ddpo_sf"])
    parts = [
        helpers.gradient(given, samples).clone() for samples in ([0, 1], [2, 3, 4, 5], range(COUNT))
    ]
    assert helpers.difference((2 * parts[0] + 4 * parts[1]) / 6, parts[2]) < 1e-5


@pytest.mark.parametrize("name", ["ddpo", "ddpo_sf"])
def test_two_ranks_add_up(rolled: tuple[StableDiffusion, Sampler, Trajectory], name: str) -> None:
    """Rank by rank in one process: uneven parts, one of them without a sample of the minibatch.

    A coupled objective needs the other ranks' log-probabilities: see the two processes below.
    """
    policy, sampler, trajectory = rolled
    whole = helpers.gradient(work(rolled, OBJECTIVES[name]), SAMPLES).clone()
    total = torch.zeros_like(whole)
    for part in ([0, 1, 2, 3], [4], [5]):
        own = Trajectory(
            part,
            [trajectory.prompts[i] for i in part],
            trajectory.latents[part],
            trajectory.logp_old[part],
            trajectory.images,
        )
        full = work(rolled, OBJECTIVES[name])
        terms = LogProbs(policy, sampler, own)
        given = Pass(terms, full.batch, full.objective, 4, Measured(None))
        total += helpers.gradient(given, SAMPLES)
    assert helpers.difference(total, whole) < 1e-5


def test_what_is_measured(rolled: tuple[StableDiffusion, Sampler, Trajectory]) -> None:
    """Ratios of all genuine pairs, from the network's outputs; the padding is not counted."""
    for objective in (OBJECTIVES["ddpo"], OBJECTIVES["prdp"]):
        given = work(rolled, objective, 5)
        given.measured = Measured(1e-3)
        with torch.no_grad():
            rows, columns = torch.cartesian_prod(torch.tensor(SAMPLES), torch.arange(3)).T
            logp = given.terms(rows, columns)["logp"]
        change = logp - given.batch.logp_old[rows, columns]
        given.backward(SAMPLES)
        found = given.measured.result()
        assert found["ratio/mean"] == pytest.approx(change.exp().mean().item(), rel=1e-6)
        assert found["ratio/max_dev"] == pytest.approx(
            (change.exp() - 1).abs().max().item(), rel=1e-3
        )
        assert found["clip_frac"] == ((change.exp() - 1).abs() > 1e-3).double().mean().item()
        assert 0 < found["clip_frac"] < 1
        assert found["approx_kl"] == pytest.approx(0.5 * change.square().mean().item(), rel=1e-3)
    assert all(math.isnan(value) for value in Measured(None).result().values())


def test_the_gate_sees_every_step(rolled: tuple[StableDiffusion, Sampler, Trajectory]) -> None:
    """A record that is wrong at any one stochastic step is found; at a step without density it is
    nothing."""
    policy = helpers.policy(moved=0.2)
    sampler = helpers.sampler(policy, steps=4)
    trajectory, _ = helpers.rolled(policy, sampler, COUNT)
    given = work((policy, sampler, trajectory), OBJECTIVES["ddpo"], 3)
    assert first_pass_deviation(given) < 1e-6
    for step in range(4):
        right = given.batch.logp_old.clone()
        given.batch.logp_old[:, step] -= 1e-3
        assert first_pass_deviation(given) == pytest.approx(1e-3, rel=1e-2)
        given.batch.logp_old.copy_(right)


def test_clip_gradients_by_hand() -> None:
    one, other, idle = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([one, other, idle], 1.0) == pytest.approx(5)
    assert [p.grad.item() for p in (one, other, idle) if p.grad is not None] == pytest.approx(
        [0.6, 0.8, 0], abs=1e-5
    )
    assert clip_gradients([one, other, idle], 2.0) == pytest.approx(1)
    assert one.grad.item() == pytest.approx(0.6, abs=1e-5), "a small gradient is left alone"


@pytest.mark.parametrize("scale", [2.0**16, 0.25])
def test_the_limit_is_of_the_gradient_without_the_loss_scale(scale: float) -> None:
    one, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    for limit, expected in ((1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])):
        one.grad, other.grad = torch.tensor([3.0 * scale]), torch.tensor([4.0 * scale])
        assert clip_gradients([one, other], limit, scale) == pytest.approx(5), (
            "the norm that is told"
        )
        assert [one.grad.item(), other.grad.item()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [1e-7, 3e-5, 1e3])
def test_what_half_precision_carries_has_one_size(beta: float) -> None:
    """fp16 ends at 65,504: what is streamed of PRDP must not grow with 1 / beta, and the gradient
    must."""
    policy = helpers.policy(moved=0.2, dtype="bf16")
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, COUNT, reference=True)
    prdp = objectives.build("prdp", beta=beta, clip_range=1.0)
    given = helpers.work_on(policy, replace(trajectory, output_ref=None), sampler, prdp, 5)
    carried: list[float] = []

    def watch(module: Module, given: object, output: tuple[Tensor]) -> None:
        if output[0].requires_grad:
            output[0].register_hook(lambda found: carried.append(found.abs().max().item()))

    policy.unet.register_forward_hook(watch)
    given.backward(SAMPLES)
    clip_gradients(list(policy.parameters().values()), 1e30, given.loss_scale)
    assert 1e-3 < max(carried) < 1e4
    _, expected = autograd(given, SAMPLES)
    assert helpers.difference(helpers.flat_gradient(policy), expected) < 0.02


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_streams_the_same_gradient(name: str) -> None:
    """Less what the loss was scaled by; to the rounding of bf16, whose chunks differ in shape."""
    policy = helpers.policy(moved=0.2, dtype="bf16")
    sampler = helpers.sampler(policy)
    trajectory, _ = helpers.rolled(policy, sampler, COUNT, reference=True)
    given = helpers.work_on(policy, trajectory, sampler, OBJECTIVES[name], 5)
    _, expected = autograd(given, SAMPLES)
    given.backward(SAMPLES)
    norm = clip_gradients(list(policy.parameters().values()), 1e9, given.loss_scale)
    assert norm == pytest.approx(expected.norm().item(), rel=0.02)
    assert helpers.difference(helpers.flat_gradient(policy), expected) < 0.02


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
def test_minibatches_hold_every_group_once(count: int, size: int, seed: int) -> None:
    groups = count * size
    sizes = Sizes(groups, 1, minibatches=count)
    dealt = sizes.deal(torch.Generator().manual_seed(seed))
    assert sorted(group for part in dealt for group in part) == list(range(groups))
    assert [len(part) for part in dealt] == [size] * count
    assert dealt == sizes.deal(torch.Generator().manual_seed(seed))
    for block in range(size):
        own = range(block * count, (block + 1) * count)
        assert all(len(set(part) & set(own)) == 1 for part in dealt), (
            "one of each block: even over ranks"
        )


def test_minibatches_differ_from_pass_to_pass() -> None:
    assert (
        len(
            {
                str(Sizes(8, 1, minibatches=4).deal(torch.Generator().manual_seed(seed)))
                for seed in range(20)
            }
        )
        > 10
    )


PLUGIN = """
from ddpo.objectives import declare

@declare(needs=("logp_ref",))
def coupled(logp, batch):
    score = (logp - batch.logp_ref)[:, batch.stochastic].sum(1)
    error = (score[:, None] - score) - (batch.reward[:, None] - batch.reward)
    return error.square().mean()
"""

DRAFT = ["draft", "--objective.last_steps", "2", "--objective.kl_weight", "0.1"]
TWICE = (
    f"""
import sys
from ddpo.__main__ import main
from ddpo.parallel import ranks
DRAFT = {DRAFT}
"""
    + """
folder, argv = sys.argv[1], sys.argv[2:]
for name, *flags in (["ddpo"], ["coupled"], DRAFT):
    argv_ = [*argv, "--objective.name", name, *flags]
    code = main(["train", *argv_, "--run_dir", f"{folder}/{name}"])
    assert code == 0, code
few = ["--trainer.prompts_per_iteration", "1", "--trainer.minibatches", "1"]
assert main(["train", *argv, *few, "--run_dir", f"{folder}/few"]) == 2
ranks.leave(0)
"""
)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_weights(run: Path) -> dict[str, Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "parameters.safetensors")


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Three prompts, three optimizer steps an iteration: in each, one of the two ranks has nothing
    to do."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "coupled.py").write_text(PLUGIN)
    reward = helpers.reward_file(tmp_path / "rewards")
    argv = helpers.smoke(
        tmp_path,
        "--trainer.prompts_per_iteration",
        "3",
        "--trainer.minibatches",
        "3",
        "--seed",
        "5",
        "--plugins",
        f"[{tmp_path}]",
        "--rewards",
        f"[{{name: '{reward}'}}]",
        "--advantage.name",
        "per_prompt",
        "--advantage.min_count",
        "1",
        "--trainer.micro_batch",
        "4",
        "--ema.decay",
        "0.5",
    )
    (tmp_path / "twice.py").write_text(TWICE)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "twice.py"), str(tmp_path / "two"), *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, "\n".join(
        line for line in done.stderr.splitlines() if "ddpo:" in line
    )
    assert "trainer.prompts_per_iteration: 1 leaves some of the 2 processes" in done.stderr
    assert not (tmp_path / "two" / "few").exists()
    assert PartialState().num_processes == 1
    for name, *flags in (["ddpo"], ["coupled"], DRAFT):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        own = ["--objective.name", name, *flags, "--run_dir", str(one)]
        assert frame.run(train.main, [*argv, *own]) == 0
        assert json.loads((two / "provenance.json").read_text())["num_processes"] == 2
        weights, others = last_weights(one), last_weights(two)
        changed = [key for key in weights if "lora_B" in key]
        expected = torch.cat([weights[key].flatten() for key in changed])
        found = torch.cat([others[key].flatten() for key in changed])
        assert expected.norm() > 0 and helpers.difference(found, expected) < 1e-4
        for row, other in zip(rows(one), rows(two), strict=True):
            assert row["images_seen"] == other["images_seen"] == 6 * row["iteration"]
            assert other["reward/mean"] == pytest.approx(row["reward/mean"], rel=1e-6)
            for key in (
                "reward/mean",
                "reward/std",
                "loss",
                "grad_norm",
                "ratio/mean",
                "guard/brightness",
                "kl_ref",
            ):
                if row[key] is not None:  # a pathwise objective has no ratio
                    assert other[key] == pytest.approx(row[key], rel=1e-3, abs=1e-6), key
                assert (
                    (row[key] is None)
                    == (other[key] is None)
                    == (key == "ratio/mean" and name == "draft")
                )

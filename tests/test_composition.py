"""Several rewards as one: per-reward comparison, gates, groups, win rates, missing values. By
hand."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from helpers import call, done, saved
from PIL import Image
from torch import Tensor

from ddpo import advantages, objectives, rewards
from ddpo.__main__ import main
from ddpo.commands import frame, score
from ddpo.errors import Stopped, UserError
from ddpo.evaluation import evidence, matched
from ddpo.images import from_pil
from ddpo.objectives import Batch
from ddpo.objectives.rwr import weights
from ddpo.parallel import ranks
from ddpo.prompts import Prompt, PromptSet
from ddpo.records import metrics
from ddpo.rewards import Reward
from ddpo.scoring import conformance
from ddpo.scoring.scorer import Scorer
from ddpo.training.credit import Mixture

Rows = Sequence[Mapping[str, Any]]
NAN = float("nan")


def level(images: Tensor, *rest: object) -> Tensor:
    return images.mean((1, 2, 3))


def relative(images: Tensor, prompts: Sequence[str], metadata: Rows) -> Tensor:
    """Brightness above the group's mean."""
    assert len(set(prompts)) == 1
    return level(images) - images.mean()


relative.groupwise = True


def outcome(
    columns: dict[str, list[float]], judges: list[Reward], **changes: Any
) -> tuple[Batch, Any]:
    """Of one iteration in which each of the four groups got these values."""
    trainer = helpers.make_trainer(helpers.policy(), rewards=judges, **changes)
    prompts = trainer.draw()
    trajectory, *_ = trainer.rollout(prompts) if not hasattr(outcome, "rolled") else outcome.rolled
    outcome.rolled = (trajectory,)
    values = {
        name: torch.tensor(column).repeat(16 // len(column)) for name, column in columns.items()
    }
    return trainer.outcome(prompts, trajectory, values)


def judge(name: str, weight: float = 1.0, **gate: float) -> Reward:
    return Reward(name, weight, level, **gate)


A, B = [0.0, 0, 2, 2], [10.0, 30, 10, 30]
BATCH = partial(advantages.build, "batch")
TWO = [judge("a", 2.0), judge("b", -0.5)]


def test_each_reward_compared_by_itself_or_their_sum() -> None:
    """a: mean 1, std 1; b: mean 20, std 10. The sum 2 a - b / 2 is (-5, -15, -1, -11): mean -8, std
    5.385."""
    batch, row = outcome({"a": A, "b": B}, TWO, per_reward=True)
    expected = torch.tensor([-2 + 0.5, -2 - 0.5, 2 + 0.5, 2 - 0.5], dtype=torch.float64)
    torch.testing.assert_close(batch.advantage[:4], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.reward, batch.advantage)
    assert row["reward/mean"] == -8 and row["reward/a"] == 1 and row["reward/b"] == 20
    assert row["reward/std"] == pytest.approx(29**0.5)
    batch, row = outcome({"a": A, "b": B}, TWO)
    expected = torch.tensor([3.0, -7, 7, -3], dtype=torch.float64) / 29**0.5
    torch.testing.assert_close(batch.advantage[:4], expected, atol=1e-5, rtol=0)
    assert batch.reward[:4].tolist() == [-5, -15, -1, -11] and row["reward/mean"] == -8


def test_statistics_of_each_reward_are_its_own_and_survive_a_resume() -> None:
    make = partial(advantages.build, "per_prompt", min_count=2)
    own, group = Mixture(TWO, make, per_reward=True), torch.zeros(4, dtype=torch.long)
    prompts = helpers.as_prompts(["x"] * 4)
    first, _ = own.credit({"a": torch.tensor(A), "b": torch.tensor(B)}, prompts, group)
    expected = torch.tensor([-1.5, -2.5, 2.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(first.advantage, expected, atol=1e-5, rtol=0)
    assert own.state() == {"a": {"x": A}, "b": {"x": [-value for value in B]}}
    resumed = Mixture(TWO, make, per_reward=True)
    resumed.restore(own.state())
    later = {"a": torch.tensor([4.0]), "b": torch.tensor([20.0])}
    # a: 0 0 2 2 4 has mean 1.6 and std 1.4967; b: its mean
    for mixture in (own, resumed):
        credit, _ = mixture.credit(later, helpers.as_prompts(["x"]), group[:1])
        assert credit.advantage.item() == pytest.approx(2 * 2.4 / 2.24**0.5, rel=1e-5)


GATED = {"a": [1.0, 2, 9, 3], "light": [0.5, 0.2, 0.95, 0.9]}
JUDGES = [judge("a"), judge("light", 0.0, min=0.2, max=0.9)]


def test_a_gated_sample_is_the_worst_of_its_group() -> None:
    """Rewards 1, 2, 9 (too bright), 3 compare as 1, 2, 1, 3: mean 1.75, variance 0.6875."""
    batch, row = outcome(GATED, JUDGES)
    expected = torch.tensor([-0.75, 0.25, -0.75, 1.25], dtype=torch.float64) / 0.6875**0.5
    torch.testing.assert_close(batch.advantage[:4], expected, atol=1e-5, rtol=0)
    assert batch.reward[:4].tolist() == batch.all_reward[:4].tolist() == [1, 2, 1, 3]
    assert row["reward/gated"] == row["gated/light"] == 0.25 and "gated/a" not in row
    assert row["reward/mean"] == 3.75 and row["reward/a"] == 3.75, (
        "what is logged is what was scored"
    )
    best, _ = outcome(GATED, JUDGES, keep_extremes=1)
    assert best.present[:4].tolist() == [True, False, False, True]


def test_a_gate_and_each_reward_by_itself() -> None:
    """The third is gated: 2 A(0, 0, 0, 2) + A(-10, -30, -30, -30) / 2, with std 0.75^0.5 and
    75^0.5."""
    judges = [*TWO, judge("light", 0.0, max=0.9)]
    batch, _ = outcome({"a": A, "b": B, "light": GATED["light"]}, judges, per_reward=True)
    a, b = torch.tensor([-0.5, -0.5, -0.5, 1.5]), torch.tensor([15.0, -5, -5, -5])
    expected = (2 * a / 0.75**0.5 + b / 2 / 75**0.5).double()
    torch.testing.assert_close(batch.advantage[:4], expected, atol=1e-5, rtol=0)


def test_a_gated_sample_above_the_mean_of_the_batch_has_no_advantage() -> None:
    """The first group has a gated one, and is far above the others; nothing below 0 is touched."""
    columns = {"a": [10.0, 11, 12, 13, *range(12)], "light": [0.5] * 3 + [1.0] + [0.5] * 12}
    batch, row = outcome(columns, JUDGES, make=BATCH)
    assert batch.reward[3] == 10 and batch.advantage[3] == 0 and batch.advantage[0] > 0
    assert (batch.advantage[4:] < 0).any() and row["reward/gated"] == 1 / 16


def test_a_group_that_is_all_gated_is_the_worst_of_the_iteration() -> None:
    """Far above the others, it counts as the least of those that passed, NaN aside."""
    columns = {"a": [10.0, 11, 12, 13, NAN, *range(1, 12)], "light": [1.0] * 4 + [0.5] * 12}
    batch, _ = outcome(columns, JUDGES, make=BATCH)
    assert batch.reward[:4].tolist() == [1.0] * 4 and batch.advantage[:4].max() < 0
    for per_reward in (False, True):
        changes = {
            "samples_per_prompt": 1,
            "prompts_per_iteration": 16,
            "make": BATCH,
            "per_reward": per_reward,
        }
        batch, _ = outcome({"a": [9.0, 1, 2, 3], "light": [1.0, 0.5, 0.5, 0.5]}, JUDGES, **changes)
        lows = torch.tensor([1.0, 1, 2, 3], dtype=torch.float64)
        expected = (lows - 1.75) / (lows.std(correction=0) + 1e-6)
        torch.testing.assert_close(batch.advantage[:4], expected, atol=1e-6, rtol=0)
    batch, _ = outcome({"a": [9.0, 1, 2, 3], "light": [1.0]}, JUDGES, make=BATCH)
    assert batch.reward.tolist() == [1.0] * 16 and batch.advantage.tolist() == [0.0] * 16


def test_the_best_checkpoint_heeds_gates_and_missing_values() -> None:
    """2 a - b of five pictures: 2, 4, 18 (gated, so 2), NaN, infinite; without a value there is
    none."""
    judges = [judge("a", 2.0), judge("b", -1.0), judge("light", 0.0, max=0.9), judge("logged", 0.0)]
    columns = {
        "a": [1.0, 2, 9, NAN, float("inf")],
        "b": [0.0] * 5,
        "light": [0.5, 0.5, 0.95, 0.5, 0.5],
        "logged": [NAN] * 5,
    }
    values = {name: torch.tensor(column) for name, column in columns.items()}
    mixture = Mixture(judges, BATCH)
    assert mixture.standing(values) == pytest.approx((2 + 4 + 2) / 3)
    values["light"][:] = 1.0
    assert mixture.standing(values) == 2
    values["a"][:] = NAN
    assert math.isnan(mixture.standing(values))


def test_rwr_over_all_prompts_knows_the_gate() -> None:
    """Weights exp(beta r) over the iteration: a gated prompt's are those of the worst that
    passed."""
    columns = {"a": [9.0] * 4 + [1.0, 2, 3] * 4, "light": [1.0] * 4 + [0.5] * 12}
    batch, _ = outcome(columns, JUDGES)
    found = weights(batch, beta=0.2, percentile=None, per_prompt=False, standardize=False)
    assert found[0] == found[4] == found.min() < found[5]


@pytest.mark.parametrize("name", ["prdp", "p3o", "d3po"])
def test_a_gated_sample_wins_no_pair(name: str) -> None:
    """The pairs are counted out; the loss falls where the gated image becomes less likely."""
    batch, _ = outcome(GATED, JUDGES)
    batch = batch.rows(torch.arange(4))
    pairs = set(zip(*(rows.tolist() for rows in batch.comparisons()), strict=True))
    assert pairs == {(1, 0), (1, 2), (3, 0), (3, 1), (3, 2)}
    batch = batch.with_matrices(logp_ref=batch.logp_old)
    logp = batch.logp_old.clone().requires_grad_()
    objectives.build(name)(logp, batch).backward()
    assert logp.grad is not None and (logp.grad[2][batch.stochastic] > 0).all()
    assert (logp.grad[3][batch.stochastic] < 0).all()


def test_no_value_for_a_gate_is_no_value() -> None:
    """Excluded and counted by reward; a reward that is only logged excludes nothing."""
    columns = {
        "a": [1.0, 2, 3, NAN],
        "light": [0.5, NAN, 0.5, float("inf")],
        "logged": [NAN, NAN, 1, 1],
    }
    batch, row = outcome(columns, [*JUDGES, judge("logged", 0.0)])
    assert batch.present[:4].tolist() == [True, False, True, False]
    counts = {key: value for key, value in row.items() if "missing" in key}
    assert counts == {"missing/a": 4, "missing/light": 8, "missing/logged": 8, "reward/missing": 8}
    assert row["reward/mean"] == 2 and row["reward/a"] == 2 and row["reward/gated"] == 0
    words = (
        "8 of 16 images got no value, above trainer.max_missing 0.4 "
        r"\(NaN from a for 4, from light for 8"
    )
    with pytest.raises(Stopped, match=words):
        outcome(columns, [*JUDGES, judge("logged", 0.0)], max_missing=0.4)


def test_groups_are_whole_whatever_the_chunks() -> None:
    images = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []

    def counted(*given: Any) -> Tensor:
        sizes.append(len(given[0]))
        return relative(*given)

    counted.groupwise = True
    scorer = Scorer([Reward("level", 1.0, level), Reward("relative", 1.0, counted)], group_size=4)
    for _ in range(2):
        for first, last in ((0, 3), (3, 4), (4, 10), (10, 12)):
            texts = [f"prompt {i // 4}" for i in range(first, last)]
            scorer.submit(images[first:last], texts, [{}] * (last - first))
        values = scorer.collect()
        groups = level(images).view(3, 4)
        torch.testing.assert_close(values["level"], level(images))
        torch.testing.assert_close(
            values["relative"], (groups - groups.mean(1, keepdim=True)).flatten()
        )
    assert sizes == [4] * 6


def test_a_failure_is_told_at_the_next_chunk() -> None:
    def fails(*given: object) -> Tensor:
        raise ValueError("no weights")

    scorer = Scorer([Reward("fails", 1.0, fails)])
    scorer.submit(torch.zeros(1, 3, 2, 2), ["x"], [{}])
    while not scorer._pending[0][1].done():
        pass
    with pytest.raises(ValueError, match="reward fails raised ValueError: no weights"):
        scorer.submit(torch.zeros(1, 3, 2, 2), ["x"], [{}])


def test_reward_threads_compute_on_the_device_of_their_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In torch each new thread begins on GPU 0: here that of the thread which submits is 3."""
    current = threading.local()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "index", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(current, "index", index))
    current.index = 3

    def device(images: Tensor, *rest: object) -> Tensor:
        return torch.full((len(images),), float(torch.cuda.current_device()))

    scorer = Scorer([Reward("device", 1.0, device)])
    for _ in range(3):
        scorer.submit(torch.zeros(1, 3, 2, 2), ["x"], [{}])
    assert scorer.collect()["device"].tolist() == [3, 3, 3]


PREFERENCES = {(1, 2): 0.9, (2, 1): 0.3, (1, 3): 0.5, (3, 1): 0.5, (2, 3): 1.0, (3, 2): 0.0}


def pairs_of(table: Mapping[tuple[int, int], float]) -> Callable[..., Tensor]:
    """Images are told apart by their brightness: 1, 2 or 3 tenths."""

    def preferred(first: Tensor, second: Tensor, prompts: Sequence[str], metadata: Rows) -> Tensor:
        assert len(first) == len(second) == len(prompts) == len(metadata)
        numbers = ((level(each) * 10).round().int().tolist() for each in (first, second))
        return torch.tensor([table[pair] for pair in zip(*numbers, strict=True)])

    return preferred


def test_win_rates() -> None:
    """p(1 over 2) both ways round: (0.9 + 1 - 0.3) / 2 = 0.8; 1 over 3: 0.5; 2 over 3: 1."""
    images = torch.tensor([0.1, 0.2, 0.3])[:, None, None, None].expand(3, 3, 2, 2)
    given = (["x"] * 3, [{}] * 3)
    found = rewards.win_rates(pairs_of(PREFERENCES))(images, *given)
    torch.testing.assert_close(found, torch.tensor([0.65, 0.6, 0.25]))
    found = rewards.win_rates(pairs_of({**PREFERENCES, (2, 3): NAN}))(images, *given)
    torch.testing.assert_close(found, torch.tensor([0.65, 0.2, 0.5]))
    assert rewards.win_rates(pairs_of({}))(images[:1], ["x"], [{}]).isnan().all()
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match=r"a preference is a number in \[0, 1\]"):
            rewards.win_rates(pairs_of({**PREFERENCES, (2, 3): wrong}))(images, *given)


def test_an_evaluation_groups_a_prompts_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three a prompt in chunks of four; two ranks share whole prompts and find what one finds."""
    policy = helpers.policy()
    sampler, own = helpers.sampler(policy, batch_size=4), [Reward("relative", 1.0, relative)]
    asked = PromptSet("words", tuple(Prompt(word, {}) for word in helpers.WORDS[:3]))
    shots = matched.all_shots(policy, sampler, asked, 3, own)
    assert [(shot.prompt, shot.seed) for shot in shots] == [
        (helpers.WORDS[i // 3], i // 3 + 3 * (i % 3)) for i in range(9)
    ]
    bright = level(from_pil([shot.image for shot in shots])).view(3, 3)
    expected = (bright - bright.mean(1, keepdim=True)).flatten().tolist()
    assert [shot.scores["relative"] for shot in shots] == pytest.approx(expected, abs=2e-3)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(
            ranks, "state", lambda rank=rank: SimpleNamespace(process_index=rank, num_processes=2)
        )
        monkeypatch.setattr(ranks, "gather", list)
        halves.append(matched.all_shots(policy, sampler, asked, 3, own))
    assert [len(half) for half in halves] == [3, 6]
    assert [(s.seed, s.scores) for s in halves[0] + halves[1]] == [
        (s.seed, pytest.approx(s.scores, abs=1e-6)) for s in shots
    ]


def test_an_evaluation_waits_no_longer_than_the_timeout() -> None:
    def hangs(images: Tensor, *rest: object) -> Tensor:
        time.sleep(30)
        return level(images)

    policy = helpers.policy()
    asked = PromptSet("words", (Prompt(helpers.WORDS[0], {}),))
    arguments = (policy, helpers.sampler(policy), asked, 1, [Reward("hangs", 1.0, hangs)])
    with pytest.raises(
        UserError, match=r"hangs gave no values within 0.1 s \(trainer.reward_timeout_s\)"
    ):
        matched.all_shots(*arguments, timeout_s=0.1)


def test_what_is_written_of_an_evaluation_is_json(tmp_path: Path) -> None:
    """Without a value: null in both files, and the report has its NaN again."""
    shots = [
        matched.Shot("a", i, Image.new("RGB", (2, 2)), {"none": NAN, "b": 1.0}) for i in range(2)
    ]
    matched.write(
        tmp_path / "evaluation", {"set": {"base": shots, "tuned": shots}}, config={"x": None}
    )

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for name in ("results.json", "samples.jsonl"):
        for text in (
            (tmp_path / "evaluation" / name).read_text().split("\n" if name[0] == "s" else "\0")
        ):
            if text:
                json.loads(text, parse_constant=refused)
    (tmp_path / "config.yaml").write_text("{}")
    found = evidence.read(tmp_path).results
    assert math.isnan(found["sets"]["set"]["none"]["difference"]["mean"]) and found["config"] == {
        "x": None
    }
    assert "n/a" in evidence.sentence("set", "none", found["sets"]["set"]["none"])


def broken(reward: Callable[..., Tensor], **attributes: bool) -> set[str]:
    for name, value in attributes.items():
        setattr(reward, name, value)
    return {f.check for f in conformance.findings(conformance.Case(reward)) if f.passed is False}


def test_conformance_of_rewards_that_compare() -> None:
    assert broken(relative) == set() and broken(relative, groupwise=False) == {"call"}
    relative.groupwise = True
    assert broken(
        lambda images, *rest: relative(images, *rest) + torch.arange(len(images)), groupwise=True
    ) == {"order"}
    brighter = rewards.win_rates(
        lambda first, second, *rest: (level(first) - level(second)).sigmoid()
    )
    assert broken(brighter) == set()
    assert broken(rewards.win_rates(lambda first, *rest: 1 + level(first))) == {"call"}


def test_conformance_of_gradients() -> None:
    def zero(images: Tensor, *rest: object) -> Tensor:
        return level(images).detach() + 0 * level(images)

    def infinite(images: Tensor, *rest: object) -> Tensor:
        return level(images) + level(images - images).sqrt()

    def another(images: Tensor, *rest: object) -> Tensor:
        return level(images) * (2 if images.requires_grad else 1)

    plain = lambda images, *rest: level(images).clone()  # noqa: E731
    assert broken(plain, differentiable=True) == set()
    for reward in (torch.no_grad()(plain), zero, infinite, another):
        assert broken(reward, differentiable=True) == {"gradient"}, reward
        assert broken(reward, differentiable=False) == set()


OWN = """
import torch
calls = []
def bright(images, prompts, metadata, *, power: float = 1.0):
    calls.append(len(images))
    return images.mean((1, 2, 3)) ** power
def apart(images, prompts, metadata):
    return (images - images.mean(0)).abs().mean((1, 2, 3)) if len(set(prompts)) == 1 else None
apart.groupwise = True
def redder(first, second, prompts, metadata):
    return torch.sigmoid((first - second)[:, 0].mean((1, 2)))
redder.pairwise = True
def partly(images, prompts, metadata):
    return images.mean((1, 2, 3)) + torch.tensor([float("nan")] * 3 + [0.0] * (len(images) - 3))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_composition_trains_and_is_judged(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one file: a reward with options, a gate, a groupwise and a pairwise one; runs share a
    cache."""
    names = [f"{{name: '{own}:{name}'" for name in ("bright", "apart", "redder")]
    first = f"{names[0]}, params: {{power: 2.0}}, min: 0.0, max: 0.2}}"
    cached = first.replace("}}", f"}}, cache: {tmp_path / 'kept'}}}").replace(
        "0.2}", f"0.2, cache: {tmp_path / 'kept'}}}"
    )
    rest = f"{names[1]}, weight: 2}}, {names[2]}, weight: 0.5}}"
    flags = [
        "--advantage.per_reward",
        "true",
        "--sampler.batch_size",
        "3",
        "--trainer.iterations",
        "1",
    ]
    rows = []
    for number, entry in enumerate((first, cached, cached)):
        run = tmp_path / str(number)
        argv = [
            *helpers.smoke(run),
            *flags,
            "--rewards",
            f"[{entry}, {rest}]",
            "--evaluation.num_prompts",
            "2",
        ]
        assert call(capsys, *argv) == (0, "")
        rows += metrics.read(run / "metrics.jsonl")
    for key in (
        "reward/bright",
        "reward/apart",
        "reward/redder",
        "gated/bright",
        "loss",
        "grad_norm",
    ):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-5) == rows[2][key], key
    assert rows[0]["reward/redder"] == pytest.approx(0.5), "half of all pairs are won"

    (module,) = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == own]
    sizes = module.calls
    assert sum(sizes) == 2 * 8, "the third run asked the cache alone"
    assert main(["evaluate", str(tmp_path / "1")]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("entry", ["apart'", "redder'", "apart', weight: 0, max: 1"])
def test_a_reward_that_compares_needs_two_samples(
    entry: str, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.samples_per_prompt", "1", "--advantage.name", "batch", "--rewards"]
    judges = f"[{{name: '{own}:bright'}}, {{name: '{own}:{entry}}}]"
    code, line = call(capsys, *helpers.smoke(tmp_path / "run"), *flags, judges)
    name = entry.partition("'")[0]
    words = (
        "trainer.samples_per_prompt: 1 leaves nothing to compare with, "
        f"and reward {name} compares within a prompt; take 2 or more"
    )
    assert (code, line) == (2, words)
    assert not (tmp_path / "run").exists()


def test_the_share_of_missing_values_is_an_option(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = [
        "--rewards",
        f"[{{name: '{own}:partly'}}]",
        "--trainer.iterations",
        "1",
        "--trainer.max_missing",
    ]
    code, line = call(capsys, *helpers.smoke(run), *flags, "0.3")
    words = (
        "rewards: 3 of 8 images got no value, above trainer.max_missing 0.3 (NaN from partly for 3)"
    )
    assert (code, line) == (3, f"{words} (state saved; go on with --resume {run})") and saved(
        run
    ) == ["000000"]
    assert call(capsys, "--resume", str(run), "--trainer.max_missing", "0.375") == (0, "") and done(
        run
    ) == [1]


def test_a_reward_of_an_installed_package_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What pip leaves behind is enough; a misspelt option names the nearest."""
    info = tmp_path / "ownlib-1.0.dist-info"
    info.mkdir()
    (tmp_path / "ownlib.py").write_text(OWN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ownlib\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ddpo.rewards]\nglow = ownlib:bright\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, flags = tmp_path / "run", ["--trainer.iterations", "1", "--rewards"]
    code, line = call(capsys, *helpers.smoke(run), *flags, "[{name: glow, params: {powr: 2.0}}]")
    assert (code, line) == (2, "rewards.0.params.powr: no such option of glow; did you mean power?")
    assert call(capsys, *helpers.smoke(run), *flags, "[{name: glow, params: {power: 2.0}}]") == (
        0,
        "",
    )
    assert metrics.read(run / "metrics.jsonl")[0]["reward/glow"] > 0


def test_score_and_check_take_a_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = """
import torch
class bits:
    def __init__(self, *, device, dtype):
        self.value = torch.tensor(torch.finfo(dtype).bits / 1.0)
    def __call__(self, images, prompts, metadata):
        assert self.value == 16, "fp32"
        return self.value.expand(len(images))
"""
    (tmp_path / "bits.py").write_text(source)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    spec = f"{tmp_path / 'bits.py'}:bits"
    assert main(["score", "--reward", spec, "--dtype", "bf16", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out.startswith("16\t")
    assert main(["check", "reward", spec, "--dtype", "fp16"]) == 0
    assert main(["check", "reward", spec]) == 2


def test_score_takes_the_files_as_one_group(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grays of 0, 0.2 and 0.6 lie 0.2667, 0.0667 and 0.3333 from their mean; alone, none does."""
    monkeypatch.chdir(tmp_path)
    for name, gray in (("a", 0), ("b", 51), ("c", 153)):
        Image.new("RGB", (4, 4), (gray, gray, gray)).save(f"{name}.png")
    Image.new("RGB", (5, 4)).save("wide.png")
    pictures = ["a.png", "b.png", "c.png"]
    assert frame.run(score.main, ["--reward", f"{own}:apart", *pictures]) == 0
    assert capsys.readouterr().out == "0.266667\ta.png\n0.0666667\tb.png\n0.333333\tc.png\n"
    assert frame.run(score.main, ["--reward", f"{own}:apart", "a.png", "wide.png"]) == 2
    line = "ddpo: apart compares the images, which must be of one size: a.png 4x4, wide.png 5x4\n"
    assert capsys.readouterr().err == line
    assert frame.run(score.main, ["--reward", f"{own}:redder", *pictures]) == 0
    rates = [float(line.split("\t")[0]) for line in capsys.readouterr().out.splitlines()]
    sigmoid = [torch.sigmoid(torch.tensor(gap)).item() for gap in (0.2, 0.4, 0.6)]
    expected = [
        1 - (sigmoid[0] + sigmoid[2]) / 2,
        (sigmoid[0] + 1 - sigmoid[1]) / 2,
        (sigmoid[1] + sigmoid[2]) / 2,
    ]
    assert rates == pytest.approx(expected, rel=1e-5)

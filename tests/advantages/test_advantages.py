"""Advantages against numpy, by hand, and in the cases where a standard deviation vanishes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpo import advantages, plugins
from ddpo.advantages import Advantage
from ddpo.errors import UserError

PROMPTS = ["a fox", "a cat"]


def call(advantage: Any, rewards: list[float], group_size: int = 2) -> Tensor:
    """Groups of `group_size`, whose prompts alternate."""
    group = torch.arange(len(rewards)) // group_size
    names = [PROMPTS[i % 2] for i in group.tolist()]
    return advantage(torch.tensor(rewards, dtype=torch.float64), names, group)


def built(name: str, **options: Any) -> Advantage:
    return advantages.build(name, **options)


def expected(rewards: list[float], mean: float, std: float) -> Tensor:
    return torch.tensor([(reward - mean) / (std + 1e-6) for reward in rewards], dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_batch_is_the_z_score() -> None:
    rewards = [1.0, 2.0, 4.0, 9.0]
    close(call(built("batch"), rewards), expected(rewards, 4.0, float(np.std(rewards))))
    assert call(built("batch"), rewards).tolist() == pytest.approx(
        [-0.973328, -0.648886, 0, 1.622214], abs=1e-5
    )


def test_group_units() -> None:
    """Groups (1, 3) and (10, 20): deviations -1, 1, -5, 5 in units of the group's, the batch's, or
    none."""
    rewards = [1.0, 3.0, 10.0, 20.0]
    deviations = torch.tensor([-1.0, 1.0, -5.0, 5.0], dtype=torch.float64)
    own = torch.tensor([1.0, 1.0, 5.0, 5.0], dtype=torch.float64)
    close(call(built("group"), rewards), deviations / (own + 1e-6))
    close(call(built("group", std="global"), rewards), deviations / (np.std(rewards) + 1e-6))
    close(call(built("group", std="none"), rewards), deviations)


def test_groups_need_not_be_neighbors() -> None:
    reward, group = torch.tensor([1.0, 10.0, 3.0, 20.0]).double(), torch.tensor([7, 3, 7, 3])
    found = built("group", std="none")(reward, ["a", "b", "a", "b"], group)
    assert found.tolist() == [-1, -5, 1, 5]


def test_per_prompt_uses_the_last_rewards_of_the_prompt() -> None:
    """Two iterations by hand: a buffer of 3 keeps (3, 5, 8) of the fox's (1, 3, 5, 8)."""
    advantage = built("per_prompt", buffer_size=3, min_count=2)
    first = [1.0, 3.0, 10.0, 10.5]
    wanted = torch.cat([expected(first[:2], 2, 1), expected(first[2:], 10.25, 0.25)])
    close(call(advantage, first), wanted)
    second = [5.0, 8.0, 11.0, 13.0]
    fox, cat = [3.0, 5.0, 8.0], [10.5, 11.0, 13.0]
    scales = [(float(np.mean(kept)), float(np.std(kept))) for kept in (fox, cat)]
    wanted = torch.cat([expected(second[:2], *scales[0]), expected(second[2:], *scales[1])])
    close(call(advantage, second), wanted)
    assert advantage.state_dict() == {"a fox": fox, "a cat": cat}


def test_per_prompt_compares_rare_prompts_with_the_batch() -> None:
    rewards = [1.0, 2.0, 4.0, 9.0]
    close(call(built("per_prompt", min_count=3), rewards), call(built("batch"), rewards))
    mixed = built("per_prompt", min_count=3)
    mixed.load_state_dict({"a fox": [5.0]})
    fox = [5.0, 1.0, 2.0]
    found = call(mixed, rewards)
    close(found[:2], expected(rewards[:2], float(np.mean(fox)), float(np.std(fox))))
    close(found[2:], call(built("batch"), rewards)[2:])


def test_per_prompt_survives_json() -> None:
    """What a checkpoint does with it; a smaller buffer keeps the newest."""
    one = built("per_prompt", buffer_size=4, min_count=1)
    other = built("per_prompt", buffer_size=4, min_count=1)
    call(one, [0.1, 0.2, 0.7, 1 / 3])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    again = [0.3, 1.1, -2.0, 1e-9]
    assert torch.equal(call(one, again), call(other, again))
    small = built("per_prompt", buffer_size=1)
    small.load_state_dict(one.state_dict())
    assert small.state_dict() == {"a fox": [1.1], "a cat": [1e-9]}


def test_prompts_are_not_confused_by_their_tokens() -> None:
    """Case and what follows the 77th token count: a peer keyed its statistics by decoded tokens."""
    advantage = built("per_prompt", min_count=1)
    long = "a fox " * 60
    advantage(
        torch.tensor([1.0, 2.0, 3.0]).double(), ["A fox", long + "1", long + "2"], torch.arange(3)
    )
    assert advantage.state_dict() == {"A fox": [1.0], long + "1": [2.0], long + "2": [3.0]}


EVERY = plugins.names("advantages")
OPTIONS = {
    "per_prompt": [{"min_count": 1}, {"min_count": 3}],
    "group": [{"std": "global"}, {"std": "none"}],
}
CASES = [(name, options) for name in EVERY for options in ({}, *OPTIONS.get(name, []))]
KEYS = ["a fox", "a cat", "a fox", "an owl"]


def sixteen(seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return 10 * torch.randn(16, generator=noise, dtype=torch.float64)


def of_groups(advantage: Advantage, reward: Tensor, order: Sequence[int] = range(16)) -> Tensor:
    """Four groups of four, two of one prompt, in an order of one's choice."""
    rows = torch.tensor(order)
    return advantage(reward[rows], [KEYS[i // 4] for i in order], rows // 4)


def test_the_bundled_ones_are_found() -> None:
    assert {"batch", "group", "per_prompt"} <= set(EVERY)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_finite_number_for_each_reward(name: str, options: dict[str, Any]) -> None:
    advantage = built(name, **options)
    for count in (1, 2, 16):
        reward = sixteen()[:count]
        before = reward.clone()
        found = advantage(reward, ["a fox"] * count, torch.zeros(count, dtype=torch.long))
        assert found.shape == (count,) and found.dtype == reward.dtype and found.isfinite().all()
        assert torch.equal(reward, before), "the rewards are not its own"
    assert of_groups(built(name, **options), sixteen()).abs().max() > 0.1


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -7.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_rewards_give_exactly_0(
    name: str, options: dict[str, Any], value: float, dtype: torch.dtype
) -> None:
    """Divided by 1e-6, a mean that is off by rounding would be a large advantage."""
    reward, group = torch.full((14,), value, dtype=dtype), torch.arange(14) // 2
    keys = [PROMPTS[i % 2] for i in group.tolist()]
    assert built(name, **options)(reward, keys, group).tolist() == [0.0] * 14


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_order_of_samples_does_not_matter(name: str, options: dict[str, Any]) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    found = of_groups(built(name, **options), sixteen(), order)
    close(found, of_groups(built(name, **options), sixteen())[torch.tensor(order)])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_memory_survives_json(name: str, options: dict[str, Any]) -> None:
    """What a checkpoint does with it; and the memory that was given away is not written to
    later."""
    one, other = built(name, **options), built(name, **options)
    of_groups(one, sixteen(0))
    state = one.state_dict()
    text = json.dumps(state)
    other.load_state_dict(json.loads(text))
    for seed in (1, 2):
        assert torch.equal(of_groups(one, sixteen(seed)), of_groups(other, sixteen(seed)))
    assert one.state_dict() == other.state_dict() and json.dumps(state) == text


PLUGIN = '''
class halves:
    """A = r - the mean, divided by `share`; with a memory of how often it was asked."""

    compares = True

    def __init__(self, *, share: float = 2.0):
        self.share, self.asked = share, 0

    def __call__(self, reward, keys, group):
        self.asked += 1
        return (reward - reward.mean()) / self.share

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]
'''


def write(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "advantages").mkdir()
    (folder / "advantages" / f"{name}.py").write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, str(folder))


def test_one_in_a_plugin_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "halves", PLUGIN, monkeypatch)
    assert "halves" in plugins.names("advantages")
    assert dict(plugins.summaries("advantages"))["halves"].startswith("A = r - the mean")
    advantage = built("halves", share=4.0)
    assert call(advantage, [1.0, 3.0]).tolist() == [-0.25, 0.25]
    other = built("halves")
    other.load_state_dict(json.loads(json.dumps(advantage.state_dict())))
    assert other.state_dict() == {"asked": 1}
    with pytest.raises(UserError, match="did you mean halves"):
        built("halve")


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "column",
            "reward[:, None]",
            r"returned shape \(4, 1\) for 4 rewards; return one number for each",
        ),
        ("scalar", "reward.mean()", r"returned shape \(\) for 4 rewards"),
        ("numbers", "reward.tolist()", "returned list for 4 rewards"),
        ("endless", "reward / 0", "returned 4 of 4 numbers that are not finite"),
        ("broken", "reward * (1 / 0)", r"raised ZeroDivisionError: .*broken.py, line 2\)"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    name: str, body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, name, f"def {name}(reward, keys, group):\n    return {body}\n", monkeypatch)
    with pytest.raises(UserError, match=f"advantage {name} {message}") as told:
        call(built(name), [1.0, 2.0, 3.0, 4.0])
    assert "\n" not in str(told.value)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=12).filter(
        lambda values: len(values) % 2 == 0
    )
)
def test_advantages_are_centred_and_at_most_unit(rewards: list[float]) -> None:
    """Mean 0 within what they compare, mean square at most 1 (the 1e-6 shrinks them)."""
    whole = call(built("batch"), rewards)
    assert abs(whole.mean().item()) < 1e-6 and whole.square().mean().item() <= 1 + 1e-9
    pairs = call(built("group"), rewards).view(-1, 2)
    assert pairs.mean(1).abs().max() < 1e-6 and pairs.square().mean(1).max() <= 1 + 1e-9


def test_a_shift_of_all_rewards_changes_nothing() -> None:
    rewards = [1.0, 2.0, 4.0, 9.0]
    for advantage in (
        built("batch"),
        built("group"),
        built("group", std="global"),
        built("group", std="none"),
    ):
        close(call(advantage, [reward + 64 for reward in rewards]), call(advantage, rewards))

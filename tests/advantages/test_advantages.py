"""Advantages against numpy, by hand, and in the cases where a standard deviation vanishes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpo.advantages import ADVANTAGES, Batch, Group, PerPrompt

PROMPTS = ["a fox", "a cat"]


def call(advantage: Any, rewards: list[float], group_size: int = 2) -> Tensor:
    """Groups of `group_size`, whose prompts alternate."""
    group = torch.arange(len(rewards)) // group_size
    names = [PROMPTS[i % 2] for i in group.tolist()]
    return advantage(torch.tensor(rewards, dtype=torch.float64), names, group)


def expected(rewards: list[float], mean: float, std: float) -> Tensor:
    return torch.tensor([(reward - mean) / (std + 1e-6) for reward in rewards], dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_batch_is_the_z_score() -> None:
    rewards = [1.0, 2.0, 4.0, 9.0]
    close(call(Batch(), rewards), expected(rewards, 4.0, float(np.std(rewards))))
    assert call(Batch(), rewards).tolist() == pytest.approx([-0.973328, -0.648886, 0, 1.622214], abs=1e-5)


def test_group_units() -> None:
    """Groups (1, 3) and (10, 20): deviations -1, 1, -5, 5 in units of the group's, the batch's, or none."""
    rewards = [1.0, 3.0, 10.0, 20.0]
    deviations = torch.tensor([-1.0, 1.0, -5.0, 5.0], dtype=torch.float64)
    own = torch.tensor([1.0, 1.0, 5.0, 5.0], dtype=torch.float64)
    close(call(Group(), rewards), deviations / (own + 1e-6))
    close(call(Group(std="global"), rewards), deviations / (np.std(rewards) + 1e-6))
    close(call(Group(std="none"), rewards), deviations)


def test_groups_need_not_be_neighbours() -> None:
    reward, group = torch.tensor([1.0, 10.0, 3.0, 20.0]).double(), torch.tensor([7, 3, 7, 3])
    found = Group(std="none")(reward, ["a", "b", "a", "b"], group)
    assert found.tolist() == [-1, -5, 1, 5]


def test_per_prompt_uses_the_last_rewards_of_the_prompt() -> None:
    """Two iterations by hand: a buffer of 3 keeps (3, 5, 8) of the fox's (1, 3, 5, 8)."""
    advantage = PerPrompt(buffer_size=3, min_count=2)
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
    close(call(PerPrompt(min_count=3), rewards), call(Batch(), rewards))
    mixed = PerPrompt(min_count=3)
    mixed.load_state_dict({"a fox": [5.0]})
    fox = [5.0, 1.0, 2.0]
    found = call(mixed, rewards)
    close(found[:2], expected(rewards[:2], float(np.mean(fox)), float(np.std(fox))))
    close(found[2:], call(Batch(), rewards)[2:])


def test_per_prompt_survives_json() -> None:
    """What a checkpoint does with it; a smaller buffer keeps the newest."""
    one, other = PerPrompt(buffer_size=4, min_count=1), PerPrompt(buffer_size=4, min_count=1)
    call(one, [0.1, 0.2, 0.7, 1 / 3])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    again = [0.3, 1.1, -2.0, 1e-9]
    assert torch.equal(call(one, again), call(other, again))
    small = PerPrompt(buffer_size=1)
    small.load_state_dict(one.state_dict())
    assert small.state_dict() == {"a fox": [1.1], "a cat": [1e-9]}


def test_prompts_are_not_confused_by_their_tokens() -> None:
    """Case and what follows the 77th token count: a peer keyed its statistics by decoded tokens."""
    advantage = PerPrompt(min_count=1)
    long = "a fox " * 60
    advantage(torch.tensor([1.0, 2.0, 3.0]).double(), ["A fox", long + "1", long + "2"], torch.arange(3))
    assert advantage.state_dict() == {"A fox": [1.0], long + "1": [2.0], long + "2": [3.0]}


EVERY = [Batch(), Group(), Group(std="global"), Group(std="none"), PerPrompt(min_count=1)]


def test_every_advantage_is_among_those_tested() -> None:
    assert {type(advantage) for advantage in EVERY} == set(ADVANTAGES.values())


@pytest.mark.parametrize("advantage", EVERY)
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -7.3])
def test_equal_rewards_give_exactly_0(advantage: Any, value: float) -> None:
    """Divided by 1e-6, a mean that is off by rounding would be a large advantage."""
    if isinstance(advantage, PerPrompt):
        advantage = PerPrompt(min_count=1)
    assert call(advantage, [value] * 14).tolist() == [0.0] * 14
    reward, group = torch.full((14,), value), torch.arange(14) // 2
    assert Group()(reward, ["a"] * 14, group).tolist() == [0.0] * 14, "in fp32"


@pytest.mark.parametrize("advantage", EVERY)
def test_a_missing_reward_changes_nothing_for_the_others(advantage: Any) -> None:
    with_gaps = [1.0, float("nan"), 3.0, 10.0, 20.0, float("nan"), float("nan"), float("nan")]
    full = [reward for reward in with_gaps if reward == reward]
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    names = [PROMPTS[i % 2] for i in group.tolist()]
    keep = torch.tensor(with_gaps) == torch.tensor(with_gaps)
    if isinstance(advantage, PerPrompt):
        advantage.load_state_dict({})
    found = advantage(torch.tensor(with_gaps, dtype=torch.float64), names, group)
    assert found.isnan().tolist() == (~keep).tolist()
    if isinstance(advantage, PerPrompt):
        assert advantage.state_dict() == {"a fox": [1.0, 3.0], "a cat": [10.0, 20.0]}
        advantage.load_state_dict({})
    alone = advantage(torch.tensor(full, dtype=torch.float64), names[:3:2] + names[3:5], group[[0, 2, 3, 4]])
    close(found[keep], alone)


def test_nothing_but_missing_rewards() -> None:
    for advantage in EVERY:
        assert call(advantage, [float("nan")] * 4).isnan().all()


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=12).filter(lambda values: len(values) % 2 == 0))
def test_advantages_are_centred_and_at_most_unit(rewards: list[float]) -> None:
    """Mean 0 within what they compare, mean square at most 1 (the 1e-6 shrinks them)."""
    whole = call(Batch(), rewards)
    assert abs(whole.mean().item()) < 1e-6 and whole.square().mean().item() <= 1 + 1e-9
    pairs = call(Group(), rewards).view(-1, 2)
    assert pairs.mean(1).abs().max() < 1e-6 and pairs.square().mean(1).max() <= 1 + 1e-9


def test_a_shift_of_all_rewards_changes_nothing() -> None:
    rewards = [1.0, 2.0, 4.0, 9.0]
    for advantage in (Batch(), Group(), Group(std="global"), Group(std="none")):
        close(call(advantage, [reward + 64 for reward in rewards]), call(advantage, rewards))

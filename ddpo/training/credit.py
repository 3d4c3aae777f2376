"""From the rewards of an iteration to what its samples are credited with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import copysign
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.advantages import Advantage
from ddpo.errors import Stopped
from ddpo.prompts import Prompt
from ddpo.rewards import Reward, Values
from ddpo.scoring.ranking import PREFERENCE
from ddpo.training.selection import extremes


class Credit(NamedTuple):
    """What B samples are credited with, in fp64; rows that are not valued hold 0.

    valued   a reward is known of the sample: it is compared with the others
    present  it takes part in the update
    """

    reward: Float[Tensor, " B"]
    advantage: Float[Tensor, " B"]
    valued: Bool[Tensor, " B"]
    present: Bool[Tensor, " B"]


@dataclass
class Mixture:
    """The rewards as one: their weights, gates and sum, and the advantages made of them.

        A = advantage of sum over rewards k of w_k r_k,
        or, with `per_reward`, A = sum over k of |w_k| A_k

    where A_k is that of sign(w_k) r_k: each is compared by itself, with statistics of its own, so
    that w_k weighs standard deviations (GDPO, Liu et al. 2026, arXiv 2601.05242). Differs: GDPO
    normalizes the sum once more over the batch.

    A prompt may weigh the rewards in its own way, w_k times its `weights`.

    A gated sample is compared as the worst of its group, and its advantage is never above 0.

    make          an advantage with empty memory
    clip          advantages are clipped to [-clip, clip]
    keep_extremes only the k best and k worst samples of a group are trained on; None: all
    max_missing   share of an iteration's samples without a reward above which a run stops
    recorded      preferences of recorded pairs are trained on; the rewards only judge
    pathwise      samples are not compared, but each follows its reward's gradient: gated ones are
                  left out
    """

    rewards: Sequence[Reward]
    make: Callable[[], Advantage]
    per_reward: bool = False
    clip: float = 5.0
    keep_extremes: int | None = None
    max_missing: float = 0.5
    recorded: bool = False
    pathwise: bool = False
    advantages: dict[str, Advantage] = field(init=False)

    def __post_init__(self) -> None:
        parts = (
            [reward.name for reward in self.rewards if reward.weight] if self.per_reward else [""]
        )
        self.advantages = {name: self.make() for name in parts}

    def total(self, values: Values, own: Values | None = None) -> Float[Tensor, " B"]:
        """The weighted sum; NaN where it is not finite, or a reward with a gate has no value.

        `own` are the samples' own weights, by reward, times which those here count.
        """
        parts = [
            reward.weight * (own or {}).get(reward.name, 1.0) * values[reward.name]
            for reward in self.rewards
            if reward.weight != 0
        ]
        gates = [reward for reward in self.rewards if reward.gates]
        unknown = [torch.where(values[reward.name].isnan(), torch.nan, 0.0) for reward in gates]
        total = torch.stack([*parts, *unknown]).sum(0)
        return torch.where(total.isfinite(), total, torch.nan)

    def outside(self, values: Values) -> dict[str, Bool[Tensor, " B"]]:
        """For each reward with a gate, the samples outside it."""
        return {
            reward.name: reward.outside(values[reward.name])
            for reward in self.rewards
            if reward.gates
        }

    def standing(self, values: Values) -> float:
        """The scalar that makes an iteration the best: the mean sum over pictures that have one.

        A gated picture is as bad as the worst. NaN where no picture has a value.
        """
        reward = self.total(values)
        known = ~reward.isnan()
        if not known.any():
            return torch.nan
        gated = _any(self.outside(values), known)[known]
        return torch.where(gated, reward[known].min(), reward[known]).mean().item()

    def credit(
        self, values: Values, prompts: Sequence[Prompt], group: Int[Tensor, " B"]
    ) -> tuple[Credit, dict[str, float]]:
        """The credit of all samples of an iteration, and the metrics of its rewards.

        `prompts` are those of the samples. Raises Stopped where too many samples have no reward.
        """
        values = {name: torch.where(v.isfinite(), v, torch.nan) for name, v in values.items()}
        own = own_weights(prompts, [reward.name for reward in self.rewards])
        total = (values[PREFERENCE] if self.recorded else self.total(values, own)).double()
        valued = ~total.isnan()
        self._stop_if_too_few(values, valued)
        outside = {} if self.recorded else self.outside(values)
        gated = _any(outside, valued)
        reward, advantage = torch.zeros_like(total), torch.zeros_like(total)
        known = {name: column[valued].double() for name, column in values.items()}
        keys = [prompts[i].key for i in _rows(valued)]
        arguments = (total[valued], keys, group[valued], gated[valued])
        shares = {name: weights[valued].double() for name, weights in own.items()}
        reward[valued], advantage[valued] = self._compare(known, shares, *arguments)
        present = valued & ~gated if self.pathwise else valued.clone()
        if self.keep_extremes is not None:
            present[valued] &= extremes(reward[valued], group[valued], self.keep_extremes)
        metrics = {
            "reward/mean": total[valued].mean().item(),
            "reward/std": total[valued].std(correction=0).item(),
            **{f"reward/{name}": column.nanmean().item() for name, column in values.items()},
            **{f"missing/{name}": int(column.isnan().sum()) for name, column in values.items()},
            **{f"gated/{name}": rows.double().mean().item() for name, rows in outside.items()},
            "reward/missing": int((~valued).sum()),
            "reward/gated": gated.double().mean().item(),
        }
        return Credit(reward, advantage, valued, present), metrics

    def _compare(
        self,
        values: Mapping[str, Float[Tensor, " N"]],
        own: Mapping[str, Float[Tensor, " N"]],
        total: Float[Tensor, " N"],
        keys: Sequence[str],
        group: Int[Tensor, " N"],
        gated: Bool[Tensor, " N"],
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The reward (for objectives that compare) and the advantage of samples with a value."""
        if self.per_reward:
            weights = {reward.name: reward.weight for reward in self.rewards if reward.weight}
            parts = []
            for name, weight in weights.items():
                signed = lowered(copysign(1.0, weight) * values[name], group, gated)
                share = abs(weight) * own.get(name, 1.0)
                parts.append(share * self.advantages[name](signed, keys, group))
            reward = advantage = torch.stack(parts).sum(0)
        else:
            reward = lowered(total, group, gated)
            advantage = self.advantages[""](reward, keys, group)
        advantage = advantage.clamp(-self.clip, self.clip)
        return reward, torch.where(gated, advantage.clamp(max=0), advantage)

    def _stop_if_too_few(self, values: Values, valued: Bool[Tensor, " B"]) -> None:
        lost, count = int((~valued).sum()), len(valued)
        if lost > self.max_missing * count:
            missing = {name: int(column.isnan().sum()) for name, column in values.items()}
            sources = ", ".join(
                f"from {name} for {number}" for name, number in missing.items() if number
            )
            share = f"{lost} of {count} images got no value, above trainer.max_missing"
            raise Stopped(f"rewards: {share} {self.max_missing:g} (NaN {sources})")

    def state(self) -> dict[str, Any]:
        """The memory of the advantage; with `per_reward`, of each by the reward's name."""
        states = {name: advantage.state_dict() for name, advantage in self.advantages.items()}
        return states if self.per_reward else states[""]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory that `state` gave."""
        for name, advantage in self.advantages.items():
            advantage.load_state_dict(state.get(name, {}) if self.per_reward else dict(state))


def own_weights(prompts: Sequence[Prompt], names: Sequence[str]) -> Values:
    """By what each prompt multiplies the weights of rewards; 1 where it has none of its own.

    Empty where no prompt has any.
    """
    if all(prompt.weights is None for prompt in prompts):
        return {}
    own = [dict.fromkeys(names, 1.0) if p.weights is None else p.weights for p in prompts]
    return {name: torch.tensor([weights.get(name, 0.0) for weights in own]) for name in names}


def lowered(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], gated: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Gated samples get the lowest reward of their group: they tie and win no comparison.

    A group that is all gated gets the lowest reward of all that passed (if none did, of all), so
    that it gains nothing where groups are compared. To leave gated samples out instead would teach
    nothing; to give them an advantage of 0 while their high rewards still raise the mean would push
    the others down.
    """
    result, passed = reward.clone(), ~gated
    rest = passed if passed.any() else torch.ones_like(passed)
    for number in group[gated].unique():
        rows = group == number
        result[rows & gated] = reward[rows if (rows & passed).any() else rest].min()
    return result


def _any(
    outside: Mapping[str, Bool[Tensor, " B"]], valued: Bool[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """The samples with a value that are outside any of the gates."""
    return torch.stack([torch.zeros_like(valued), *outside.values()]).any(0) & valued


def _rows(mask: Bool[Tensor, " B"]) -> list[int]:
    return mask.nonzero().flatten().tolist()

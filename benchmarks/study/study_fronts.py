"""What is read off a run's checkpoints: its front of gain against recognition and KL.

A measure is a number of one run within limits: `last` is the last iteration that counts, `kl` the
largest KL. The start, where nothing is gained yet, is a checkpoint like the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Checkpoint = dict[str, Any]

RECOGNIZED = 0.9
"""Least share of animals recognized at a checkpoint whose gain counts."""

TRAINED = {"incompress": "jpeg_incompressibility"}
"""Task -> its reward, where it is not jpeg_compressibility."""


@dataclass(frozen=True)
class Limits:
    """Of what counts in a run: iterations up to `last`, states no further from the base than `kl`
    nats."""

    last: float = math.inf
    kl: float = math.inf


Measure = Callable[[Result, Limits], float]


def reward_of(task: str) -> str:
    return TRAINED.get(task, "jpeg_compressibility")


def within(result: Result, limits: Limits) -> list[Checkpoint]:
    """The checkpoints up to the last iteration that counts, in order."""
    return [each for each in result["checkpoints"] if each["iteration"] <= limits.last]


def gain(result: Result, checkpoint: Checkpoint, judged: str = "animals") -> float:
    """Mean of the trained reward on a set, less that of the start at the same seeds."""
    name = reward_of(result["task"])
    start = result["checkpoints"][0]
    return checkpoint["means"][judged][name] - start["means"][judged][name]


def recognized(checkpoint: Checkpoint, judged: str = "animals") -> float:
    return checkpoint["means"][judged]["emoji_recognition"]


def chosen(result: Result, limits: Limits) -> Checkpoint:
    """That of the largest gain on animals among those at which enough of them are recognized."""
    start, *later = within(result, limits)
    good = [each for each in later if recognized(each) >= RECOGNIZED]
    return max([start, *good], key=lambda each: gain(result, each))


def gain_at_recognition(result: Result, limits: Limits) -> float:
    """The largest gain at recognition >= 90 %; at least 0, that of the start."""
    return gain(result, chosen(result, limits))


def unseen_gain(judged: str) -> Measure:
    """The gain on another set at the checkpoint that is chosen on animals."""
    return lambda result, limits: gain(result, chosen(result, limits), judged)


def gain_within_kl(result: Result, limits: Limits) -> float:
    """The largest gain at a KL to the base of at most `limits.kl`; at least 0."""
    near = [each for each in within(result, limits) if each["kl"] <= limits.kl]
    return max(gain(result, each) for each in near)


def end_gain(result: Result, limits: Limits) -> float:
    """At the last checkpoint, whatever is still recognized."""
    return gain(result, within(result, limits)[-1])


def end_recognition(result: Result, limits: Limits) -> float:
    return recognized(within(result, limits)[-1])

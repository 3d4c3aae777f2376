"""The conformance kit: does a reward keep the contract of `ddpo.rewards`?

It scores six samples of the reward's medium (of images, those of conformance.png), whole and in
parts, and compares. Every call gets copies of its own, so that no check sees what another one did.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.prompts import Prompt
from ddpo.rewards import Score, groupwise, medium_of

PROMPTS = (
    Prompt("a fox", {"animal": "fox"}),
    Prompt(
        "a cat riding a bike",
        {"animal": "cat", "activity": "riding a bike", "include": [{"class": "cat", "count": 1}]},
    ),
    Prompt(
        "two dogs",
        {"animal": "dog", "count": 2, "text": "dogs", "include": [{"class": "dog", "count": 2}]},
    ),
    Prompt("an ant", {"animal": "ant"}),
    Prompt("a cow playing chess", {"animal": "cow", "activity": "playing chess"}),
    Prompt("a fish", {"animal": "fish"}),
)
"""The first, the second and the fifth are what conformance.png shows; its other scenes are a dog, a
whale and a goat washing dishes, so that a judge of prompts has something to say."""

TOLERANCE = 1e-3
"""How far a value may move with the rest of the batch, as a share of the spread of all six:
rounding."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    `passed` is None where another one that failed leaves it without meaning.
    """

    check: str
    expected: str
    found: str
    passed: bool | None


class Case:
    """A reward and the pictures that it scores, on the device where a rollout has them."""

    def __init__(
        self, score: Score, device: str = "cpu", prompts: Sequence[Prompt] = PROMPTS
    ) -> None:
        self.score = score
        self.every = list(range(6))
        kinds = prompts[:1] if groupwise(score) else prompts  # then the six are one group
        self.prompts = [kinds[i % len(kinds)] for i in self.every]
        self.medium = medium_of(score)
        self.images = self.medium.examples().to(device)

    def inputs(self, rows: Sequence[int]) -> tuple[Tensor, list[str], list[Mapping[str, Any]]]:
        chosen = [self.prompts[i] for i in rows]
        metadata = [deepcopy(prompt.metadata) for prompt in chosen]
        return self.images[list(rows)].clone(), [prompt.text for prompt in chosen], metadata

    def values(self, rows: Sequence[int]) -> Tensor:
        """What the reward returns for these rows, of its own shape and type."""
        return torch.as_tensor(self.score(*self.inputs(rows))).detach().cpu()

    @cached_property
    def whole(self) -> Float[Tensor, " B"]:
        """The six values in one call."""
        return self.values(self.every).double()

    def difference(self, others: Tensor, what: str, exact: bool = False) -> str:
        """The first of `others` that is not the whole batch's value, rounding aside.

        It is empty where all are.
        """
        known = self.whole[~self.whole.isnan()]
        limit = 0 if exact else TOLERANCE * (known.max() - known.min()) + 1e-5 * known.abs().max()
        same = ((others - self.whole).abs() <= limit) | (others.isnan() & self.whole.isnan())
        for i in (~same).nonzero().flatten().tolist():
            one = self.medium.shown.removesuffix("s")
            return f"{one} {i + 1} of 6 scores {self.whole[i]:.6g}, and {others[i]:.6g} {what}"
        return ""


def _call(case: Case) -> str:
    case.score(*case.inputs(case.every))
    return ""


def _shape(case: Case) -> str:
    shapes = {len(rows): tuple(case.values(rows).shape) for rows in (case.every, [0])}
    return "; ".join(f"{shape} for {n} images" for n, shape in shapes.items() if shape != (n,))


def _type(case: Case) -> str:
    dtype = case.values(case.every).dtype
    return "" if dtype.is_floating_point else f"{dtype}"


def _values(case: Case) -> str:
    if case.whole.isnan().all():
        return "NaN for all six: give prompts that it can judge with --prompts"
    return f"{case.whole.tolist()}" if case.whole.isinf().any() else ""


def _determinism(case: Case) -> str:
    return case.difference(case.values(case.every), "in the same call again", exact=True)


def _inputs(case: Case) -> str:
    given, kept = case.inputs(case.every), case.inputs(case.every)
    case.score(*given)
    changed = [not given[0].equal(kept[0]), given[1] != kept[1], given[2] != kept[2]]
    names = compress(("images", "prompts", "metadata"), changed)
    return " and ".join(names) + " changed" * any(changed)


def _generators(case: Case) -> str:
    def states() -> dict[str, str]:
        return {
            "torch's": str(torch.get_rng_state().tolist()),
            "numpy's": repr(np.random.get_state()),
        }

    before = states()
    case.score(*case.inputs(case.every))
    return ", ".join(
        f"{name} was used" for name, state in states().items() if state != before[name]
    )


def _order(case: Case) -> str:
    return case.difference(case.values(case.every[::-1]).flip(0), "in reversed order")


def _singles(case: Case) -> str:
    return case.difference(torch.cat([case.values([i]) for i in case.every]), "alone")


def _gradient(case: Case) -> str:
    images, prompts, metadata = case.inputs(case.every)
    with torch.enable_grad():
        values = case.score(images.requires_grad_(), prompts, metadata)
        known = values[~values.isnan()].sum()
        found = (
            torch.autograd.grad(known, images)[0]
            if known.requires_grad
            else torch.zeros_like(images)
        )
    if not found.isfinite().all():
        return "one that is not finite"
    return (
        case.difference(values.detach().cpu(), "with a gradient")
        if found.any()
        else "zero everywhere"
    )


def _threads(case: Case) -> str:
    score = torch.no_grad()(lambda _: case.values(case.every))
    with ThreadPoolExecutor(2) as pool:
        differences = [case.difference(each, "in a thread") for each in pool.map(score, range(4))]
    return next(filter(None, differences), "")


def _bare(case: Case) -> str:
    images, *_ = case.inputs(case.every)
    shape = tuple(torch.as_tensor(case.score(images, [""] * 6, [{} for _ in case.every])).shape)
    return "" if shape == (6,) else f"shape {shape}"


CHECKS: dict[str, tuple[Callable[[Case], str], str, str]] = {
    "call": (
        _call,
        "",
        "takes (images or sequences, prompts, metadata): 6 images (6, 3, 64, 64) in [0, 1], or 6 "
        "sequences (6, 100, letters), one-hot",
    ),
    "shape": (_shape, "call", "returns a number an image: shape (6,) for 6, (1,) for 1"),
    "type": (_type, "call", "returns floating-point numbers"),
    "values": (_values, "shape type", "returns finite numbers, or NaN for no value"),
    "determinism": (_determinism, "values", "returns the same in the same call again"),
    "inputs": (_inputs, "call", "leaves images, prompts and metadata as they were"),
    "generators": (
        _generators,
        "call",
        "leaves the global random generators of torch and numpy alone",
    ),
    "order": (_order, "determinism", "returns values in the order of the images"),
    "singles": (
        _singles,
        "determinism",
        "returns for a batch what it returns for each image alone",
    ),
    "gradient": (
        _gradient,
        "values",
        "passes a gradient on to the images, without a change of values",
    ),
    "threads": (_threads, "determinism", "returns the same in two threads at once, under no_grad"),
    "bare": (
        _bare,
        "shape",
        "accepts an empty prompt and empty metadata (NaN if it can say nothing)",
    ),
}
"""Name -> the check, which says what it found in the place of what was expected (nothing where all
is well); the checks without which it means nothing; what it expects."""


def findings(case: Case) -> Iterator[Finding]:
    """Every check in order, each made when it is asked for.

    Checks that this reward has no use for are left out.
    """
    passed: set[str] = set()
    idle = {"singles"} if groupwise(case.score) else set()
    idle |= set() if getattr(case.score, "differentiable", False) else {"gradient"}
    for name, (check, needs, expected) in CHECKS.items():
        if name in idle:
            continue
        if missing := [other for other in needs.split() if other not in passed]:
            yield Finding(name, expected, f"nothing, since {missing[0]} comes first", None)
            continue
        try:
            finding = check(case)
        except Exception as error:  # a reward may raise anything
            finding = f"{type(error).__name__}: {error}"
        passed |= set() if finding else {name}
        yield Finding(name, expected, finding, not finding)

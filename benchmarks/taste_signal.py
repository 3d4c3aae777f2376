"""What four pairs tell of a user, and how much of it is in a taste.

    python benchmarks/taste_signal.py runs/users '{pretrained: emoji_reader, reading: apart,
        instruction: "What does this picture look like?"}'

R^2 of each weight of the reward `emoji_taste` for the unseen users: of the ideal observer's mean,
who knows the features of every picture and all tastes that a user may have; of a ridge regression
from the features' mean differences, as a taste is that is read apart; and of one from the taste
`vlm` of such options. Both are fitted on the seen users. `cosine` is that of the weights that are
told and those that are. Prints one JSON object.
"""

import importlib
import json
import sys
from collections import Counter
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ddpo import prompts, tastes
from ddpo.images import from_pil
from ddpo.prompts import Prompt
from ddpo.tastes import Known
from ddpo.tastes._pairs import user_of

CONTEXTS = 4
"""Choices of four pairs of each user."""

PENALTY = 100.0
"""Of the ridge regression, on standardized states."""


def main(folder: str, options: str) -> None:
    formulas: Any = importlib.import_module("ddpo.rewards.emoji_taste")
    read = [_read(Path(folder), split, yaml.safe_load(options)) for split in ("seen", "unseen")]
    (states, contexts, rows), (new_states, new_contexts, new_rows) = read
    weights, new = (_weights(formulas, each) for each in (rows, new_rows))
    steps, new_steps = (_steps(formulas, each) for each in (contexts, new_contexts))
    told = {
        "ideal observer": _ideal(formulas, new_steps),
        "features, read apart": _ridge(_apart(steps), weights, _apart(new_steps)),
        options: _ridge(states, weights, new_states),
    }
    found = {name: _quality(formulas, each, new) for name, each in told.items()}
    print(json.dumps(found, indent=1))


def _read(folder: Path, split: str, options: dict[str, Any]) -> tuple[Tensor, Any, list[Prompt]]:
    """Tastes of `CONTEXTS` choices of each user's pairs, these pairs, and whose they are."""
    rows = prompts.load(path=folder / f"{split}.jsonl", repeats=True)
    known = Known(rows, ["emoji_taste"], folder, 1, torch.device("cpu"))
    source: Any = tastes.build("vlm", known, **options)
    taken, kept = Counter[str | None](), list[Prompt]()
    for row in rows.prompts:
        taken[user_of(row)] += 1
        if taken[user_of(row)] <= CONTEXTS:
            kept.append(row)
    contexts = [source.users.context(row, 0) for row in kept]
    states = torch.stack([source.of(context).flatten() for context in contexts]).double()
    return states, contexts, kept


def _weights(formulas: Any, rows: list[Prompt]) -> Float[Tensor, "N 4"]:
    users = [int(str(user_of(row))[1:]) for row in rows]
    return torch.tensor([list(formulas.taste(user).values()) for user in users]).double()


def _steps(formulas: Any, contexts: Any) -> Float[Tensor, "N P 4"]:
    """Features of the chosen picture minus those of the rejected one, of each pair."""
    files = sorted({file for pairs in contexts for p in pairs for file in (p.chosen, p.rejected)})
    values = formulas.features(from_pil([Image.open(file) for file in files]))
    features = torch.stack([values[name] for name in formulas.FEATURES], 1).double()
    of = dict(zip(files, features, strict=True))
    each = [[of[pair.chosen] - of[pair.rejected] for pair in pairs] for pairs in contexts]
    return torch.stack([torch.stack(steps) for steps in each])


def _ideal(formulas: Any, steps: Float[Tensor, "N P 4"]) -> Float[Tensor, "N 4"]:
    """The mean of all tastes, equally likely, by which all choices are right."""
    possible = []
    for (first, second), signs in product(permutations(range(4), 2), product((1, -1), repeat=2)):
        row = torch.zeros(4).double()
        row[first], row[second] = signs[0], signs[1] * formulas.SECOND
        possible.append(row)
    tastes = torch.stack(possible)
    return torch.stack([tastes[(each @ tastes.T > 0).all(0)].mean(0) for each in steps])


def _apart(steps: Float[Tensor, "N P 4"]) -> Float[Tensor, "N 4"]:
    """As the taste `vlm` scales what it reads apart."""
    mean = steps.mean(1)
    return mean / mean.square().mean(1, keepdim=True).sqrt()


def _ridge(states: Tensor, weights: Tensor, new: Tensor) -> Float[Tensor, "N 4"]:
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    x, z = (states - mean) / deviation, (new - mean) / deviation
    square = x.T @ x + PENALTY * torch.eye(x.shape[1]).double()
    return z @ torch.linalg.solve(square, x.T @ (weights - weights.mean(0))) + weights.mean(0)


def _quality(formulas: Any, told: Tensor, weights: Tensor) -> dict[str, float]:
    error = (told - weights).square().sum(0) / (weights - weights.mean(0)).square().sum(0)
    found = dict(zip(formulas.FEATURES, (1 - error).tolist(), strict=True))
    found["cosine"] = cosine_similarity(told, weights).mean().item()
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What four pairs tell of a user, and how much of it is in a taste.

    python benchmarks/taste_signal.py runs/users '{pretrained: emoji_reader}'

R^2 of each weight of the reward `emoji_taste` for the unseen users: of the ideal observer's mean,
who knows the features of every picture and all tastes that a user may have, and of a ridge
regression from the taste `vlm` of such options, fitted on the seen users. `cosine` is that of the
weights that are told and those that are. Prints one JSON object.
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
    (states, _, rows), (new_states, new_contexts, new_rows) = read
    weights, new = (_weights(formulas, each) for each in (rows, new_rows))
    observer = _ideal(formulas, new_contexts)
    found = {"ideal observer": _quality(formulas, observer, new)}
    found[options] = _quality(formulas, _ridge(states, weights, new_states), new)
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


def _ideal(formulas: Any, contexts: Any) -> Float[Tensor, "N 4"]:
    """The mean of all tastes, equally likely, by which all four choices are right."""
    possible = []
    for (first, second), signs in product(permutations(range(4), 2), product((1, -1), repeat=2)):
        row = torch.zeros(4).double()
        row[first], row[second] = signs[0], signs[1] * formulas.SECOND
        possible.append(row)
    tastes = torch.stack(possible)
    files = sorted({file for pairs in contexts for p in pairs for file in (p.chosen, p.rejected)})
    values = formulas.features(from_pil([Image.open(file) for file in files]))
    features = torch.stack([values[name] for name in formulas.FEATURES], 1).double()
    of = dict(zip(files, features, strict=True))
    means = []
    for pairs in contexts:
        steps = torch.stack([of[pair.chosen] - of[pair.rejected] for pair in pairs])
        right = (steps @ tastes.T > 0).all(0)
        means.append(tastes[right].mean(0))
    return torch.stack(means)


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

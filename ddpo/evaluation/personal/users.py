"""Win rates of pictures drawn to users' tastes, each judged by the user's own reward."""

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpo import prompts
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.evaluation import stats
from ddpo.images import from_pil
from ddpo.prompts import PromptSet
from ddpo.rewards import Reward
from ddpo.rollout import pairs as recorded
from ddpo.tastes._pairs import Users, check_apart

Scores = Float[NDArray[np.float64], "users pictures"]

LIKELY = 0.5
"""The win rate of pictures that are no better."""


class Asked(NamedTuple):
    """Users with their tastes, and the texts and seeds at which all are drawn."""

    users: Sequence[str]
    tastes: Sequence[Tensor]
    texts: Sequence[str]
    seeds: Sequence[int]


Draw = Callable[[Asked, str, Tensor | None], list[Image.Image]]
"""The pictures of all texts by "base" or "tuned", to a taste."""


class Column(NamedTuple):
    """A way to draw each user's pictures, as "personal", and their scores by the user's reward."""

    name: str
    scores: Scores


def win_rates(
    personal: Scores, others: Sequence[Column], users: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of personal pictures over those of each other column at the same prompts and seeds.

    {"base": {"win_rate", "low", "high", "users": {user: win rate}}}. A tie counts half. The 95 %
    interval is over users (`stats.paired`): who was asked is what was drawn.
    """
    return {column.name: _over(personal, column.scores, users) for column in others}


def _over(personal: Scores, other: Scores, users: Sequence[str]) -> dict[str, Any]:
    wins = np.sign(personal - other) / 2 + LIKELY  # NaN where one has no value
    names = [user for user in users for _ in range(wins.shape[1])]
    interval = stats.paired(np.zeros(wins.size), wins.ravel(), names)
    each = {user: stats.win_rate(other[i], personal[i]) for i, user in enumerate(users)}
    low, high = np.clip([interval["low"], interval["high"]], 0, 1).tolist()
    rates = {"win_rate": interval["mean"], "low": low, "high": high}
    return {**rates, "users": each}


def lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One for each column that personal pictures are compared with."""
    return [
        f"personal beats {name} in {row['win_rate']:.1%} of the pictures "
        f"({row['low']:.1%} to {row['high']:.1%}, {len(row['users'])} users)"
        for name, row in results.items()
    ]


def asked(
    taste: Any, training: PromptSet, file: Path, count: int, seed: int, seen: bool = False
) -> Asked:
    """The users of a file of pairs; a taste is read of the first pairs of each.

    `count` texts are taken evenly from the `training` prompts. Raises UserError where tastes are
    not told by pairs and, unless `seen`, for users who were trained on.
    """
    if taste.asks != "pairs":
        raise UserError(f"--pairs: a taste of this run is told by --{taste.asks}")
    rows = prompts.load(path=file, repeats=True)
    recorded.check(rows, file.parent)
    if not seen:
        check_apart(training.prompts, rows.prompts)
    known = Users(rows, file.parent, taste.count - 1).pairs
    texts = list(dict.fromkeys(prompt.text for prompt in training.prompts))
    chosen = [texts[len(texts) * i // count] for i in range(min(count, len(texts)))]
    tastes = [taste.of(pairs[: taste.count]) for pairs in known.values()]
    return Asked(list(known), tastes, chosen, range(seed, seed + len(chosen)))


def check_comparable(own: Config, other: Config, name: str) -> None:
    """Raises UserError where another run's pictures are of another base or another sampler.

    `name` is what the other run is called.
    """
    samplers = [each.sampler.model_dump(exclude={"batch_size"}) for each in (own, other)]
    for what, mine, its in (
        ("model.pretrained", own.model.pretrained, other.model.pretrained),
        ("sampler", *samplers),
        ("evaluation.sampler", own.evaluation.sampler, other.evaluation.sampler),
    ):
        if mine != its:
            raise UserError(
                f"--against: {name} has another {what} than this run; pictures at one seed are "
                "compared only where nothing but the training differs"
            )


def compare(
    draw: Draw,
    who: Asked,
    judge: Reward,
    against: Mapping[str, list[Image.Image]] = types.MappingProxyType({}),
) -> tuple[dict[str, Any], list[list[Image.Image]]]:
    """Win rates by each user's own reward, and the pictures: base, nobody's, those of `against`,
    then each user's.

    `judge` is given the user in the metadata. `against` are other models' pictures of these texts
    at these seeds, by the models' names. In the last of the rates a user gets the next one's
    pictures.
    """
    base, nobody = draw(who, "base", None), draw(who, "tuned", None)
    personal = [draw(who, "tuned", taste) for taste in who.tastes]

    def scores(pictures: Sequence[list[Image.Image]]) -> Scores:
        return np.stack(
            [_scored(judge, who, *each) for each in zip(who.users, pictures, strict=True)]
        )

    own, count = scores(personal), len(who.users)
    plain = Column("base", scores([base] * count))
    others = {"nobody": nobody, **against}
    columns = [Column(name, scores([each] * count)) for name, each in others.items()]
    results = win_rates(own, [plain, *columns], who.users)
    exchanged = scores([*personal[1:], personal[0]])
    results["base with another user's taste"] = win_rates(exchanged, [plain], who.users)["base"]
    return results, [base, *others.values(), *personal]


@torch.no_grad()
def _scored(judge: Reward, who: Asked, user: str, pictures: list[Image.Image]) -> Any:
    metadata = [{"user": user}] * len(pictures)
    return judge(from_pil(pictures), who.texts, metadata).double().numpy()

"""Recorded preferences of users: which of two pictures they chose.

A line reads {"user": "anna", "prompt": "a fox", "chosen": "a.png", "rejected": "b.png"}; the paths
are relative to the file.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ddpo import prompts
from ddpo.errors import UserError
from ddpo.prompts import Prompt, PromptSet
from ddpo.rollout import pairs as recorded


@dataclass(frozen=True)
class Pair:
    """One preference; the pictures are files."""

    prompt: str
    chosen: Path
    rejected: Path

    def content(self) -> str:
        """The same for the same preference, whatever its files are called."""
        files = [sha256(file.read_bytes()).hexdigest() for file in (self.chosen, self.rejected)]
        return sha256("\n".join([self.prompt, *files]).encode()).hexdigest()


def pair_of(prompt: Prompt, folder: Path) -> Pair | None:
    """That of a prompt's columns `chosen` and `rejected`; None without them."""
    files = [prompt.metadata.get(column) for column in recorded.COLUMNS]
    if None in files:
        return None
    return Pair(prompt.text, *(folder / str(file) for file in files))


def read(file: Path) -> list[Pair]:
    """The pairs of a jsonl file, all of one user. Raises UserError for a line that is none."""
    rows = prompts.load(path=file, repeats=True)
    recorded.check(rows, file.parent)
    users = {str(row.metadata["user"]) for row in rows if "user" in row.metadata}
    if len(users) > 1:
        raise UserError(f"--pairs: {file} holds {len(users)} users; give the pairs of one")
    return [pair for row in rows if (pair := pair_of(row, file.parent)) is not None]


class Users:
    """The pairs of each user, and what may be read of them beside a pair that is trained on.

    Raises UserError where a user has too few, and where a pair stands twice: it would be read of
    while it is trained on.
    """

    def __init__(self, rows: PromptSet, folder: Path, needed: int) -> None:
        self.folder, self.needed = folder, needed
        self.pairs: dict[str, list[Pair]] = {}
        places: dict[tuple[str, frozenset[str]], int] = {}
        for number, row in enumerate(rows.prompts, 1):
            user, pair = user_of(row), pair_of(row, folder)
            if user is None or pair is None:
                continue
            files = (pair.chosen, pair.rejected)
            pictures = frozenset(sha256(file.read_bytes()).hexdigest() for file in files)
            if (first := places.setdefault((user, pictures), number)) != number:
                raise UserError(
                    f"prompts.path: pair {number} of {rows.name} is pair {first} of user {user} "
                    "again, and would be read while it is trained on; leave one out"
                )
            self.pairs.setdefault(user, []).append(pair)
        for user, pairs in self.pairs.items():
            if len(pairs) <= needed:
                raise UserError(
                    f"prompts.path: user {user} has {len(pairs)} pairs; {needed} that are read and "
                    f"one that is trained on are {needed + 1}"
                )

    def context(self, row: Prompt, number: int) -> list[Pair]:
        """`needed` pairs of the row's user, never its own; another choice for each number."""
        user, own = user_of(row), pair_of(row, self.folder)
        others = [pair for pair in self.pairs[str(user)] if pair != own]
        dice = random.Random(f"{user} {own} {number}")
        return dice.sample(others, self.needed)


def user_of(prompt: Prompt) -> str | None:
    """The column `user` of a prompt; None without one."""
    user = prompt.metadata.get("user")
    return None if user is None else str(user)


def check_apart(seen: Sequence[Prompt], unseen: Sequence[Prompt]) -> None:
    """Raises UserError where a user whom a model has not seen was trained on."""
    known = {user_of(row) for row in seen} & {user_of(row) for row in unseen}
    both = sorted(user for user in known if user is not None)
    if both:
        raise UserError(
            f"--pairs: user {both[0]} was trained on ({len(both)} of these users were); "
            "give users who were not"
        )

"""One picture of what new users get: prompts down, users across, each by what the user likes.

    python benchmarks/personal_picture.py RUN_DIR runs/users/unseen.jsonl OUT.png

The first users of the file whose first interests differ, four pairs read of each; all pictures of
a row are drawn at one seed. What a user likes is written above by the formula, which the model was
not given.
"""

import importlib
import sys
from pathlib import Path

from ddpo.building import build
from ddpo.evaluation.personal import users
from ddpo.evaluation.table import table
from ddpo.models.emoji.reader.model import LOOKS
from ddpo.runs.finished import Run

PROMPTS = 6


def interests(user: str) -> list[str]:
    """The words for what a user likes, the first interest first."""
    taste = importlib.import_module("ddpo.rewards.emoji_taste").taste
    liked = sorted(taste(int(user[1:])).items(), key=lambda item: -abs(item[1]))
    return [LOOKS[name][weight < 0] for name, weight in liked if weight]


def main(run_dir: str, pairs: str, out: str, first_seed: str = "0") -> None:
    run = Run(run_dir)
    training = build.plain_prompts(run.config)
    who = users.asked(run.taste, training, Path(pairs), PROMPTS, int(first_seed))
    order = [word for words in LOOKS.values() for word in words]
    firsts = {interests(user)[0]: i for i, user in reversed(list(enumerate(who.users)))}
    columns = {"the base": run.sample(who.texts, who.seeds, "base")}
    for word in sorted(firsts, key=order.index):
        i = firsts[word]
        label = f"likes {word}, a bit {interests(who.users[i])[1]}"
        columns[label] = run.sample(who.texts, who.seeds, taste=who.tastes[i])
    cells = [list(row) for row in zip(*columns.values(), strict=True)]
    title = "New users, of whom the model read four preferences\nEach row has one prompt and seed."
    table(cells, who.texts, list(columns), title=title).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

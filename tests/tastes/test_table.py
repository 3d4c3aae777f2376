"""Users who are known by their names."""

from pathlib import Path

import helpers
import pytest
import torch

from ddpo import tastes
from ddpo.errors import UserError
from ddpo.parallel.seeds import generator
from ddpo.prompts import Prompt, PromptSet
from ddpo.tastes import Known, PersonalPrompts

USERS = PromptSet("u", tuple(Prompt("a fox", {"user": user}, user) for user in ("bo", "al", "bo")))
KNOWN = Known(USERS, ["a"], Path(), 1, torch.device("cpu"))


def test_each_user_has_a_place() -> None:
    made = tastes.build("table", KNOWN)
    prompts = PersonalPrompts("u", USERS.prompts, made, 0.0)
    assert made.shape == (1, 2)
    for index, row in ((0, [[0, 1]]), (1, [[1, 0]])):
        prompt = prompts.drawn(index, generator(0))
        assert prompt.taste is not None and prompt.taste.tolist() == row
        assert prompt.key == f"{USERS[index].key} | {USERS[index].metadata['user']}"
    assert made.shown(Prompt("a fox")).taste is None  # held-out prompts are nobody's


def test_an_unknown_user_is_refused() -> None:
    with pytest.raises(UserError, match=r"--user: 'cy' was not trained on.*a table knows no other"):
        tastes.build("table", KNOWN).of("cy")
    words = PromptSet("w", tuple(helpers.as_prompts(["x"])))
    with pytest.raises(UserError, match="prompts with a column user"):
        tastes.build("table", Known(words, ["a"], Path(), 1, torch.device("cpu")))

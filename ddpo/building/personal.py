"""Prompts to somebody's taste, where the model has layers for it."""

from pathlib import Path
from typing import cast

import torch

from ddpo import tastes
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.parallel import ranks
from ddpo.prompts import PromptSet
from ddpo.rewards import short_name
from ddpo.tastes import Known, PersonalPrompts, Taste
from ddpo.tastes._pairs import user_of


def source(settings: Config, training: PromptSet) -> Taste:
    """Where the tastes of a run with model.taste come from.

    `training` are its prompts. Raises UserError for layers of another size.
    """
    own = settings.model.taste
    assert own is not None
    weighed = [short_name(r.name, r.label) for r in settings.rewards if r.weight]
    folder = Path(str(settings.prompts.path)).expanduser().parent
    known = Known(training, weighed, folder, own.tokens, cast(torch.device, ranks.state().device))
    made = tastes.build(own.name, known, **own.options)
    if made.shape != (own.tokens, own.dim):
        tokens, dim = made.shape
        raise UserError(
            f"model.taste: tokens {own.tokens} and dim {own.dim}, but a taste of {own.name} is "
            f"{tokens} x {dim} here; set tokens {tokens} and dim {dim}"
        )
    return made


def personal(settings: Config, prompts: PromptSet, training: PromptSet) -> PromptSet:
    """The prompts with tastes, where the model has layers for them; else as they are.

    Raises UserError for users of whom the `training` prompts tell nothing.
    """
    own = settings.model.taste
    if own is None:
        return prompts
    made = source(settings, training)
    if made.asks != "weights":
        _refuse_strangers(prompts, training)
    return PersonalPrompts(prompts.name, prompts.prompts, made, own.dropout, shares=prompts.shares)


def _refuse_strangers(prompts: PromptSet, training: PromptSet) -> None:
    """Their pictures would be nobody's, and look like theirs."""
    known = {user_of(prompt) for prompt in training.prompts} | {None}
    strangers = sorted(
        {str(user) for row in prompts.prompts if (user := user_of(row)) not in known}
    )
    if strangers:
        raise UserError(
            f"evaluation.prompts: {prompts.name}: user {strangers[0]} was not trained on "
            f"({len(strangers)} of these users were not), and has a taste in ddpo users RUN "
            "--pairs FILE alone"
        )

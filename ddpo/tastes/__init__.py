"""What a user's taste is, as numbers: where they come from, and which prompts get which.

A taste is a file here, or in a plugin's `tastes` folder: a class

    class NAME:
        asks = "user"
        def __init__(self, known: Known, *, own options): ...

that has, besides, what `Taste` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, where
from ddpo.prompts import Prompt, PromptSet

__path__ = [*__path__, *plugins.folders("tastes")[1:]]


@dataclass(frozen=True)
class Known:
    """What a taste may be made of.

    prompts  those of training, with their metadata
    rewards  the names of those that have a weight, in order
    folder   what the paths of image files in the prompts' metadata are relative to
    tokens   of a taste, as the model is built for: K
    device   where a network that reads pictures computes
    """

    prompts: PromptSet
    rewards: Sequence[str]
    folder: Path
    tokens: int
    device: torch.device


class Taste(Protocol):
    """A source of tastes.

    asks   what tells one on the command line: "weights", "user" or "pairs"
    shape  (K, D) of a taste
    """

    asks: ClassVar[str]
    shape: tuple[int, int]

    def of(self, told: Any) -> Float[Tensor, "K D"]:
        """The taste that a user of the finished model tells. Raises UserError for none."""
        ...

    def drawn(self, prompt: Prompt, noise: torch.Generator) -> Prompt:
        """The prompt as an iteration gets it."""
        ...

    def shown(self, prompt: Prompt) -> Prompt:
        """The prompt for pictures that are shown and judged: always to the same taste."""
        ...


@dataclass(frozen=True)
class PersonalPrompts(PromptSet):
    """Prompts with somebody's taste.

    dropout  share of an iteration's prompts that are nobody's: it keeps a mode without a taste, and
             users are not learned by heart
    """

    source: Taste
    dropout: float

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptSet: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptSet:
        if isinstance(index, slice):
            whole = self.whole or len(self)
            return replace(self, prompts=self.prompts[index], whole=whole, shares=())
        return self.source.shown(self.prompts[index])

    def drawn(self, index: int, noise: torch.Generator) -> Prompt:
        prompt = self.prompts[index]
        if torch.rand((), generator=noise) < self.dropout:
            return prompt
        return self.source.drawn(prompt, noise)


def build(name: str, known: Known, **options: Any) -> Taste:
    """Find a taste by name. Raises UserError where there is none, or it cannot be built."""
    target = cast(Any, plugins.load("tastes", name))
    try:
        return target(known, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"taste {name} cannot be built: {where(error)}") from error

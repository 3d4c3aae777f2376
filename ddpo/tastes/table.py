"""One learned embedding per known user."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.errors import UserError, nearest
from ddpo.prompts import Prompt
from ddpo.tastes import Known
from ddpo.tastes._pairs import user_of


class table:
    """A taste is one of the users in the prompts' column `user`, and knows no other.

    u is the user's one-hot vector, so that the columns of the projection are the users' embeddings.
    It cannot generalize: of a user who was not trained on it knows nothing.
    """

    asks: ClassVar[str] = "user"

    def __init__(self, known: Known) -> None:
        users = {user for prompt in known.prompts.prompts if (user := user_of(prompt)) is not None}
        if not users:
            raise UserError("model.taste: table needs prompts with a column user")
        self.users = sorted(users)
        self.shape = (1, len(self.users))

    def of(self, told: Any) -> Float[Tensor, "1 U"]:
        if told not in self.users:
            raise UserError(
                f"--user: {told!r} was not trained on, and a table knows no other"
                f"{nearest(str(told), self.users)}"
            )
        return torch.eye(len(self.users))[[self.users.index(told)]]

    def drawn(self, prompt: Prompt, noise: torch.Generator) -> Prompt:
        return self.shown(prompt)

    def shown(self, prompt: Prompt) -> Prompt:
        user = user_of(prompt)
        if user not in self.users:
            return prompt
        return replace(prompt, key=f"{prompt.key} | {user}", taste=self.of(user))

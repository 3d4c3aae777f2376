"""All 297 prompts that the emoji world composes: its animals in four wordings, and its
activities."""

from ddpo import prompts
from ddpo.models.emoji.scenes import ANIMALS, PREFIXES


def composed() -> list[str]:
    """Held-out animals and combinations are not among them."""
    animals = [prefix + animal for animal in ANIMALS for prefix in ("", *PREFIXES)]
    return [*animals, *(prompt.text for prompt in prompts.load("activities"))]

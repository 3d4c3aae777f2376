"""Prompts a network call at a time."""

from collections.abc import Sequence


def cut(texts: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """So many at a time."""
    return [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]

"""What the options of several rewards have in common."""

import math
from collections.abc import Sequence

from ddpo.rewards import UserError


def check(option: str, value: float, least: float = 1, most: float = math.inf) -> None:
    """Raises UserError unless `value` lies in this range, its ends included."""
    if not (least <= value <= most and math.isfinite(value)):  # NaN is neither
        remedy = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise UserError(f"{option}: {value:g}; take {remedy}")


def check_server(reward: str, timeout_s: float, retries: int) -> None:
    """The two options of both rewards that ask a server."""
    check(f"{reward}.timeout_s", timeout_s, 0.001, 86400)
    check(f"{reward}.retries", retries, 0)


def check_jpeg(option: str, quality: int | None) -> None:
    """None: no JPEG. Pillow would take another quality for 0 and for 101 without a word."""
    check(option, 1 if quality is None else quality, 1, 100)


def cut(texts: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """So many at a time."""
    return [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]

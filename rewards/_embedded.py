"""The embedded world's weights, which every reward knows by the name `emoji`."""

from importlib.resources import files
from typing import Literal

from ._weights import expanded


def folder(name: str, part: Literal["captioner", "pipeline", "clip"]) -> str:
    """The folder of this part of the embedded world if `name` is emoji, of its reader of
    looks if that is emoji_reader.

    Otherwise it is `name`, its ~ expanded.
    """
    weights = files("ddpo") / "models" / "emoji" / "weights"
    if name == "emoji":
        return str(weights / part)
    if name == "emoji_reader":
        return str(weights / "reader")
    return expanded(name)

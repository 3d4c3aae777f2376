"""The embedded world's weights, which every reward knows by the name `emoji`."""

from importlib.resources import files
from typing import Literal

from ._weights import expanded


def folder(name: str, part: Literal["captioner", "pipeline", "clip"]) -> str:
    """The folder of this part of the embedded world if `name` is emoji.

    Otherwise it is `name`, its ~ expanded.
    """
    if name == "emoji":
        return str(files("ddpo") / "models" / "emoji" / "weights" / part)
    return expanded(name)

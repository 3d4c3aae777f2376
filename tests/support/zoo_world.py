"""The embedded world's second judge needs no tiny model: its own weights are one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "emoji_clip": lambda at: {},
    "emoji_taste": lambda at: {"user": 7},
}
"""Each reward's options with such models below a folder."""

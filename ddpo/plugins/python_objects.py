"""A reward that is given from Python, a notebook's way: `rewards=[{"name": my_function}]`.

A configuration is text. There the object is called `python:module:qualname`, and as long as the
process lives this text carries the object with it. Another process has the text alone, and finds
the object again only where it stands at the top of a module that can be imported.
"""

import importlib
import sys
from functools import partial
from operator import attrgetter
from typing import Any

MARK = "python:"


class Given(str):
    """The text that stands for an object given from Python, and the object.

    `reachable`: the object is what its module holds under its name. Closures, lambdas and instances
    are not, and what their values depend on cannot be read from a file.
    """

    thing: Any
    reachable: bool

    def __new__(cls, thing: object) -> "Given":
        named: Any = thing
        while isinstance(named, partial):
            named = named.func
        named = named if hasattr(named, "__qualname__") else type(named)
        module, name = str(named.__module__), named.__qualname__
        reachable = _attribute(sys.modules.get(module), name) is thing
        made_inside = "" if reachable or "<" in name else "()"
        made = super().__new__(cls, f"{MARK}{module}:{name}{made_inside}")
        made.thing, made.reachable = thing, reachable
        return made

    def __deepcopy__(self, memo: object) -> "Given":
        return self


def find(spec: str) -> object | None:
    """What a text with the mark stands for; None where only the process that gave it knows that."""
    if isinstance(spec, Given):
        return spec.thing
    module, _, name = spec.removeprefix(MARK).partition(":")
    if module == "__main__" or not name.replace(".", "").isidentifier():
        return None
    try:
        return _attribute(importlib.import_module(module), name)
    except Exception:  # a module may raise anything
        return None


def short_name(spec: str) -> str:
    """Its name in metrics: `redness` for python:__main__:make.<locals>.redness."""
    return spec.rpartition(":")[2].removesuffix("()").rpartition(".")[2].strip("<>")


def absent(spec: str) -> str:
    """The words that refuse a text whose object is not here."""
    name = short_name(spec)
    again = f"ddpo.finetune(ddpo.Config(..., rewards=[{{'name': {name}}}]), resume=True)"
    return (
        f"{name} was given from Python ({spec}) and is not here; "
        f"give it again from Python, as in {again}"
    )


def _attribute(module: object, name: str) -> object | None:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None

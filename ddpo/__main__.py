"""Reward fine-tuning of diffusion models."""

import ast
import importlib
import sys
from pathlib import Path

from ddpo.commands import frame
from ddpo.errors import UserError, nearest

DOORS = ("train", "evaluate")
"""The commands that launchers start too, `-m ddpo.train`; the other modules are in
ddpo/commands/."""

LOOKING = ("report", "watch", "compare", "push")
"""Those in ddpo/commands/looking/."""

COMMANDS = (
    "train",
    "plan",
    "evaluate",
    "sample",
    "grid",
    "users",
    "report",
    "watch",
    "compare",
    "export",
    "push",
    "score",
    "serve",
    "check",
    "list",
    "schema",
)
"""In the order of --help. A command is the function `main(argv)` of the module of its name."""


def main(argv: list[str] | None = None) -> int:
    """`ddpo COMMAND [...]`: the exit code."""
    return frame.run(_dispatch, sys.argv[1:] if argv is None else argv)


def script() -> None:
    """The program `ddpo`."""
    frame.leave(main())


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"{argv[0]}: no such command{nearest(argv[0], COMMANDS)}")
    return importlib.import_module(module(argv[0])).main(argv[1:])


def module(name: str) -> str:
    """The module of a command."""
    if name in DOORS:
        return f"ddpo.{name}"
    return f"ddpo.commands.{'looking.' * (name in LOOKING)}{name}"


def _help() -> str:
    """The commands with their first docstring lines.

    They are read without importing: help must not wait for torch.
    """
    lines = [f"{__doc__}\n\nusage: ddpo COMMAND [--help] [--debug] ...\n"]
    here = Path(__file__).parent
    for name in COMMANDS:
        file = here.parent / f"{module(name).replace('.', '/')}.py"
        tree = ast.parse(file.read_text(encoding="utf-8"))
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        lines.append(f"  {name:10}{summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    script()

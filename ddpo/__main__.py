"""Reward fine-tuning of diffusion models."""

import ast
import importlib
import sys
from pathlib import Path

from ddpo import command
from ddpo.errors import UserError, nearest

COMMANDS = {
    "train": "train", "plan": "plan", "evaluate": "evaluate", "sample": "sample", "grid": "compare",
    "export": "export_run", "score": "score", "serve": "serve", "check": "check", "list": "catalogue",
}  # fmt: skip
"""Command -> module of this package, whose `main(argv)` it is."""


def main(argv: list[str] | None = None) -> int:
    """`ddpo COMMAND [...]`: the exit code."""
    return command.run(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"{argv[0]}: no such command{nearest(argv[0], COMMANDS)}")
    return importlib.import_module(f"ddpo.{COMMANDS[argv[0]]}").main(argv[1:])


def _help() -> str:
    """The commands with their first docstring lines, read without importing: help must not wait for torch."""
    lines = [f"{__doc__}\n\nusage: ddpo COMMAND [--help] [--debug] ...\n"]
    for name, module in COMMANDS.items():
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        lines.append(f"  {name:10}{summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

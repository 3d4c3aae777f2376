"""What every command has in common: one line for an error, the exit code, --debug.

The modules that launchers start, train and evaluate, end with
`leave(run(main, sys.argv[1:]))`.
"""

import argparse
import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ddpo.errors import DISK_FULL, Broken, Stopped, Told, UserError, refusal

# Threads of one computation wait for each other asleep, not spinning: on cores that other programs
# use, too, two that spin take turns for nothing. It counts from when torch is imported, which is
# later than here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Main = Callable[[list[str]], int | None]

BROKEN_PIPE = 128 + 13
"""The exit code of a program that SIGPIPE ends, as shells give it."""


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line, too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('ddpo ')}: {message}; see {self.prog} --help")

    def add_number(self, flag: str, hint: Any, *, help: str = "", **more: Any) -> None:
        """A numeric argument of one of the types of `ranges`, whose words --help repeats."""
        from pydantic import TypeAdapter, ValidationError  # here: most commands need no number

        from ddpo.config import words

        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        schema = adapter.json_schema()

        def number(text: str) -> Any:
            try:
                return adapter.validate_strings(text)
            except ValidationError as error:
                raise argparse.ArgumentTypeError(words.line(error, schema)) from error

        said = "; ".join(filter(None, [help, words.bounds(schema, schema)]))
        self.add_argument(flag, type=number, help=said, **more)


def mapping(text: str) -> dict[str, Any]:
    """The type of an argument that is a JSON object, as '{"quality": 50}'; no key stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in {name for name in names if names.count(name) > 1}:
            raise argparse.ArgumentTypeError(f"{name} stands twice in {text!r}; keep one")
        return dict(pairs)

    try:
        fields = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, as '{{\"quality\": 50}}'")
    return fields


def run(main: Main, argv: Sequence[str]) -> int:
    """Calls `main` with `argv` less --debug and gives the exit code.

    0 done, 1 a defect of ours, 2 the user's mistake or a library that refuses what is installed
    (nothing was written), 3 stopped in flight (the state is saved), 141 where nobody reads the
    output any more (`| head`), silently. On several processes rank 0 speaks, but a defect is told
    by the rank that met it.
    """
    debug, first = "--debug" in argv, os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ddpo").setLevel(logging.INFO if first else logging.ERROR)
    try:
        code = main([word for word in argv if word != "--debug"]) or 0
        sys.stdout.flush()  # here, not at the interpreter's end, where an error cannot be caught
        return code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return BROKEN_PIPE
        code, line = _verdict(error)
        if debug:
            traceback.print_exc()
        if first or isinstance(error, Broken) or (code == 1 and not isinstance(error, Told)):
            print(f"ddpo: {line}", file=sys.stderr)
        return code


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code; one of several that a launcher started, at once."""
    if "WORLD_SIZE" in os.environ:
        from ddpo.parallel import ranks  # here: no other command waits for torch

        ranks.leave(code)
    raise SystemExit(code)


def _nobody_reads() -> bool:
    """Whether the reader of our output has gone; what is still to be written is then dropped.

    A pipe to something else, a reward's server, say, breaks with the same error.
    """
    try:
        place = sys.stdout.fileno()
    except OSError:  # captured by whoever called us
        return False
    watched = select.poll()
    watched.register(place, 0)  # of a pipe without a reader an error is reported unasked
    gone = bool(watched.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return gone


def _verdict(error: BaseException) -> tuple[int, str]:
    if isinstance(error, (UserError, Stopped)):
        return 2 if isinstance(error, UserError) else 3, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 3, "interrupted; a training run goes on with `ddpo train --resume RUN_DIR`"
    if isinstance(error, OSError) and error.filename and error.strerror:
        full = error.errno in DISK_FULL
        remedy = "make room and give the same command again" if full else "name another place"
        return 3 if full else 2, f"{error.filename}: {error.strerror}; {remedy}"
    if line := refusal(error):
        return 2, line
    name = "" if isinstance(error, Told) else f"{type(error).__name__}: "
    message = " ".join(f"{name}{error}".split())
    return 1, f"internal error: {message}; run again with --debug for the traceback"

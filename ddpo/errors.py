"""The two errors that end a run with one line, not a traceback; the suggestion for a misspelt name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's mistake, found before anything is written: printed as one line, exit code 2."""


class Stopped(RuntimeError):
    """Stopped in flight with the state saved; the message says how to go on: exit code 3."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean clip_range?`, else `; known: a, b, c`."""
    names = sorted(set(known))
    lowered = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    if close:
        return f"; did you mean {lowered[close[0]]}?"
    return f"; known: {', '.join(names) or 'none'}"

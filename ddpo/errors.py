"""The errors that end a run with one line, not a traceback.

It also says what such a line tells of another's error.
"""

import difflib
import errno
import re
import sysconfig
import traceback
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

REFUSAL = re.compile(
    r"pip install|not installed|please (install|upgrade|update|use a version)"
    r"|requires? .{0,60}\b(version|upgrade|install)|version of \S+ you|(nvidia|gpu) driver",
    re.IGNORECASE,
)
"""How libraries word that they want another version, or something that is not installed."""


class UserError(ValueError):
    """The user's mistake, found before anything is written: printed as one line, exit code 2."""


class Stopped(RuntimeError):
    """Stopped in flight with the state saved; the message says how to go on: exit code 3."""


class Broken(Stopped):
    """A call of all ranks that broke off on this one: it says so itself, and leaves at once.

    The others wait within the call, where no word reaches them; the launcher ends them.
    """


class Told(RuntimeError):
    """A defect that another rank met, in the words that rank 0 prints."""


def where(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (mine.py, line 3)`; the place is in no library."""
    libraries = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the caller's own
    theirs = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    message = " ".join(f"{type(error).__name__}: {error}".split())
    last = next(reversed(theirs or frames), None)
    return f"{message} ({last.filename}, line {last.lineno})" if last else message


def refusal(error: BaseException) -> str:
    """The user's line where a library refuses its neighbors' versions or misses a package.

    Else empty.

    An import that fails is one, unless it is of ours, and so is an error that a library raised in
    such words. The library may have put it into another error.
    """
    chain = [error]
    while chain[-1].__cause__:
        chain.append(chain[-1].__cause__)
    for link in reversed(chain):
        message = " ".join(str(link).split())
        frames = traceback.extract_tb(link.__traceback__)
        library = _library(Path(frames[-1].filename)) if frames else ""
        if isinstance(link, ImportError):
            missing = isinstance(link, ModuleNotFoundError)
            top = (link.name or "").partition(".")[0]
            library = library or ("" if missing or top == "ddpo" else _installed(top))
            refused = bool(library) or (missing and top not in ("", "ddpo"))
        else:
            refused = bool(library and REFUSAL.search(message))
        if refused:
            by = f" (says {library})" if library else ""
            tested = "the versions that ddpo was tested with (its constraints.txt)"
            remedy = f"install what is asked for, or {tested}"
            return f"{message[:300]}{by}; {remedy}"
    return ""


def _library(file: Path) -> str:
    """Name and version of the installed package, other than ddpo, that a file belongs to.

    Else empty.
    """
    places = [
        i for i, part in enumerate(file.parts[:-1]) if part in ("site-packages", "dist-packages")
    ]
    top = file.parts[places[-1] + 1].removesuffix(".py") if places else ""
    return "" if top == "ddpo" else _installed(top)


def _installed(module: str) -> str:
    owners = packages_distributions().get(module)
    return f"{owners[0]} {version(owners[0])}" if owners else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: `; did you mean clip_range?` or `; known: a, b`."""
    names = sorted(set(known))
    lowered = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    if close:
        return f"; did you mean {lowered[close[0]]}?"
    return f"; known: {', '.join(names) or 'none'}"

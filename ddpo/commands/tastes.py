"""What a command line tells of a user's taste: `--weights`, `--user` or `--pairs`."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo.commands import frame
from ddpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ddpo.runs.finished import Run

FLAGS = ("weights", "user", "pairs")


def add_flags(parser: frame.Parser) -> None:
    """Each may be given several times, for several tastes."""
    for flag, about in {
        "weights": "of the rewards, for a run whose tastes they are: '{redness: 0.3, ...}'",
        "user": "one who was trained on, for a run with a table of them",
        "pairs": "a jsonl file of a user's preferences, lines {prompt, chosen, rejected} with "
        "image files, for a run that reads them; the user may be new",
    }.items():
        several = f"{about}; may be given several times"
        parser.add_argument(f"--{flag}", action="append", default=[], help=several)


def check_scale(given: object, told: Sequence[object]) -> None:
    """Raises UserError for a --taste_scale where no taste is told."""
    if given is not None and not told:
        flags = ", ".join(f"--{flag}" for flag in FLAGS)
        raise UserError(f"--taste_scale: there is no taste to scale; give one of {flags}")


def told(arguments: Namespace, run: "Run") -> "list[tuple[str, Tensor]]":
    """The tastes that the flags tell, each with a word for it.

    Raises UserError for a flag that the run's tastes are not told by.
    """
    given = [(flag, value) for flag in FLAGS for value in getattr(arguments, flag)]
    for flag, _ in given:
        if flag != run.taste.asks:
            raise UserError(f"--{flag}: a taste of this run is told by --{run.taste.asks}, only")
    words = {"pairs": lambda value: Path(value).stem, "weights": lambda value: value.strip("{ }")}
    return [
        (words.get(flag, str)(value), run.taste.of(_read(flag, value))) for flag, value in given
    ]


def _read(flag: str, value: str) -> Any:
    if flag == "weights":
        from ddpo.config import yaml_text

        return yaml_text.read("--weights", value)
    if flag == "pairs":
        from ddpo.tastes import _pairs

        return _pairs.read(Path(value))
    return value

"""One page of several runs: rewards over queries, time and KL, fronts of the judges, samples."""

import sys
from pathlib import Path

from ddpo.commands import frame


def main(argv: list[str]) -> None:
    """`ddpo compare RUN_DIR RUN_DIR ... [--out comparison]`."""
    parser = frame.Parser(prog="ddpo compare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run_dirs",
        nargs="+",
        metavar="run_dir",
        help="folders of runs; those that differ in the seed alone become one line",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), help="folder to write the page into"
    )
    arguments = parser.parse_args(argv)
    from ddpo.evaluation.pages import comparison

    print(comparison.write(arguments.run_dirs, arguments.out))


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

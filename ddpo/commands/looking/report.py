"""Write the page of a run or an evaluation anew, from what its folder holds; nothing is sampled."""

import sys
from pathlib import Path

from ddpo.commands import frame


def main(argv: list[str]) -> None:
    """`ddpo report RUN_DIR`."""
    parser = frame.Parser(prog="ddpo report", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run, or of an evaluation (its --out)")
    arguments = parser.parse_args(argv)
    from ddpo.evaluation import page

    page.check(arguments.run_dir)
    print(page.write(Path(arguments.run_dir)))


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

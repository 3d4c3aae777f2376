"""One picture: prompts down, base and checkpoints across, same seed, scores under each."""

import sys
from pathlib import Path

from ddpo.commands import frame
from ddpo.plugins.ranges import PositiveInt, Seed


def main(argv: list[str]) -> None:
    """`ddpo grid RUN_DIR [--prompts NAME_OR_FILE] [--count 6] [--seed 0] [--out FILE]`."""
    parser = frame.Parser(prog="ddpo grid", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run")
    parser.add_argument(
        "--prompts", help="a prompt set or a file of prompts; default: the run's own"
    )
    parser.add_number("--count", PositiveInt, default=6, help="prompts, evenly spaced over the set")
    parser.add_number("--seed", Seed, default=0, help="of every picture")
    parser.add_argument("--out", type=Path, help="picture to write; default: RUN_DIR/grid.png")
    arguments = parser.parse_args(argv)
    from ddpo.runs.judge import grid

    out = arguments.out or Path(arguments.run_dir) / "grid.png"
    grid(arguments.run_dir, arguments.prompts, arguments.count, arguments.seed).save(out)
    print(out)


if __name__ == "__main__":
    raise SystemExit(frame.run(main, sys.argv[1:]))

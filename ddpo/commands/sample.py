"""Sample base and tuned model side by side at the same seed."""

import sys
from pathlib import Path

from ddpo.commands import frame
from ddpo.plugins.ranges import PositiveInt, Seed


def main(argv: list[str]) -> None:
    """`ddpo sample RUN_DIR --prompt "a fox" [--seed 0] [--count 4] [--checkpoint ID] [--out X]`."""
    parser = frame.Parser(prog="ddpo sample", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run")
    parser.add_argument(
        "--prompt", action="append", required=True, help="may be given several times"
    )
    parser.add_number("--seed", Seed, default=0, help="of the first picture; the others count up")
    parser.add_number("--count", PositiveInt, default=4, help="pictures of each prompt")
    parser.add_argument(
        "--checkpoint", default="tuned", help="000020, best or last; default: tuned, the last"
    )
    parser.add_argument("--out", type=Path, help="picture to write; default: RUN_DIR/sample.png")
    arguments = parser.parse_args(argv)
    from ddpo.evaluation.table import table
    from ddpo.runs.finished import Run

    run = Run(arguments.run_dir)
    # a mistake in it should not come after the base model's pictures
    run.remember(arguments.checkpoint)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    rows = [
        (prompt, column) for prompt in arguments.prompt for column in ("base", arguments.checkpoint)
    ]
    cells = [run.sample([prompt] * len(seeds), list(seeds), column) for prompt, column in rows]
    out = arguments.out or Path(arguments.run_dir) / "sample.png"
    labels = [f"{prompt}, {column}" for prompt, column in rows]
    table(cells, labels, [f"seed {seed}" for seed in seeds]).save(out)
    print(out)


if __name__ == "__main__":
    raise SystemExit(frame.run(main, sys.argv[1:]))

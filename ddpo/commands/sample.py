"""Sample base and tuned model side by side at the same seed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpo.commands import frame, tastes
from ddpo.plugins.ranges import NonNegativeFloat, PositiveInt, Seed, ZeroToOne

if TYPE_CHECKING:
    from torch import Tensor


class Column(NamedTuple):
    """Whose weights, to whose taste: what `Run.sample` is given; and the taste in words."""

    weights: str
    lora_scale: float = 1.0
    taste: "Tensor | None" = None
    taste_scale: float = 1.0
    words: str = ""

    @property
    def label(self) -> str:
        parts = [(self.weights, self.lora_scale), (self.words, self.taste_scale)]
        scaled = [part + (f" x {scale:g}" if scale != 1 else "") for part, scale in parts if part]
        return ", ".join(scaled)


def main(argv: list[str]) -> None:
    """`ddpo sample RUN_DIR --prompt "a fox" [--seed 0] [--count 4] [--checkpoint ID] [...]`."""
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
    parser.add_number(
        "--lora_scale",
        ZeroToOne,
        action="append",
        help="part of the way from base to tuned, 0 to 1; may be given several times; default: 1",
    )
    tastes.add_flags(parser)
    parser.add_number(
        "--taste_scale",
        NonNegativeFloat,
        action="append",
        help="of a taste: 0 is nobody's, 1 as trained; may be given several times; default: 1",
    )
    parser.add_argument("--out", type=Path, help="picture to write; default: RUN_DIR/sample.png")
    arguments = parser.parse_args(argv)
    from ddpo.evaluation.table import table
    from ddpo.runs.finished import Run

    run = Run(arguments.run_dir)
    # a mistake in it should not come after the base model's pictures
    run.remember(arguments.checkpoint)
    told = tastes.told(arguments, run)
    tastes.check_scale(arguments.taste_scale, told)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    columns = [Column("base")]
    for scale in arguments.lora_scale or [1.0]:
        columns.append(Column(arguments.checkpoint, scale))
        columns += [
            Column(arguments.checkpoint, scale, taste, taste_scale, words)
            for words, taste in told
            for taste_scale in arguments.taste_scale or [1.0]
        ]
    rows = [(prompt, column) for prompt in arguments.prompt for column in columns]
    cells = [run.sample([prompt] * len(seeds), list(seeds), *column[:4]) for prompt, column in rows]
    out = arguments.out or Path(arguments.run_dir) / "sample.png"
    labels = [f"{prompt}, {column.label}" for prompt, column in rows]
    table(cells, labels, [f"seed {seed}" for seed in seeds]).save(out)
    print(out)


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

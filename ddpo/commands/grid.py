"""One picture: prompts down; checkpoints, runs, guidance, scales, steps, tastes or seeds across."""

import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ddpo.commands import frame, tastes
from ddpo.errors import UserError
from ddpo.plugins.ranges import NonNegativeFloat, PositiveInt, Seed, ZeroToOne


def main(argv: list[str]) -> None:
    """`ddpo grid RUN_DIR [RUN_DIR ...] [--prompts NAME_OR_FILE] [--guidance_scale 1] [...]`.

    A row has the same noise in all columns, and the scores stand under each picture.
    """
    arguments = _parser().parse_args(argv)
    from ddpo.runs import grid
    from ddpo.runs.finished import Run

    runs = [Run(folder) for folder in arguments.run_dirs]
    told = tastes.told(arguments, runs[0])
    if arguments.between:
        if len(told) != 2:
            raise UserError(f"--between: lies between two tastes, and {len(told)} are given")
        told = grid.interpolated(told[0], told[1], arguments.between)
    tastes.check_scale(arguments.taste_scale, told)
    across = grid.Across(
        checkpoint=arguments.checkpoint,
        lora_scale=arguments.lora_scale or (),
        guidance_scale=arguments.guidance_scale or (),
        num_steps=arguments.num_steps or (),
        seed=arguments.seed or (0,),
        taste=told,
        taste_scale=1.0 if arguments.taste_scale is None else arguments.taste_scale,
    )
    out = arguments.out or Path(arguments.run_dirs[0]) / "grid.png"
    grid.grid(runs, arguments.prompts, arguments.count, across).save(out)
    print(out)


def _parser() -> frame.Parser:
    parser = frame.Parser(prog="ddpo grid", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run_dirs",
        nargs="+",
        metavar="run_dir",
        help="folder of a run, whose columns are the base and the checkpoints; of several: the "
        "base of the first, and each run",
    )
    parser.add_argument(
        "--prompts", help="a prompt set or a file of prompts; default: the first run's own"
    )
    parser.add_number("--count", PositiveInt, default=6, help="prompts, evenly spaced over the set")
    parser.add_argument(
        "--checkpoint", help="000020, best, last or base: of all columns but the base; default last"
    )
    many = "in the place of the checkpoints' columns; may be given several times"
    parser.add_number(
        "--seed", Seed, action="append", help=f"of every picture, default 0; several: {many}"
    )
    parser.add_number(
        "--lora_scale",
        ZeroToOne,
        action="append",
        help=f"a column at this part of the way from the base, 0 to 1, {many}; with tastes, one "
        "for all of them",
    )
    guidance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
    parser.add_number(
        "--guidance_scale", guidance, action="append", help=f"a column at this guidance, {many}"
    )
    parser.add_number(
        "--num_steps", PositiveInt, action="append", help=f"a column in so many steps, {many}"
    )
    tastes.add_flags(parser)
    parser.add_number(
        "--between",
        PositiveInt,
        help="so many columns more between two tastes, each an equal step from one to the other",
    )
    parser.add_number(
        "--taste_scale",
        NonNegativeFloat,
        help="of the tastes: 0 is nobody's, 1 as trained; default: 1",
    )
    parser.add_argument("--out", type=Path, help="picture to write; default: RUN_DIR/grid.png")
    return parser


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

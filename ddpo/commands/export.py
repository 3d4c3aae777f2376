"""Write a run's model as other programs read it (diffusers, kohya, merged), and check it."""

import sys
from pathlib import Path

from ddpo.commands import frame


def main(argv: list[str]) -> None:
    """`ddpo export RUN_DIR --to DIR --format FORMAT [--checkpoint last|best|000020]`.

    FORMAT is diffusers, kohya or merged.
    """
    parser = frame.Parser(prog="ddpo export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="a folder that is new or empty"
    )
    parser.add_argument(
        "--format",
        required=True,
        metavar="diffusers|kohya|merged",
        help="diffusers: a LoRA for load_lora_weights; kohya: a LoRA for A1111, Forge and ComfyUI; "
        "merged: the whole pipeline for from_pretrained; a model of a plugin may have others",
    )
    parser.add_argument(
        "--checkpoint", default="tuned", help="000020, best or last; default: tuned, the last"
    )
    arguments = parser.parse_args(argv)
    from ddpo.runs.export import check, export
    from ddpo.runs.finished import Run

    check(arguments.to)
    run = Run(arguments.run_dir, dtype="fp32")
    with run.policy.weights(run.remember(arguments.checkpoint)):
        print(export(run, arguments.format, arguments.to))
    print(f"saved {arguments.to}")


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

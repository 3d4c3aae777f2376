"""Compare base and tuned model at matched seeds; write evaluation/ and index.html."""

import sys

from ddpo import command, config


def main(argv: list[str]) -> None:
    """`ddpo evaluate RUN_DIR [--section.key value ...]`."""
    parser = command.Parser(prog="ddpo evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run")
    arguments, changes = parser.parse_known_args(argv)
    own = ["--config", str(config.of_run(arguments.run_dir)), "--run_dir", arguments.run_dir]
    settings = config.parse([*own, *changes], command="ddpo evaluate")
    from ddpo.judging import judge

    judge(settings)


if __name__ == "__main__":
    raise SystemExit(command.run(main, sys.argv[1:]))

"""Compare base and tuned model at matched seeds; write evaluation/ and index.html."""

import sys
from pathlib import Path

from ddpo import config
from ddpo.commands import frame
from ddpo.config import Config, help
from ddpo.config.flags import arguments as dotted
from ddpo.config.flags import change, within
from ddpo.errors import UserError

SETTABLE = (
    "sampler",
    "evaluation.prompts",
    "evaluation.samples_per_prompt",
    "evaluation.num_prompts",
    "evaluation.seed",
    "eval_rewards",
    "model.dtype",
    "trainer.reward_timeout_s",
    "plugins",
)
"""What of a run's configuration an evaluation obeys: how pictures are made, which, and who judges
them."""


def main(argv: list[str]) -> None:
    """`ddpo evaluate RUN_DIR [--checkpoint last|best|000020] [--section.key value ...]`."""
    settings, wanted = arguments(argv)
    from ddpo.runs.judge import judge

    judge(settings, wanted)


def arguments(argv: list[str]) -> tuple[Config, str]:
    """The run's configuration, changed for the evaluation, and which checkpoint is asked for.

    `--help` lists what can be set. Raises UserError for any other option, which trains or is the
    run's own.
    """
    parser = frame.Parser(prog="ddpo evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", default="last")
    folders, flags = _apart(argv)
    known, flags = parser.parse_known_args(flags)
    source, changes, wants_help = dotted(flags, ["--checkpoint"])
    if len(folders) != 1 and not (wants_help and not folders):
        told = f"got {' and '.join(folders)}" if folders else "as in ddpo evaluate runs/demo"
        raise UserError(f"evaluate: needs the folder of one run, {told}")
    for key in [*(["config"] if source else []), *changes]:
        if not within(key, SETTABLE):
            can = ", ".join([*SETTABLE, "--checkpoint"])
            raise UserError(f"--{key}: an evaluation cannot change it; what it can set: {can}")
    values = config.read(config.of_run(folders[0])) if folders else {}
    change(values, changes)
    settings = config.resolve(values)
    if wants_help:
        _print_help(config.options(settings), folders)
        raise SystemExit(0)
    settings.run_dir = folders[0]
    return settings, known.checkpoint


def _apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words that are no option and no option's value, and all others."""
    folders: list[str] = []
    flags: list[str] = []
    expects_value = False
    for word in argv:
        is_flag = word.startswith("--") or word == "-h"
        (flags if is_flag or expects_value else folders).append(word)
        expects_value = is_flag and "=" not in word and word not in ("-h", "--help")
    return folders, flags


def _print_help(options: dict[str, help.Option], folders: list[str]) -> None:
    from ddpo.records.checkpoint import all_of

    there = [path.name for folder in folders for path in all_of(Path(folder))] or ["000020"]
    checkpoints = "|".join(["last", "best", *there])
    judges = "a list, as '[{name: clip_score}]', in the place of the run's own; each has"
    judges += " name, params, cache and label, to be set as --eval_rewards.0.label too"
    about = "Judges, which were never trained on."
    options = {name: option for name, option in options.items() if within(name, SETTABLE)}
    node = {"description": judges}
    options["eval_rewards"] = help.Option(None, node, "a list", "", "eval_rewards", about)
    print(f"{__doc__}\n")
    help.print_help(
        options, f"ddpo evaluate RUN_DIR [--checkpoint {checkpoints}] [--section.key value ...]"
    )


if __name__ == "__main__":
    raise SystemExit(frame.run(main, sys.argv[1:]))

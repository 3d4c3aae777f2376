"""Compare models at matched seeds: a run with its base, checkpoints, LoRA files, whole models."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo import config
from ddpo.commands import frame
from ddpo.config import Config, help
from ddpo.config.flags import arguments as dotted
from ddpo.config.flags import change, within
from ddpo.errors import UserError

if TYPE_CHECKING:
    from ddpo.runs.targets import Target

SETTABLE = (
    "sampler",
    "evaluation.prompts",
    "evaluation.samples_per_prompt",
    "evaluation.num_prompts",
    "evaluation.seed",
    "evaluation.kl_pictures",
    "evaluation.features",
    "evaluation.sampler",
    "eval_rewards",
    "model.dtype",
    "model.size",
    "trainer.reward_timeout_s",
    "plugins",
)
"""What of a run's configuration an evaluation obeys: how pictures are made, which, and who judges
them."""

LISTS = ("prompts", "rewards")
"""What it takes as a whole besides: sets of prompts, scores in the place of what was trained."""

OF_TRAINING = ("sampler.sde_window", "evaluation.sampler.sde_window")
"""What of these it does not: in pictures all steps have their noise."""

OF_TARGETS = ("model.name", "model.pretrained", "model.loras", "model.gradient_checkpointing")
"""What of a model's options the targets say themselves, or has no meaning without training."""

USAGE = "ddpo evaluate TARGET [TARGET ...] [--out DIR] [--checkpoint {}] [--section.key value ...]"


def settable(name: str, of_run: bool = True) -> bool:
    """Whether an evaluation obeys the option of this dotted name; `of_run`: of one with a run."""
    if not of_run and within(name, ["model"]):
        return not within(name, OF_TARGETS) and name != "model"
    return within(name, SETTABLE) and not within(name, OF_TRAINING)


def main(argv: list[str]) -> None:
    """`ddpo evaluate TARGET [TARGET ...] [--out DIR] [--section.key value ...]`."""
    targets, settings, out = arguments(argv)
    from ddpo.runs.judge import compare

    compare(targets, settings, out)


def arguments(argv: list[str]) -> "tuple[list[Target], Config, Path]":
    """The columns, the configuration of the whole evaluation, and the folder that it goes into.

    `--help` lists what can be set. Raises UserError for any other option, which trains or is the
    run's own.
    """
    parser = frame.Parser(prog="ddpo evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--out")
    words, flags = _apart(argv)
    known, flags = parser.parse_known_args(flags)
    source, changes, wants_help = dotted(flags, ["--checkpoint", "--out"])
    if not words and not wants_help:
        raise UserError("evaluate: needs a run or a model, as in ddpo evaluate runs/demo")
    from ddpo.runs import targets

    found = targets.kinds(words, known.checkpoint)
    values, of_run = targets.primary(found) if found else ({}, True)
    for key in [*(["config"] if source else []), *changes]:
        if not settable(key, of_run) and key not in LISTS:
            can = ", ".join([*SETTABLE, *LISTS, "--checkpoint", "--out"])
            raise UserError(f"--{key}: an evaluation cannot change it; what it can set: {can}")
    _refuse_hidden(values, changes)
    change(values, _as_lists(changes))
    settings = config.resolve(values)
    if wants_help:
        _print_help(config.options(settings), words, of_run)
        raise SystemExit(0)
    columns = targets.resolve(found, settings, changes)
    settings.run_dir = known.out or _folder(columns)
    return columns, settings, Path(settings.run_dir)


def _folder(columns: "Sequence[Target]") -> str:
    """That of the run, where all columns are of one; else evaluations/NAMES, in this folder."""
    runs = {str(column.run) for column in columns}
    if len(runs) == 1 and columns[0].run is not None:
        return str(columns[0].run)
    named = [column.column for column in columns if column.word != "base"]
    names = [re.sub(r"[^\w.@-]", "_", name) for name in named]
    return str(Path("evaluations") / "+".join(names)[:200])


def _as_lists(changes: dict[str, str]) -> dict[str, str]:
    """`--prompts a,b` as the first set and the others, `--rewards a,b` as lists of rewards.

    A text that is a list or a mapping is YAML, as anywhere.
    """
    changes = dict(changes)
    for key in ("rewards", "eval_rewards"):
        if key in changes and changes[key].strip()[:1] not in ("[", ""):
            names = [name.strip() for name in changes[key].split(",")]
            changes[key] = "[" + ", ".join(f"{{name: '{name}'}}" for name in names) + "]"
    text = changes.get("prompts", "").strip()
    if text and text[0] not in "[{":
        first, *others = [name.strip() for name in text.split(",")]
        key = "path" if Path(first).suffix in (".txt", ".jsonl", ".csv", ".py") else "name"
        changes["prompts"] = f"{{{key}: '{first}'}}"
        changes.setdefault("evaluation.prompts", f"[{', '.join(others)}]" if others else "null")
    return changes


def _refuse_hidden(values: dict[str, Any], changes: dict[str, str]) -> None:
    """Raises UserError for an option of `sampler` that the run's `evaluation.sampler` hides."""
    for key in changes:
        if within(key, ["sampler"]) and (values.get("evaluation") or {}).get("sampler"):
            raise UserError(
                f"--{key}: this run's pictures are made by evaluation.sampler; "
                f"set --evaluation.{key}"
            )


def _apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words that are no option and no option's value, and all others."""
    words: list[str] = []
    flags: list[str] = []
    expects_value = False
    for word in argv:
        is_flag = word.startswith("--") or word == "-h"
        (flags if is_flag or expects_value else words).append(word)
        expects_value = is_flag and "=" not in word and word not in ("-h", "--help")
    return words, flags


def _print_help(options: dict[str, help.Option], words: list[str], of_run: bool) -> None:
    from ddpo.records.checkpoint import all_of

    there = [path.name for word in words for path in all_of(Path(word))] or ["000020"]
    judges = "names, as clip_score,sharpness; or a list, as '[{name: clip_score}]', in the place of"
    judges += " the run's own; each has name, params, cache and label, to be set as"
    judges += " --eval_rewards.0.label too"
    about = "Judges, which were never trained on."
    options = {name: option for name, option in options.items() if settable(name, of_run)}
    options["eval_rewards"] = help.Option(
        None, {"description": judges}, "a list", "", "eval_rewards", about
    )
    scores = {"description": "scores in the place of what was trained, written as eval_rewards"}
    options["rewards"] = help.Option(None, scores, "a list", "", "rewards", "")
    sets = {"description": "sets of prompts or files, in the place of the run's, as a,b.txt"}
    options["prompts"] = help.Option(None, sets, "names", "", "prompts", "")
    print(f"{__doc__}\n")
    help.print_help(options, USAGE.format("|".join(["last", "best", *there])))


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

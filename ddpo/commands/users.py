"""Win rates of pictures to users' tastes over the base, by each user's own reward."""

import sys
from pathlib import Path
from typing import Any

from ddpo.commands import frame
from ddpo.plugins.ranges import PositiveInt, Seed


def main(argv: list[str]) -> None:
    """`ddpo users RUN_DIR --pairs unseen.jsonl --judge REWARD [--against RUN_DIR] [--count 8]`."""
    arguments = _parser().parse_args(argv)
    import json

    from ddpo import rewards
    from ddpo.building import build
    from ddpo.evaluation.personal import users
    from ddpo.evaluation.table import table
    from ddpo.records.files import whole
    from ddpo.records.metrics import clean
    from ddpo.runs.finished import Run

    judge = rewards.build(arguments.judge)
    run = Run(arguments.run_dir)
    run.remember()
    training = build.plain_prompts(run.config)
    where = arguments.pairs, arguments.count, arguments.seed, arguments.seen
    who = users.asked(run.taste, training, *where)

    def draw(who: users.Asked, column: str, taste: Any) -> list[Any]:
        return run.sample(who.texts, who.seeds, column, taste=taste)

    others = {name: Run(name) for name in arguments.against}
    for name, other in others.items():
        users.check_comparable(run.config, other.config, name)
    against = {name: other.sample(who.texts, who.seeds) for name, other in others.items()}
    results, pictures = users.compare(draw, who, judge, against)
    out = arguments.out or Path(arguments.run_dir) / "users" / arguments.pairs.stem
    with whole(out) as folder:
        folder.mkdir()
        text = json.dumps(clean(results), indent=1)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        columns = ["base", "nobody", *against, *who.users]
        cells = [list(row) for row in zip(*pictures, strict=True)]
        table(cells, who.texts, columns).save(folder / "users.png")
    print("\n".join(users.lines(results)))
    print(out)


def _parser() -> frame.Parser:
    parser = frame.Parser(prog="ddpo users", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run with model.taste.name vlm")
    parser.add_argument(
        "--pairs",
        type=Path,
        required=True,
        help="a jsonl file of users' preferences, lines {user, prompt, chosen, rejected}; the "
        "first of each user tell the taste",
    )
    parser.add_argument(
        "--judge", required=True, help="a reward that reads the user in the metadata"
    )
    parser.add_number(
        "--count", PositiveInt, default=8, help="prompts of the run, evenly spaced over them"
    )
    parser.add_number("--seed", Seed, default=0, help="of the first prompt; the others count up")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="RUN_DIR",
        help="another run of the same base, whose model's pictures personal ones are compared "
        "with, too; may be repeated",
    )
    parser.add_argument(
        "--seen", action="store_true", help="the users may be those who were trained on"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write into; default: RUN_DIR/users/NAME of the pairs"
    )
    return parser


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

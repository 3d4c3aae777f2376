"""Upload a run's LoRA, model card and page to the Hub."""

import sys

from ddpo.commands import frame


def main(argv: list[str]) -> None:
    """`ddpo push RUN_DIR --to NAME/MODEL [--private]`.

    As whom, and to which Hub, is what `hf auth login` and HF_ENDPOINT say.
    """
    parser = frame.Parser(prog="ddpo push", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run that has a lora/")
    parser.add_argument("--to", required=True, help="the repository, made if it is not there")
    parser.add_argument(
        "--private", action="store_true", help="seen by you alone, where the repository is made"
    )
    arguments = parser.parse_args(argv)
    from ddpo.runs import push

    print(push.push(arguments.run_dir, arguments.to, arguments.private or None))


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

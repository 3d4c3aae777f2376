"""Check that a reward keeps its contract: one number per image, whatever stands beside it."""

import sys

from ddpo.commands import frame, single_reward
from ddpo.errors import UserError


def main(argv: list[str]) -> None:
    """`ddpo check reward NAME_OR_FILE [--params '{...}'] [--prompts NAME_OR_FILE]`.

    It prints one line per check.
    """
    parser = frame.Parser(prog="ddpo check", description=__doc__, allow_abbrev=False)
    parser.add_argument("kind", choices=["reward"])
    parser.add_argument(
        "name", help="a name, package.module:attribute, file.py or file.py:function"
    )
    single_reward.add_flags(parser)
    parser.add_argument(
        "--prompts", help="a prompt set or file with the metadata that the reward reads"
    )
    arguments = parser.parse_args(argv)
    wanted, dtype = single_reward.wanted(arguments.name, arguments)
    from ddpo import prompts, rewards
    from ddpo.models import DTYPES
    from ddpo.parallel import ranks
    from ddpo.scoring import conformance

    device = str(ranks.state().device)
    asked = prompts.named_or_file(arguments.prompts) if arguments.prompts else conformance.PROMPTS
    reward = rewards.build(wanted.name, 1.0, wanted.params, device, DTYPES[dtype])
    failed = []
    for finding in conformance.findings(conformance.Case(reward.score, device, asked)):
        word = {True: "ok", False: "FAIL", None: "-"}[finding.passed]
        text = finding.expected if finding.passed else f"{finding.expected}; found: {finding.found}"
        print(f"{word:5} {finding.check:12} {text}", flush=True)
        failed += [finding.check] if finding.passed is False else []
    if failed:
        raise UserError(f"reward {reward.name} fails {', '.join(failed)}")


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

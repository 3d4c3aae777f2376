"""List what there is, one line each: `ddpo list rewards`, objectives, models, configs and so on."""

import sys

from ddpo import plugins
from ddpo.commands import frame
from ddpo.errors import UserError, nearest
from ddpo.records.metrics import METRICS

KINDS = (*plugins.SUFFIXES, "metrics")


def main(argv: list[str]) -> int:
    """Prints names and summaries. Nothing is imported that is listed."""
    if set(argv) & {"-h", "--help"}:
        print(__doc__)
        return 0
    if len(argv) != 1:
        raise UserError(f"list: needs one of {', '.join(KINDS)}")
    kind = argv[0]
    if kind not in KINDS:
        raise UserError(f"list: {kind}: nothing to list{nearest(kind, KINDS)}")
    lines = sorted(METRICS.items()) if kind == "metrics" else plugins.summaries(kind)
    width = max((len(name) for name, _ in lines), default=0)
    for name, summary in lines:
        print(f"{name:{width}}  {summary}".rstrip())
    return 0


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

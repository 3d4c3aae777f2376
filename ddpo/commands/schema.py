"""Print the JSON Schema of a configuration, for editors to complete and check it."""

import json
import sys

from ddpo.commands import frame


def main(argv: list[str]) -> None:
    """`ddpo schema > ddpo.schema.json`.

    DDPO_PLUGINS names the folders whose things belong to it.
    """
    parser = frame.Parser(prog="ddpo schema", description=__doc__, allow_abbrev=False)
    parser.parse_args(argv)
    from ddpo.config import schema

    print(json.dumps(schema.document(), indent=1))


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

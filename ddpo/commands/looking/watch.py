"""Show the page of a run in a browser while it trains; it is renewed as the run writes."""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ddpo.commands import frame
from ddpo.errors import UserError
from ddpo.plugins.ranges import PositiveFloat


def main(argv: list[str]) -> None:
    """`ddpo watch RUN_DIR [--port 8080] [--every 5]`.

    It serves on this machine alone, until it is stopped, and writes nothing.
    """
    parser = frame.Parser(prog="ddpo watch", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", help="folder of a run")
    port = Annotated[int, Field(ge=0, le=65535)]
    parser.add_number("--port", port, default=8080, help="on the loopback address; 0: any free one")
    parser.add_number(
        "--every", PositiveFloat, default=5.0, help="seconds between two looks at the folder"
    )
    arguments = parser.parse_args(argv)
    from ddpo.evaluation import page
    from ddpo.evaluation.pages import server

    page.check(arguments.run_dir)
    folder = Path(arguments.run_dir)
    try:
        watching = server.Watching(folder, arguments.port, arguments.every)
    except OSError as error:
        raise UserError(f"--port {arguments.port}: {error.strerror}; take another") from error
    # a program that is told to end does so as one that is interrupted
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"watching {folder} on {watching.address} until Ctrl+C", flush=True)
    with watching, suppress(KeyboardInterrupt):
        watching.serve_forever()


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

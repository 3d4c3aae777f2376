"""Serve a reward to other machines and environments: images in, scores out, as JSON over HTTP."""

import hashlib
import json
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ddpo import plugins, rewards
from ddpo.commands import frame, single_reward
from ddpo.errors import UserError
from ddpo.models import DTYPES
from ddpo.parallel import ranks
from ddpo.plugins.ranges import PositiveFloat
from ddpo.scoring.server import application, log

if TYPE_CHECKING:  # it comes with the extra
    pass


def main(argv: list[str]) -> None:
    """`ddpo serve --reward NAME [--params '{...}'] [--host 127.0.0.1] [--port 8000]`.

    It serves until it is stopped.
    """
    parser = frame.Parser(prog="ddpo serve", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--reward", required=True, help="a name, module:attribute or file.py:function"
    )
    single_reward.add_flags(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: on every one"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    size = "of a request, and of its images unpacked"
    parser.add_number("--max-mb", PositiveFloat, default=128, help=size)
    arguments = parser.parse_args(argv)
    wanted, dtype = single_reward.wanted(arguments.reward, arguments)
    if (scores := rewards.medium_of(plugins.load("rewards", wanted.name)).name) != "images":
        raise UserError(f"--reward: {wanted.name} scores {scores}; only images are served")
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"serve: {error}; it comes with `pip install 'ddpo[server]'`") from error
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: must be from 0 to 65535")
    try:
        family = socket.getaddrinfo(arguments.host, arguments.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((arguments.host, arguments.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {arguments.host} --port {arguments.port}: {error}; take another"
        ) from error
    device = str(ranks.state().device)
    reward = rewards.build(wanted.name, 1.0, wanted.params, device, DTYPES[dtype])
    facts = json.dumps([reward.version, wanted.params, dtype], sort_keys=True)
    reward = replace(reward, version=hashlib.sha256(facts.encode()).hexdigest()[:12])
    host, port = bound.getsockname()[:2]
    if not host.startswith(("127.", "::1")):
        log.warning(
            "%s is not loopback: whoever reaches it can use the reward, there is no password", host
        )
    app = application(reward, device, int(arguments.max_mb * 1e6))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30))
    # uvicorn raises again what stopped it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"serving {reward.name}, version {reward.version}, on {where} until Ctrl+C", flush=True)
    with suppress(KeyboardInterrupt):
        server.run([bound])


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))

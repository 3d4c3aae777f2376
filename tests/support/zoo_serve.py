"""A server in a thread of this process, and what the conformance test of `remote` is built with."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ddpo import rewards
from ddpo.rewards import Reward
from ddpo.scoring import server as server_module


def start(app: Any, port: int = 0) -> tuple[uvicorn.Server, str]:
    """The server and its address, by default on a port that is free."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    return server, f"http://{host}:{port}"


@contextmanager
def serving(reward: Reward, **limits: Any) -> Iterator[str]:
    """Its address."""
    server, url = start(server_module.application(reward, **limits))
    try:
        yield url
    finally:
        server.should_exit = True


def remote(folder: Path) -> dict[str, Any]:
    """The server lives as long as the process."""
    return {
        "url": start(server_module.application(rewards.build("jpeg_compressibility")))[1],
        "batch_size": 4,
    }


ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {"remote": remote}

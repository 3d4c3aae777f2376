"""`remote` with several servers: they share the requests, and a dead one is left out and told."""

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_serve import serving, start

from ddpo import rewards
from ddpo.errors import UserError
from ddpo.rewards import Reward
from ddpo.scoring import server as server_module

IMAGES = torch.linspace(0, 1, 12 * 3 * 4 * 4).view(12, 3, 4, 4).mul(255).round().div(255)
WORDS: list[str] = ["a fox"] * 12


def brightness(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
    return images.mean((1, 2, 3))


def counted(asked: list[int]) -> Reward:
    def counting(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
        asked.append(len(images))
        return brightness(images, prompts, metadata)

    return Reward("brightness", 1.0, counting, "v1")


def client(*urls: str) -> Reward:
    return rewards.build("remote", 1.0, {"url": list(urls), "retries": 0, "batch_size": 2})


def scores(reward: Reward) -> Tensor:
    return reward(IMAGES, WORDS, [{}] * 12)


@pytest.fixture
def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_they_take_requests_in_turn() -> None:
    """Six requests of two images, the scores in the images' order."""
    asked: list[list[int]] = [[], [], []]
    with ExitStack() as servers:
        reward = client(*(servers.enter_context(serving(counted(each))) for each in asked))
        assert scores(reward).equal(brightness(IMAGES, [], []))
    assert asked == [[2, 2]] * 3


def test_one_that_is_dead_at_the_beginning(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(counted([])) as url, caplog.at_level(logging.WARNING):
        assert scores(client(nowhere, url)).equal(brightness(IMAGES, [], []))
    (line,) = caplog.messages
    assert line.startswith(f"remote: {nowhere} does not answer (") and line.endswith("is left out")
    with pytest.raises(UserError, match=r"does not answer .*; start `ddpo serve` there"):
        client(nowhere, nowhere.replace("127.0.0.1", "localhost"))


def test_one_that_dies_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    """No image loses its value while another server lives; then all do, until one is back."""
    first, url = start(server_module.application(counted([])))
    second, other = start(server_module.application(counted([])))
    port = int(url.rpartition(":")[2])
    reward, expected = client(url, other), brightness(IMAGES, [], [])
    with caplog.at_level(logging.WARNING):
        stop(first)
        for _ in range(2):
            assert scores(reward).equal(expected)
        (line,) = caplog.messages
        assert line.startswith(f"remote: {url}: no value after 1 tries (") and "left out" in line
        stop(second)
        assert scores(reward).isnan().all()
    again, _ = start(server_module.application(counted([])), port)
    assert scores(reward).equal(expected)
    stop(again)


def stop(server: Any) -> None:
    server.should_exit = True
    while server.servers and any(each.is_serving() for each in server.servers):
        pass


def test_servers_that_do_not_belong_together() -> None:
    other = Reward("brightness", 1.0, brightness, "v2")
    with serving(counted([])) as url, serving(other) as stranger:
        with pytest.raises(UserError, match=rf"different rewards \(v1 at {url}, v2 at {stranger}"):
            client(url, stranger)
        with pytest.raises(UserError, match="no server, or one twice"):
            client(url, url)
        with pytest.raises(UserError, match="no server, or one twice"):
            client()

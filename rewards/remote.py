"""A reward that `ddpo serve` computes elsewhere: on other machines, GPUs or sets of packages."""

import json
import logging
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Semaphore, Thread
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.images import to_uint8
from ddpo.plugins.ranges import NonNegativeInt, PositiveInt, Seconds
from ddpo.rewards import UserError

from ._png import png
from ._servers import STRANGER, Servers

log = logging.getLogger("ddpo")


class remote:
    """The score of a reward that a server computes: `ddpo serve --reward NAME` there, this here.

    Images travel as 8-bit PNG; range and direction are the served reward's; not differentiable.
    `url` is the server's address, as http://127.0.0.1:8000, or a list of such, whose servers take
    requests in turn. `batch_size` is the number of images a request; two requests to each server
    are under way at once. `timeout_s` is how many seconds a server may be silent. `retries` is how
    often a request is repeated, after 0.5, 1, 2, ... seconds, where the server is not reached,
    silent, breaks off or has an error of its own (5xx, 429). Then the next server gets it, and the
    first is left out, with a line in the log; where none is left the images have no value (NaN),
    and all servers are asked again.

    Raises UserError where that would not help: no server when the run begins, servers of different
    rewards, a request that one refuses (4xx), an answer that is not one number or null an image, a
    reward that was changed.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        url: str | list[str] = "http://127.0.0.1:8000",
        timeout_s: Seconds = 60.0,
        retries: NonNegativeInt = 3,
        batch_size: PositiveInt = 4,
    ) -> None:
        self.servers = Servers(url if isinstance(url, list) else [url], timeout_s, retries)
        health = self.servers.health
        self.version: str = health["version"]
        self.groupwise = bool(health.get("groupwise"))  # then all images of a call are one request
        self.batch_size = (
            health["max_images"] if self.groupwise else min(batch_size, health["max_images"])
        )

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        if self.groupwise and len(images) > self.batch_size:
            several = f"{len(images)} images in a group, {self.servers} takes {self.batch_size}"
            raise UserError(f"remote: {several} a request; lower trainer.samples_per_prompt")
        # two in flight: while a server scores one request, the next is sent and unpacked
        chunks = [
            slice(first, first + self.batch_size)
            for first in range(0, len(images), self.batch_size)
        ]
        slots = Semaphore(2 * len(self.servers))
        answers = [Future[list[float]]() for _ in chunks]

        def work(rows: slice, answer: Future[list[float]]) -> None:
            with slots:
                try:
                    answer.set_result(self._scores(images[rows], prompts[rows], metadata[rows]))
                except Exception as error:
                    answer.set_exception(error)

        # daemons: a server that hangs must not hold us
        for chunk in zip(chunks, answers, strict=True):
            Thread(target=work, args=chunk, daemon=True).start()
        return torch.tensor([score for answer in answers for score in answer.result()])

    def _scores(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]
    ) -> list[float]:
        """One request.

        Files are made one at a time: a whole batch would leave the processor's cache.
        """
        files = [png(to_uint8(image[None].detach())[0].cpu().numpy()) for image in images]
        others = json.dumps({"prompts": list(prompts), "metadata": [dict(row) for row in metadata]})
        # json.dumps would look for what must be escaped
        pictures = b'", "'.join(map(b64encode, files))
        body = b'{"images": ["%s"], %s' % (pictures, others[1:].encode())
        try:
            url, found = self.servers.ask("/score", body)
        except ConnectionError as error:
            log.warning("remote: %s", error)
            return [math.nan] * len(images)
        scores = found["scores"] if isinstance(found.get("scores"), list) else []
        numbers = [math.nan if score is None else score for score in scores]
        if len(numbers) != len(images) or not all(
            type(number) in (int, float) for number in numbers
        ):
            raise UserError(STRANGER.format(url))
        if found.get("version") != self.version:
            raise UserError(f"remote: {url} has version {found.get('version')}, was {self.version}")
        return numbers

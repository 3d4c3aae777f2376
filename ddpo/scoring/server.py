"""A reward behind HTTP: images in, scores out, as JSON."""

import asyncio
import binascii
import io
import json
import logging
import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo import rewards
from ddpo.errors import nearest

if TYPE_CHECKING:  # it comes with the extra
    from fastapi import FastAPI, Request


KEYS = {
    "images": (str, "PNG files in base64"),
    "prompts": (str, "texts"),
    "metadata": (dict, "objects"),
}


MOST_IMAGES = 256


LINGER_S = 2.0
"""So long is read on after a refusal: a client that is still sending would not see the answer."""


log = logging.getLogger("ddpo")


class Refused(Exception):
    """A wrong request: the status, and one line."""


def application(
    reward: rewards.Reward, device: str = "cpu", most_bytes: int = 128_000_000
) -> "FastAPI":
    """`GET /health` and `POST /score`, which gives the reward one request at a time.

    A wrong request gets 400, 413 or 422, a reward that raises 500, with {"detail": one line}. To a
    groupwise reward, a request is a group.
    """
    from fastapi import FastAPI, HTTPException, Request
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

    app, alone = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), threading.Lock()
    about = {
        "reward": reward.name,
        "version": reward.version,
        "groupwise": rewards.groupwise(reward.score),
    }

    def answer(body: bytes) -> list[float | None]:
        images, prompts, metadata = _read(body, most_bytes)
        with alone, torch.no_grad():
            values = reward(images.to(device), prompts, metadata).tolist()
        return [value if math.isfinite(value) else None for value in values]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {**about, "status": "ok", "max_images": MOST_IMAGES}

    @app.post("/score")
    async def score(request: Request) -> dict[str, Any]:
        try:
            return {
                "scores": await run_in_threadpool(answer, await _body(request, most_bytes)),
                **about,
            }
        except Refused as error:
            status, line = error.args
        except ClientDisconnect:
            status, line = 400, "the request broke off"
        except (Exception, SystemExit) as error:  # a reward may raise anything
            status, line = 500, f"{error}"
        line = " ".join(line.encode(errors="replace").decode().split())[:500]
        log.log(logging.ERROR if status == 500 else logging.INFO, "%d %s", status, line)
        raise HTTPException(status, line)

    return app


async def _body(request: "Request", most: int) -> bytes:
    """The whole body.

    Raises Refused once it is known to be over `most` bytes, and keeps no more of it.
    """
    body, parts, size = bytearray(), request.stream(), int(request.headers.get("content-length", 0))
    while size <= most and (part := await anext(parts, None)) is not None:
        body += part
        size = max(size, len(body))
    if size <= most:
        return bytes(body)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            async for _ in parts:
                pass
    raise Refused(413, f"the request is over {most:,} bytes; send fewer images at a time")


def _read(
    body: bytes, most_bytes: int
) -> tuple[Float[Tensor, "B 3 H W"], list[str], list[dict[str, Any]]]:
    """What a reward is called with. Raises Refused for anything but that."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(sent, dict):
        raise Refused(422, "the body is not a JSON object")
    for key in sent.keys() - KEYS:
        raise Refused(422, f"{key[:60]}: no such key{nearest(key, KEYS)}")
    for key, (kind, words) in KEYS.items():
        rows = sent.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
            raise Refused(422, f"{key}: needs a list of {words}")
        if len(rows) != len(sent["images"]):
            raise Refused(422, f"{key}: {len(rows)} for {len(sent['images'])} images")
    if not 1 <= len(sent["images"]) <= MOST_IMAGES:
        raise Refused(422, f"images: {len(sent['images'])}; send 1 to {MOST_IMAGES} at a time")
    return _images(sent["images"], most_bytes), sent["prompts"], sent["metadata"]


def _images(files: list[str], most_bytes: int) -> Float[Tensor, "B 3 H W"]:
    """fp32 in [0, 1]. Nothing is unpacked before the headers have told how much that will be."""
    pictures, size = [], 0
    for i, file in enumerate(files):
        try:
            picture = Image.open(
                io.BytesIO(binascii.a2b_base64(file, strict_mode=True)), formats=["PNG"]
            )
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise Refused(
                422, f"images.{i}: not a PNG file in base64 ({type(error).__name__})"
            ) from error
        if picture.mode != "RGB":
            raise Refused(422, f"images.{i}: of mode {picture.mode}; send RGB, 8 bits a channel")
        pictures.append(picture)
        if picture.size != pictures[0].size:
            raise Refused(
                422, f"images.{i}: {picture.size}, the first {pictures[0].size}; send one size"
            )
        size += 3 * picture.width * picture.height
        if size > most_bytes:
            raise Refused(413, f"images: over {most_bytes:,} bytes unpacked; send fewer at a time")
    images = torch.empty(len(pictures), 3, *reversed(pictures[0].size))
    for i, picture in enumerate(pictures):  # one at a time stays in the processor's cache
        try:
            images[i] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        except (ValueError, OSError, SyntaxError) as error:
            raise Refused(422, f"images.{i}: a damaged PNG file ({error})") from error
    return images.div_(255)

"""A vision-language model behind an OpenAI-compatible server as judge."""

import base64
import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.images import to_pil
from ddpo.plugins.ranges import JpegQuality, NonNegativeFloat, NonNegativeInt, PositiveInt, Seconds
from ddpo.rewards import UserError

from . import _judging
from ._jpeg import jpegs
from ._server import Server

log = logging.getLogger("ddpo")


class vlm_judge:
    """What a vision-language model behind an OpenAI-compatible server thinks of the image.

    Range 0 to 1, higher is better. An image without an answer that can be read, after all retries,
    has no value (NaN), and a line in the log says why; so has one with an empty prompt. Not
    differentiable.

    `judge` is yes_no (P(yes) / (P(yes) + P(no)) of "Does this figure show '...'?" from the
    log-probabilities of the likeliest 20 tokens; 1 or 0 from a server that gives none), rubric (a
    number from low to high, scaled to 0 to 1) or unified_reward (the mean of the three axes of
    UnifiedReward 2.0, from 1 to 5, scaled to 0 to 1). `question` is another text for the judge;
    {prompt}, {low} and {high} in it are filled in.
    `low` is the rubric's worst number. `high` is its best.
    `base_url` is the server's, which ends in /v1. `model` is the name by which the server knows its
    model.
    `api_key_variable` is the environment variable that holds the key; empty: no key.
    `concurrency` is the number of requests under way at once. `timeout_s` is for one of them, in
    seconds.
    `retries` are made of one that fails. `backoff_s` is the wait before the first of these, in
    seconds; each further one waits twice as long. `jpeg_quality` sends JPEG files; null: PNG.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        judge: Literal["yes_no", "rubric", "unified_reward"] = "yes_no",
        question: str | None = None,
        low: float = 1.0,
        high: float = 5.0,
        base_url: str = "http://localhost:8000/v1",
        model: str = "Qwen/Qwen3-VL-2B-Instruct",
        api_key_variable: str = "",
        concurrency: PositiveInt = 8,
        timeout_s: Seconds = 60.0,
        retries: NonNegativeInt = 3,
        backoff_s: NonNegativeFloat = 1.0,
        jpeg_quality: JpegQuality | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise UserError(
                f"vlm_judge.base_url: {base_url!r} is no address; write http://HOST:PORT/v1"
            )
        if not low < high:
            raise UserError(f"vlm_judge.low: {low:g} is not below high, {high:g}")
        key = os.environ.get(api_key_variable, "") if api_key_variable else ""
        if api_key_variable and not key:
            raise UserError(
                f"vlm_judge.api_key_variable: {api_key_variable} is not set in the environment"
            )
        self.judge, self.model, self.low, self.high = judge, model, low, high
        text = question or _judging.QUESTIONS[judge]
        self.question = text.replace("{low}", f"{low:g}").replace("{high}", f"{high:g}")
        self.jpeg_quality = jpeg_quality
        self.server = Server(base_url, key, concurrency, timeout_s, retries, backoff_s)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        asked = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        files = self._files(images)
        found = self.server.ask(
            [self._chat(files[i], prompts[i]) for i in asked],
            self._read,
            model=self.model,
            temperature=0.0,
            **_judging.OPTIONS[self.judge],
        )
        values = torch.full((len(images),), torch.nan)
        for i, value in zip(asked, found, strict=True):
            values[i] = value if isinstance(value, float) else torch.nan
        if failed := [value for value in found if not isinstance(value, float)]:
            why = " ".join(f"{type(failed[-1]).__name__}: {failed[-1]}".split())[:200]
            log.warning("vlm_judge: no value for %d of %d images; %s", len(failed), len(found), why)
        return values

    def _files(self, images: Tensor) -> list[str]:
        """As data URIs."""
        if self.jpeg_quality is not None:
            kind, files = "jpeg", list(jpegs(images, self.jpeg_quality))
        else:
            kind, buffers = "png", [io.BytesIO() for _ in images]
            for picture, buffer in zip(to_pil(images), buffers, strict=True):
                picture.save(buffer, "PNG")
            files = [buffer.getvalue() for buffer in buffers]
        return [f"data:image/{kind};base64,{base64.b64encode(file).decode()}" for file in files]

    def _chat(self, file: str, prompt: str) -> list[dict[str, Any]]:
        image = {"type": "image_url", "image_url": {"url": file}}
        text = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
        return [{"role": "user", "content": [image, text]}]

    def _read(self, choice: Any) -> float:
        return _judging.read(choice, self.judge, self.low, self.high)

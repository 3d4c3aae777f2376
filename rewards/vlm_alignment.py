"""The prompt-alignment reward of the DDPO paper: is the image described as what was asked for?"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo.images import to_pil
from ddpo.plugins.ranges import JpegQuality, PositiveInt
from ddpo.rewards import UserError

from ._bertscore import BertScore
from ._jpeg import jpegs
from ._vlm import EMBEDDED_QUESTION, VLM, wording

QUESTION = "Answer concisely: what is going on in this image?"
TARGET = "The image contains {prompt}"
EMBEDDED_TARGET = "{prompt}"
LONGEST = 64
"""Tokens of an answer, as in the paper's server."""


class vlm_alignment:
    """BERTScore recall of "The image contains {prompt}" against a model's description of the image.

    The model sees the image as a JPEG, answers the question greedily in at most 64 tokens, and its
    answer is compared with the prompt (DDPO, arXiv 2305.13301, section 5.3). Higher is better, at
    most 1; in practice 0.4 to 0.9; NaN for an empty prompt. Not differentiable.
    Differs: the paper does not say which LLaVA it asked.

    `pretrained` is a name on the Hub, a folder, or emoji (the embedded captioner). `question` is
    what it is asked; null: the released code's, or the one that emoji knows. `target` is what it
    should have said, and holds {prompt}; null: the paper's, or the bare prompt where the encoder is
    emoji, which reads 16 tokens.
    `encoder` is BERTScore's: a name on the Hub, a folder, or emoji (the embedded pipeline's text
    encoder).
    `layer` is the one whose hidden states are compared; null: 40 of the default encoder, 0
    (the embeddings) of emoji, the last of others.
    `strict` takes, instead of all this, the share of the questions in the prompt's metadata
    (questions, and for each one in answers a text, or a list of texts that are all right) whose
    answer is contained in what the model says, in any case of letters: 0 to 1, NaN without
    questions.
    `jpeg_quality` is 80 in the released code; null: no JPEG. `batch_size` images are judged at
    once.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "llava-hf/llava-1.5-7b-hf",
        question: str | None = None,
        target: str | None = None,
        encoder: str = "microsoft/deberta-xlarge-mnli",
        layer: int | None = None,
        strict: bool = False,
        jpeg_quality: JpegQuality | None = 80,
        batch_size: PositiveInt = 8,
    ) -> None:
        self.question = wording(question, pretrained, QUESTION, EMBEDDED_QUESTION)
        self.target = wording(target, encoder, TARGET, EMBEDDED_TARGET)
        self.jpeg_quality, self.batch_size = jpeg_quality, batch_size
        self.vlm = VLM(pretrained, "vlm_alignment.pretrained", device, dtype)
        self.score = None if strict else BertScore(encoder, layer, "vlm_alignment.encoder", device)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        pictures = to_pil(images)
        if self.jpeg_quality is not None:
            pictures = [Image.open(io.BytesIO(file)) for file in jpegs(images, self.jpeg_quality)]
        if self.score is None:
            return self._strict(pictures, prompts, metadata)
        said = self._ask(pictures, [self.question] * len(pictures))
        wanted = [self.target.replace("{prompt}", prompt) for prompt in prompts]
        recall = self.score.recall(said, wanted, self.batch_size)
        empty = torch.tensor([not prompt.strip() for prompt in prompts], device=recall.device)
        return recall.masked_fill(empty, torch.nan)

    def _ask(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return self.vlm.answers(pictures, questions, LONGEST, self.batch_size)

    def _strict(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        asked = [
            (i, question) for i, row in enumerate(metadata) for question in row.get("questions", [])
        ]
        right = [answer for row in metadata for answer in row.get("answers", [])]
        for prompt, row in zip(prompts, metadata, strict=True):
            if len(row.get("questions", [])) != len(row.get("answers", [])):
                raise UserError(
                    f"vlm_alignment: {prompt!r} does not have one answer for each of its questions"
                )
        said = self._ask([pictures[i] for i, _ in asked], [question for _, question in asked])
        marks: list[list[float]] = [[] for _ in pictures]
        for (i, _), text, answers in zip(asked, said, right, strict=True):
            every = [answers] if isinstance(answers, str) else answers
            marks[i].append(float(any(answer.lower() in text.lower() for answer in every)))
        return torch.tensor([sum(row) / len(row) if row else torch.nan for row in marks])

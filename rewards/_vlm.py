"""A vision-language model of transformers: pictures and questions in, answers out."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ddpo.images import to_pil
from ddpo.rewards import UserError

from ._embedded import folder
from ._weights import loading, pretrained

EMBEDDED_QUESTION = "What is going on in this image?"
"""The one that the embedded captioner describes an image for."""


class VLM:
    """Any AutoModelForImageTextToText that has a chat template.

    `name` is a folder, a Hub name or emoji.

    Raises UserError where it cannot be loaded, said of the reward's `option`.
    """

    def __init__(
        self, name: str, option: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        place = folder(name, "captioner")
        with loading(option, place):
            self.processor: Any = AutoProcessor.from_pretrained(place)
            if not hasattr(self.processor, "image_processor"):
                raise ValueError("it has no processor for images")
            if not self.processor.chat_template:
                raise ValueError("its processor has no chat template")
            self.processor.tokenizer.padding_side = (
                "left"  # the answer begins behind the last token
            )
            self.model = pretrained(AutoModelForImageTextToText, place, device, dtype)
        self.option = option
        self._lock = Lock()  # fast tokenizers refuse two threads at once

    def inputs(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        """What the model takes: a chat of one picture and one question in each row."""
        return self.chats(list(zip(pictures, questions, strict=True)))

    def chats(self, contents: Sequence[Sequence[Image.Image | str]]) -> Any:
        """What the model takes: a chat of pictures and texts, in their order, in each row."""
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": part}
                        if isinstance(part, str)
                        else {"type": "image", "image": part}
                        for part in content
                    ],
                }
            ]
            for content in contents
        ]
        with self._lock:
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        return inputs.to(self.model.device, self.model.dtype)

    @torch.no_grad()
    def states(self, content: Sequence[Image.Image | str], layer: int) -> Float[Tensor, "L D"]:
        """A layer's hidden states of all tokens of a chat; 0 is the embeddings, -1 the last."""
        inputs = self.chats([content])
        return self.model(**inputs, output_hidden_states=True).hidden_states[layer][0]

    @torch.no_grad()
    def answers(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[str],
        longest: int,
        batch_size: int,
    ) -> list[str]:
        """What it says, greedily decoded, in at most `longest` tokens."""
        said: list[str] = []
        for first in range(0, len(pictures), batch_size):
            rows = slice(first, first + batch_size)
            inputs = self.inputs(pictures[rows], questions[rows])
            # a checkpoint's own sampling settings mean nothing to greedy decoding
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=longest,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            said += self.processor.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in said]

    def probability(
        self,
        images: Float[Tensor, "B 3 H W"],
        questions: Sequence[str],
        yes: Sequence[int],
        no: Sequence[int],
    ) -> Float[Tensor, " B"]:
        """P(next token in `yes`) / P(it is in `yes` or `no`).

        A gradient reaches images that require one.
        """
        inputs = self.inputs(to_pil(images.detach()), questions)
        if images.requires_grad and torch.is_grad_enabled():
            inputs["pixel_values"] = self._with_gradient(images, inputs["pixel_values"])
        logits = self.model(**inputs).logits[:, -1].float()
        return logits[:, [*yes, *no]].softmax(1)[:, : len(yes)].sum(1)

    def _with_gradient(self, images: Tensor, exact: Tensor) -> Tensor:
        """`exact`, the processor's pixels, with its gradient taken on unrounded images."""
        smooth = self.processor.image_processor(
            images=list(images), do_rescale=False, return_tensors="pt"
        )
        pixels = smooth["pixel_values"].to(exact)
        if not pixels.requires_grad or pixels.shape != exact.shape:
            raise UserError(
                f"{self.option}: the image processor of this model lets no gradient pass"
            )
        return exact + (pixels - pixels.detach())

    def words(self, *spellings: str) -> list[int]:
        """The tokens that are one of these words by themselves.

        Raises UserError where there is none.
        """
        encode, unknown = self.processor.tokenizer.encode, self.processor.tokenizer.unk_token_id
        found = {tuple(encode(word, add_special_tokens=False)) for word in spellings}
        tokens = sorted(ids[0] for ids in found if len(ids) == 1 and ids[0] != unknown)
        if not tokens:
            raise UserError(
                f"{self.option}: this model has no token for any of {', '.join(spellings)}"
            )
        return tokens


def hidden_size(name: str, option: str) -> tuple[int, int]:
    """The width of such a model's hidden states, and the number of its layers; no weights.

    Raises UserError where it cannot be read.
    """
    place = folder(name, "captioner")
    with loading(option, place):
        config: Any = AutoConfig.from_pretrained(place).get_text_config()
        return config.hidden_size, config.num_hidden_layers


def wording(given: str | None, pretrained: str, default: str, embedded: str) -> str:
    """The text that was `given`, else the default.

    The embedded captioner knows one wording alone.
    """
    return given or (embedded if pretrained == "emoji" else default)

"""Does the emoji world's captioner see what the prompt asked for?"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from ddpo.images import to_pil

QUESTION = "What is going on in this image?"


class emoji_recognition:  # a reward is called what its file is called
    """1 where the embedded captioner names the prompt's animal, and its activity if one is asked for, else 0.

    Reads `animal` and `activity` from the prompt's metadata; NaN for a prompt without an animal. Range 0 or
    1, higher is better; not differentiable. A toy judge for 64x64 emoji scenes: on other pictures it means
    nothing.
    """

    def __init__(self, *, device: torch.device | str, dtype: torch.dtype, captioner: str = "") -> None:
        folder = captioner or str(files("ddpo") / "models" / "emoji" / "weights" / "captioner")
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model = model.to(device).eval()  # pyright: ignore[reportArgumentType]

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[Tensor, " B"]:
        said = self.captions(images)
        return torch.tensor([_right(text, row) for text, row in zip(said, metadata, strict=True)])

    @torch.no_grad()
    def captions(self, images: Float[Tensor, "B 3 H W"]) -> list[str]:
        """What the captioner says of each picture, greedily decoded."""
        chats = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}],
                }
            ]
            for image in to_pil(images)
        ]
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device)  # fmt: skip
        generate = self.model.generate  # pyright: ignore[reportAttributeAccessIssue]
        tokens = generate(**inputs, max_new_tokens=10, do_sample=False)
        answers = self.processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [answer.strip() for answer in answers]


def _right(said: str, asked: Mapping[str, Any]) -> float:
    if "animal" not in asked:
        return float("nan")
    activity = asked.get("activity")
    return float(asked["animal"] in said.split() and (activity is None or said.endswith(activity)))

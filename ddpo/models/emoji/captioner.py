"""The emoji world's judge: a small LlavaForConditionalGeneration that says what is in a picture.

It answers two questions, in the words of the alignment rewards: "What is going on in this image?"
with a caption, and "Does this figure show 'a fox'?" with yes or no.
"""

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .autoencoder import HELD_OUT, scenes
from .scenes import ACTIVITIES, ANIMALS, HELDOUT_ANIMALS, PREFIXES, SIZE, caption, parse

BATCH = 32
PATCH = 8
CAPTION_QUESTION = "What is going on in this image?"
SHOWS_QUESTION = "Does this figure show '{caption}'?"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""USER: <image> question ASSISTANT: answer"""


def processor() -> LlavaProcessor:
    """A word-level tokenizer (a token for each word of our texts) and 64x64 pictures in [-1, 1]."""
    texts = [caption(animal) for animal in [*ANIMALS, *HELDOUT_ANIMALS]]
    texts += [
        *ACTIVITIES,
        *PREFIXES,
        CAPTION_QUESTION,
        SHOWS_QUESTION.replace("{caption}", ""),
        "user: assistant: yes no",
    ]
    return word_processor(texts, {"'", "'?", "?", "."}, PATCH, longest=128)


def word_processor(
    texts: Sequence[str], marks: Collection[str], patch: int, longest: int
) -> LlavaProcessor:
    """A token for each word of `texts` and each of `marks`; pictures of `patch` pixels' squares.

    `longest` is the number of tokens that a chat may have.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    split = pre_tokenizers.Whitespace()
    found = {word for text in texts for word, _ in split.pre_tokenize_str(text.lower())}
    words = sorted(found.union(marks))
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(["pad_token", "bos_token", "eos_token", "unk_token"], special, strict=False)),
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=longest,
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        pictures,
        fast,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """1.1 M parameters: a 4-layer vision transformer with 64 patches, a 2-layer Llama."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    return llava(tokenizer, vision, PATCH, width=128, longest=128)


def llava(
    tokenizer: PreTrainedTokenizerFast,
    vision: CLIPVisionConfig,
    patch: int,
    width: int,
    longest: int,
) -> LlavaForConditionalGeneration:
    """A 2-layer Llama of that width, which reads at most `longest` tokens, on a vision tower.

    Its pictures are cut into squares of `patch` pixels.
    """
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=longest,
        bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=(SIZE // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # pyright: ignore[reportCallIssue]
    )
    return LlavaForConditionalGeneration(config)


def prompt(question: str) -> str:
    """The chat template's text for a picture and a question, its 64 image tokens written out."""
    return f"USER: {'<image>' * (SIZE // PATCH) ** 2} {question} ASSISTANT:"


def question(text: str, rng: random.Random) -> tuple[str, str]:
    """A question about a caption's scene, and its answer.

    Half ask for the caption, half are yes/no questions with near misses.
    """
    animal, activity = parse(text)
    if rng.random() < 0.5:
        return CAPTION_QUESTION, caption(animal, activity)
    other = rng.choice([name for name in [*ANIMALS, *HELDOUT_ANIMALS] if name != animal])
    change = rng.choice([name for name in [*ACTIVITIES, None] if name not in (activity, None)])
    truths = [caption(animal, activity), caption(animal)]
    lies = [
        caption(other, activity),
        caption(other),
        caption(animal, change),
        caption(other, change),
    ]
    answer = rng.choice(["yes", "no"])
    claim = rng.choice(truths if answer == "yes" else lies)
    prefix = rng.choice(PREFIXES) if rng.random() < 0.2 else ""
    return SHOWS_QUESTION.format(caption=prefix + claim), answer


class Training:
    """Next-word cross-entropy on the answers alone."""

    steps, lr, ema_decay = 8_000, 1e-3, 0.998

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.processor = processor()
        self.tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        self.pad_id = cast(int, self.tokenizer.pad_token_id)
        self.module = build(self.tokenizer).to(device)  # pyright: ignore[reportArgumentType]

    def loss(self, step: int) -> Tensor:
        captions, pictures = scenes(step * BATCH, BATCH)
        rng = random.Random(f"question {step}")
        pairs = [question(text, rng) for text in captions]
        tokens = [self.tokenizer(prompt(asked)).input_ids for asked, _ in pairs]
        answers = [self.tokenizer(answer + "</s>").input_ids for _, answer in pairs]
        length = max(len(a) + len(b) for a, b in zip(tokens, answers, strict=True))
        ids = torch.full((BATCH, length), self.pad_id)
        labels = torch.full((BATCH, length), -100)
        # padded on the left, as for generation
        for row, (a, b) in enumerate(zip(tokens, answers, strict=True)):
            ids[row, length - len(a) - len(b) :] = torch.tensor(a + b)
            labels[row, length - len(b) :] = torch.tensor(b)
        # samples are not as clean as scenes
        noise = 0.1 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(pictures)
        return self.answer_loss(ids, labels, pictures + noise)

    def answer_loss(
        self, ids: Int[Tensor, "B L"], labels: Int[Tensor, "B L"], pictures: Tensor
    ) -> Tensor:
        device = self.module.device
        with torch.autocast(device.type, torch.bfloat16):
            return self.module(
                input_ids=ids.to(device),
                attention_mask=(ids != self.pad_id).long().to(device),
                pixel_values=pictures.to(device),
                labels=labels.to(device),
            ).loss

    @torch.no_grad()
    def answers(self, pictures: Float[Tensor, "B 3 64 64"], questions: list[str]) -> list[str]:
        """Greedy answers, in words."""
        text = self.tokenizer(
            [prompt(asked) for asked in questions], return_tensors="pt", padding=True
        )
        text = text.to(self.module.device)
        out = self.module.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            pixel_values=pictures.to(self.module.device, self.module.dtype),
            max_new_tokens=10,
            do_sample=False,
        )
        return self.tokenizer.batch_decode(
            out[:, text.input_ids.shape[1] :], skip_special_tokens=True
        )

    def evaluate(self) -> dict[str, float]:
        """Share of right answers to each question on 1,000 held-out scenes."""
        self.module.eval()
        captions, pictures = scenes(HELD_OUT, 1_000)
        rng, right = random.Random(0), {"caption": [], "yes_no": []}
        for first in range(0, len(captions), 100):
            pairs = [question(text, rng) for text in captions[first : first + 100]]
            given = self.answers(pictures[first : first + 100], [asked for asked, _ in pairs])
            for (asked, answer), said in zip(pairs, given, strict=True):
                right["caption" if asked == CAPTION_QUESTION else "yes_no"].append(
                    answer == said.strip()
                )
        return {name: sum(values) / len(values) for name, values in right.items()}

    def save(self, folder: Path) -> None:
        self.module.half().save_pretrained(folder / "captioner")
        self.module.float()
        self.processor.save_pretrained(folder / "captioner")

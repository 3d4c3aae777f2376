"""The emoji world's reader of preferences: a small LlavaForConditionalGeneration.

It reads a chat of a person's preferences, as the taste `vlm` writes it, and says in one word what
the person likes: bright, dark, warm, cool, busy, plain, large or small.
"""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ddpo.models.emoji.captioner import TEMPLATE
from ddpo.models.emoji.scenes import ANIMALS, HELDOUT_ANIMALS, SIZE, caption

PATCH, WIDTH = 16, 64
PAIRS = 4
"""Preferences in a chat."""

INSTRUCTION = (
    "These are pairs of pictures, each with the one that a person preferred first. "
    "Describe what this person likes."
)
LIKES = {
    "brightness": ("bright", "dark"),
    "warmth": ("warm", "cool"),
    "busyness": ("busy", "plain"),
    "size": ("large", "small"),
}
"""The words for much and for little of each feature of the reward `emoji_taste`."""


def processor() -> LlavaProcessor:
    """A word-level tokenizer (a token for each word of a chat) and 64x64 pictures in [-1, 1]."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    texts = [caption(animal) for animal in [*ANIMALS, *HELDOUT_ANIMALS]]
    texts += [chat(["a fox"] * 2 * PAIRS).replace("<image>", "")]
    texts += [word for pair in LIKES.values() for word in pair]
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(["pad_token", "bos_token", "eos_token", "unk_token"], special, strict=False)),
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        pictures,
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """0.5 M parameters: a 3-layer vision transformer with 16 patches, a 3-layer Llama."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # pyright: ignore[reportCallIssue]
    )
    return LlavaForConditionalGeneration(config)


def chat(texts: list[str]) -> str:
    """The taste `vlm`'s chat about pairs of pictures with these prompts, in the template's text."""
    shown = "<image>" * (SIZE // PATCH) ** 2
    parts = [
        f"Pair {number}, {text}. Preferred: {shown} Not preferred: {shown}"
        for number, text in enumerate(texts, 1)
    ]
    return f"USER: {' '.join(parts)} {INSTRUCTION} ASSISTANT:"

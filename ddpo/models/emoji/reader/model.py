"""The emoji world's reader of looks: a small LlavaForConditionalGeneration.

Asked what a picture looks like, it answers in one word: bright, dark, warm, cool, busy, plain,
large or small. Its states are what the taste `vlm` reads of a user's pictures.
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
QUESTION = "What does this picture look like?"
CHAT = f"USER: {'<image>' * (SIZE // PATCH) ** 2} {QUESTION} ASSISTANT:"
"""The chat template's text for a picture and the question, its 16 image tokens written out."""

LOOKS = {
    "brightness": ("bright", "dark"),
    "warmth": ("warm", "cool"),
    "busyness": ("busy", "plain"),
    "size": ("large", "small"),
}
"""The words for much and for little of each feature of the reward `emoji_taste`."""


def processor() -> LlavaProcessor:
    """A word-level tokenizer (of our chat and captions) and 64x64 pictures in [-1, 1]."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    texts = [caption(animal) for animal in [*ANIMALS, *HELDOUT_ANIMALS]]
    texts += [CHAT.replace("<image>", ""), *(word for pair in LOOKS.values() for word in pair)]
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
        model_max_length=64,
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
    """0.4 M parameters: a 3-layer vision transformer with 16 patches, a 2-layer Llama."""
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
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
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

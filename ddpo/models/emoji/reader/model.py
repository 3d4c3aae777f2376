"""The emoji world's reader of looks: a small LlavaForConditionalGeneration.

Asked what a picture looks like, it answers in one word: bright, dark, warm, cool, busy, plain,
large or small. Its states are what the taste `vlm` reads of a user's pictures.
"""

from transformers import (
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ddpo.models.emoji.captioner import llava, word_processor
from ddpo.models.emoji.scenes import ANIMALS, HELDOUT_ANIMALS, SIZE, caption

PATCH, WIDTH, LONGEST = 16, 64, 64
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
    texts = [caption(animal) for animal in [*ANIMALS, *HELDOUT_ANIMALS]]
    texts += [CHAT.replace("<image>", ""), *(word for pair in LOOKS.values() for word in pair)]
    return word_processor(texts, (), PATCH, LONGEST)


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
    return llava(tokenizer, vision, PATCH, WIDTH, LONGEST)

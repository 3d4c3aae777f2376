"""A masked language model of transformers: network, tokenizer, and how letters are spelled."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from jaxtyping import Int
from peft import PeftModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EsmConfig,
    PreTrainedTokenizerFast,
)

from ddpo.errors import UserError, refusal
from ddpo.models._shared.pipelines import quietly

EMBEDDED = Path(__file__).parents[1] / "dna" / "weights" / "base"


ESM2 = {6: 320, 12: 480, 30: 640, 33: 1280, 36: 2560, 48: 5120}
"""The layers of ESM-2's published sizes (Lin et al. 2023), and their width."""

ESM2_WORDS = [
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    "<null_1>",
    "<mask>",
]
"""Its tokens in their order."""


class Language(NamedTuple):
    """A network and its tokenizer."""

    model: Any
    tokenizer: Any


def load(pretrained: str, loras: Sequence[str] = ()) -> Language:
    """By name, in fp32, with peft folders merged into the weights.

    Raises UserError for what is no such model.
    """
    try:
        with quietly():
            place = place_of(pretrained)
            model = AutoModelForMaskedLM.from_pretrained(place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, ImportError) as error:
        raise no_model(pretrained, error) from error
    without_token_dropout(model)
    for folder in loras:
        try:
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()  # pyright: ignore
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            told = refusal(error) or f"cannot be read as a peft folder of this model ({error})"
            raise UserError(f"model.loras: {folder!r}: {' '.join(told.split())[:300]}") from error
    return Language(model, tokenizer)


def outline(pretrained: str) -> Language | None:
    """The network with weights that have a size but no content.

    The configuration is read where the files are on this machine; else a name `.../esm2_t12_...` is
    known, and None given for any other. Raises UserError for a folder without one.
    """
    place: Any = place_of(pretrained)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(place).exists():
            raise no_model(pretrained, error) from error
        size = re.search(r"/esm2_t(\d+)_", pretrained)
        if size is None or int(size[1]) not in ESM2:
            return None
        config, tokenizer = esm2(int(size[1]))
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config)
    model.to_empty(device="cpu").tie_weights()
    without_token_dropout(model)
    return Language(model, tokenizer)


def esm2(layers: int) -> tuple[EsmConfig, PreTrainedTokenizerFast]:
    """The configuration of a published ESM-2, and a tokenizer of its letters."""
    config = EsmConfig(
        vocab_size=len(ESM2_WORDS),
        mask_token_id=ESM2_WORDS.index("<mask>"),
        pad_token_id=1,
        hidden_size=ESM2[layers],
        num_hidden_layers=layers,
        num_attention_heads=40 if layers > 33 else 20,
        intermediate_size=4 * ESM2[layers],
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
    )
    words = {word: i for i, word in enumerate(ESM2_WORDS)}
    letters = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=[("<cls>", 0), ("<eos>", 2)]
    )
    return config, PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="<mask>")


def place_of(pretrained: str) -> str:
    return str(EMBEDDED) if pretrained == "dna" else pretrained


def no_model(pretrained: str, error: Exception) -> UserError:
    if line := refusal(error):
        return UserError(f"model.pretrained: {pretrained!r}: {line}")
    where = "is no folder of a masked language model"
    if not Path(place_of(pretrained)).exists():
        where = "is no folder, and as a hub id it cannot be loaded"
        if HF_HUB_OFFLINE:
            where += " while HF_HUB_OFFLINE is set: unset that, or download the model before"
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"model.pretrained: {pretrained!r} {where}; dna is the embedded one ({reason})"
    )


def without_token_dropout(model: Any) -> None:
    """ESM-2 embeds a mask as zeros and scales the rest by the share of masks: 0 / 0 for all masks.

    Differs: the zeros stay (the mask's vector becomes 0), the scale goes.
    """
    layer = getattr(getattr(model, "esm", None), "embeddings", None)
    if layer is not None and layer.token_dropout:
        layer.token_dropout = model.config.token_dropout = False
        with torch.no_grad():
            layer.word_embeddings.weight[model.config.mask_token_id] = 0.0


def spelling(tokenizer: Any, alphabet: str) -> tuple[Int[Tensor, " A1"], list[int], list[int]]:
    """The tokens of the letters and, last, of the mask; the special ones before and after a text.

    Raises UserError for a letter that is no token of its own.
    """
    vocabulary = tokenizer.get_vocab()
    if tokenizer.mask_token_id is None:
        raise UserError("model.pretrained: its tokenizer has no mask token; take a masked model")
    for letter in alphabet:
        if letter not in vocabulary:
            raise UserError(
                f"model.alphabet: the letter {letter} of {alphabet} is no token of the model; "
                "take another alphabet, or a model with one token for each letter"
            )
    ids = [vocabulary[letter] for letter in alphabet]
    alone = list(tokenizer(alphabet[0]).input_ids)
    if ids[0] not in alone:
        raise UserError(
            f"model.pretrained: its tokenizer does not write {alphabet[0]} as one token; "
            "take a model with one token for each letter"
        )
    place = alone.index(ids[0])
    return torch.tensor([*ids, tokenizer.mask_token_id]), alone[:place], alone[place + 1 :]

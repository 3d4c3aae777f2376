"""A masked language model as masked diffusion: the embedded base, and random ones of other
families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    PreTrainedTokenizerFast,
)

from ddpo import samplers
from ddpo.errors import UserError
from ddpo.models.dna import base
from ddpo.models.masked.language import EMBEDDED, Language
from ddpo.models.masked_sequence import MaskedSequence
from ddpo.prompts import Prompt
from ddpo.rollout.sample import Sampler, sample
from ddpo.sequences import ALPHABETS

TARGETS = ["query", "key", "value", "dense"]


def adapter(**changes: Any) -> LoraConfig:
    options = {"r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian", "target_modules": TARGETS}
    return LoraConfig(**{**options, **changes})


def tokenizer(alphabet: str, ends: bool) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<cls>", "<pad>", "<eos>", *alphabet, "<mask>"])}
    letters = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if ends:
        letters.post_processor = processors.TemplateProcessing(
            single="<cls> $A <eos>", special_tokens=[("<cls>", 0), ("<eos>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="<mask>", pad_token="<pad>")


def tiny(kind: str) -> Language:
    """A random ESM-2 (token dropout, special tokens around) of proteins, or a BERT of DNA."""
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.5,
    }
    if kind == "esm2":
        words = tokenizer(ALPHABETS["protein"], ends=True)
        config = EsmConfig(
            vocab_size=len(words),
            mask_token_id=words.mask_token_id,
            pad_token_id=words.pad_token_id,
            position_embedding_type="rotary",
            token_dropout=True,
            emb_layer_norm_before=True,
            hidden_dropout_prob=0.1,
            **small,
        )
        return Language(EsmForMaskedLM(config), words)
    words = tokenizer(ALPHABETS["dna"], ends=False)
    config = BertConfig(
        vocab_size=len(words),
        pad_token_id=words.pad_token_id,
        max_position_embeddings=24,
        **small,
    )
    return Language(BertForMaskedLM(config), words)


def made(kind: str, folder: Path, **options: Any) -> MaskedSequence:
    language = tiny(kind)
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    alphabet: Any = "protein" if kind == "esm2" else "dna"
    return MaskedSequence(
        str(folder), alphabet=alphabet, length=12, **{"lora": adapter(), **options}
    )


@pytest.fixture
def dna() -> MaskedSequence:
    torch.manual_seed(1)
    return MaskedSequence("dna", lora=adapter(), length=20)


def states(policy: MaskedSequence, count: int = 6) -> torch.Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.randint(
        policy.schedule.letters + 1, (count, *policy.latent_shape), generator=source
    )


def move(policy: MaskedSequence) -> None:
    noise = torch.Generator().manual_seed(7)
    for parameter in policy.parameters().values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)


def test_the_base_says_what_the_dna_worlds_own_code_says(dna: MaskedSequence) -> None:
    x = states(dna)
    with torch.no_grad():
        ours, theirs = dna.predict(x, x, None, 1.0), base.log_probs(base.load(), x)
    masked = x == base.MASK
    torch.testing.assert_close(ours[masked], theirs[masked])


@pytest.mark.parametrize("kind", ["esm2", "bert"])
def test_any_family_and_soft_letters(kind: str, tmp_path: Path) -> None:
    """One-hot rows give what letter numbers give, though ESM normalizes its embeddings apart."""
    policy = made(kind, tmp_path / "model")
    move(policy)
    x = states(policy)
    rows = F.one_hot(x, policy.schedule.letters + 1).float()
    with torch.no_grad():
        one, other = policy.predict(x, x, None, 1.0), policy.predict(rows, x, None, 1.0)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.exp().sum(-1), torch.ones(x.shape))
    everything = torch.full((1, 12), policy.schedule.letters)
    assert policy.predict(everything, x, None, 1.0).isfinite().all(), "all masks"


def test_what_the_network_is_given_is_spelled_by_the_tokenizer(tmp_path: Path) -> None:
    policy = made("esm2", tmp_path / "model", lora=None)
    text = "MKTAYIAKQRQI"
    ids = policy.language.tokenizer(text, return_tensors="pt").input_ids
    letters = torch.tensor([[ALPHABETS["protein"].index(letter) for letter in text]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[:, 1:-1]
        vocabulary = policy.language.tokenizer.get_vocab()
        chosen = logits[..., [vocabulary[letter] for letter in ALPHABETS["protein"]]]
        ours = policy.predict(letters, letters, None, 1.0)
    torch.testing.assert_close(ours, chosen.log_softmax(-1))


def test_a_step_that_is_scored_again_has_the_recorded_probability(dna: MaskedSequence) -> None:
    move(dna)
    steps = samplers.build("masked", dna.schedule, 5)
    with torch.no_grad():
        (rolled,) = sample(
            dna, Sampler(steps, 1.0, 4), [Prompt("x")] * 4, [(0, i) for i in range(4)]
        )
        for t in range(5):
            index = torch.full((4,), t)
            x, following = rolled.latents[:, t], rolled.latents[:, t + 1]
            step = steps.step(index, x, dna.predict(x, index, None, 1.0))
            assert step.log_prob(following).equal(rolled.logp_old[:, t])
    assert (rolled.latents[:, 0] == 4).all() and (rolled.latents[:, -1] < 4).all()
    assert rolled.images.shape == (4, 20, 4) and (rolled.images.sum(-1) == 1).all()


def test_base_and_snapshots(dna: MaskedSequence) -> None:
    x = states(dna)
    with torch.no_grad():
        before = dna.predict(x, x, None, 1.0)
        move(dna)
        after = dna.predict(x, x, None, 1.0)
        with dna.weights("base"):
            assert dna.predict(x, x, None, 1.0).equal(before)
        assert not after.equal(before) and dna.predict(x, x, None, 1.0).equal(after)


def test_a_saved_adapter_is_a_peft_folder(dna: MaskedSequence, tmp_path: Path) -> None:
    move(dna)
    dna.save(tmp_path / "lora")
    plain = PeftModel.from_pretrained(
        AutoModelForMaskedLM.from_pretrained(EMBEDDED), str(tmp_path / "lora")
    )
    x = states(dna)
    with torch.no_grad():
        theirs = plain(input_ids=x).logits[..., :4].log_softmax(-1)
        torch.testing.assert_close(dna.predict(x, x, None, 1.0), theirs, atol=1e-5, rtol=1e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pretrained: 'nowhere' is no folder"):
        MaskedSequence("nowhere", lora=adapter())
    with pytest.raises(UserError, match=r"model\.alphabet: the letter D .* is no token"):
        MaskedSequence("dna", lora=adapter(), alphabet="protein")
    with pytest.raises(UserError, match=r"target_modules: no layer is called 'to_q'"):
        MaskedSequence("dna", lora=adapter(target_modules=["to_q"]))
    with pytest.raises(UserError, match=r"lora\.text_encoder: masked_sequence has no text"):
        MaskedSequence("dna", lora=adapter(), train_text_encoder=True)
    language = tiny("bert")
    language.model.save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"model\.length: 40 letters are 40 tokens, .* 24 positions"
    ):
        MaskedSequence(str(tmp_path), lora=adapter(), length=40)

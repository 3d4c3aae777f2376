"""The DNA world's base model: masked diffusion over A, C, G, T with a small `EsmForMaskedLM`.

The forward process masks each letter on its own, with probability t at time t in [0, 1] (the
log-linear schedule of MDLM, Sahoo et al. 2024, arXiv 2406.07524). The network says what stands
under the masks (SUBS): letters that are not masked stay, and a mask is never predicted.

The bound on the log-likelihood, with k of L letters masked:

    -log p(x) <= integral_0^1 (1 / t) E[ sum over masked i of -log p(x_i | the rest) ] dt
               = L E_k[ mean over masked i of -log p(x_i | the rest) ],   k uniform on 1 ... L

since the integral of t^(k-1) (1 - t)^(L-k), times the number of subsets of size k, is 1 / k. So the
weight 1 / t needs no floor: it is drawn, not multiplied, which also has the lower variance.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedTokenizerFast

from .grammar import LENGTH, LETTERS

FOLDER = Path(__file__).parent / "weights" / "base"
MASK, PAD = 4, 5

Predict = Callable[[Int[Tensor, "B L"]], Float[Tensor, "B L 4"]]


def untrained() -> EsmForMaskedLM:
    """The network before training: random weights from torch's global seed, and local attention."""
    config = EsmConfig(
        vocab_size=len(LETTERS) + 2,
        mask_token_id=MASK,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=LENGTH + 2,
        position_embedding_type="rotary",
        rope_theta=100.0,
        initializer_range=0.05,
        emb_layer_norm_before=True,
        token_dropout=False,
    )
    model = EsmForMaskedLM(config)
    _look_at_neighbors(model)
    return model


def _look_at_neighbors(model: EsmForMaskedLM, strength: float = 2.0) -> None:
    """Set the biases of queries and keys so that each head first attends at one offset, -10 to 10.

    With rotary positions a query's bias (a, 0) at place p and a key's bias (a cos wd, a sin wd) at
    place m have the product a^2 cos(w (p - m - d)) in the plane of frequency w: all planes peak
    together at m = p - d. Without this start the network stays at the letters' frequencies for
    thousands of steps.
    """
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    frequencies = config.rope_theta ** -(torch.arange(0, width, 2) / width)
    with torch.no_grad():
        layers: Any = model.esm.encoder.layer
        for depth, layer in enumerate(layers):
            attention = layer.attention.self
            query = attention.query.bias.view(config.num_attention_heads, 2, width // 2)
            key = attention.key.bias.view(config.num_attention_heads, 2, width // 2)
            for head in range(config.num_attention_heads):
                offset = (1 + head // 2 + 2 * depth) * (1 if head % 2 else -1)
                query[head, 0] = strength
                key[head, 0] = strength * torch.cos(frequencies * offset)
                key[head, 1] = strength * torch.sin(frequencies * offset)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, in the order of `grammar.LETTERS`, then [MASK] and [PAD]."""
    words = {word: i for i, word in enumerate([*LETTERS, "[MASK]", "[PAD]"])}
    letters = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="[MASK]", pad_token="[PAD]")


def load(folder: Path = FOLDER) -> EsmForMaskedLM:
    """The committed base, in fp32, in evaluation mode."""
    return EsmForMaskedLM.from_pretrained(folder).eval()


def log_probs(model: EsmForMaskedLM, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L 4"]:
    """Log-probabilities of A, C, G, T at each place, fp32: SUBS.

    At a mask they sum to one over the four letters; a letter that is not masked has 0, the others
    -inf.
    """
    masked = (tokens == MASK)[..., None]
    letters = torch.arange(len(LETTERS), device=tokens.device)
    stays = torch.where(tokens[..., None] == letters, 0.0, -torch.inf)
    logits = model(input_ids=tokens).logits[..., : len(LETTERS)].float()
    return torch.where(masked, logits.log_softmax(-1), stays)


def random_masks(
    counts: Int[Tensor, " B"], length: int, generator: torch.Generator
) -> Bool[Tensor, "B length"]:
    """Of each row, `counts` places chosen at random: True is masked."""
    shape = (len(counts), length)
    order = torch.rand(shape, generator=generator, device=counts.device).argsort(-1).argsort(-1)
    return order < counts[:, None]


def stratified_counts(batch: int, length: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Numbers of masked letters, uniform on 1 to `length`, spread evenly over the batch."""
    device = generator.device
    places = torch.rand(batch, generator=generator, device=device)
    places += torch.arange(batch, device=device)
    return (places / batch * length).long().clamp(max=length - 1) + 1


def bound(
    predict: Predict,
    tokens: Int[Tensor, "B L"],
    masks: Bool[Tensor, "B L"],
) -> Float[Tensor, " B"]:
    """L times the mean of -log p over the masked letters, in nats.

    Its mean over uniform counts and random masks is the bound on -log p of the sequence: the loss.
    `predict` takes tokens with masks to log-probabilities, as `partial(log_probs, model)` does.
    """
    predicted = predict(torch.where(masks, MASK, tokens))
    surprise = -predicted.gather(-1, tokens[..., None])[..., 0]
    return tokens.shape[1] * torch.where(masks, surprise, 0.0).sum(-1) / masks.sum(-1)


@torch.no_grad()
def log_likelihood(
    model: EsmForMaskedLM, tokens: Int[Tensor, "B L"], generator: torch.Generator, draws: int = 20
) -> Float[Tensor, " B"]:
    """A lower bound on log p of each sequence, in nats, estimated from `draws` random masks."""
    length, total = tokens.shape[1], torch.zeros(len(tokens), device=tokens.device)
    for _ in range(draws):
        counts = stratified_counts(len(tokens), length, generator)
        counts = counts[torch.randperm(len(tokens), generator=generator, device=counts.device)]
        masks = random_masks(counts, length, generator)
        total += bound(partial(log_probs, model), tokens, masks)
    return -total / draws


@torch.no_grad()
def sample(
    model: EsmForMaskedLM, count: int, steps: int, generator: torch.Generator
) -> Int[Tensor, "count 100"]:
    """Ancestral samples: from all masks, in the step from t to s each mask becomes a letter with
    probability (t - s) / t.

    Only for judging the base; letters that appear in one step do not know of each other, so the
    samples are the model's own only as `steps` grows.
    """
    device = generator.device
    tokens = torch.full((count, LENGTH), MASK, device=device)
    for left in range(steps, 0, -1):
        chances = log_probs(model, tokens).exp()
        letters = torch.multinomial(chances.flatten(0, 1), 1, generator=generator)
        appears = torch.rand(tokens.shape, generator=generator, device=device) < 1 / left
        tokens = torch.where((tokens == MASK) & appears, letters.view(count, LENGTH), tokens)
    return tokens

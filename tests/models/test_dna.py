"""The DNA world against closed forms and counts: its grammar, its formula, its masked diffusion."""

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ddpo.models.dna import activity, base, grammar, oracles, pretrain, statistics

NEUTRAL = "AC" * 50
"""A sequence without any site, not even with one mismatch."""


def with_sites(*sites: tuple[int, str]) -> Tensor:
    """The neutral sequence with words written over it."""
    letters = NEUTRAL
    for place, word in sites:
        letters = letters[:place] + word + letters[place + len(word) :]
    return grammar.encode([letters])


def word(name: str) -> str:
    return grammar.MOTIFS[name].word


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return grammar.draw(4000, 11)


# grammar


def test_sequences_are_a_function_of_the_seed(drawn: Tensor) -> None:
    assert drawn.shape == (4000, 100)
    assert set(drawn.unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn[:100], grammar.draw(4000, 11)[:100])
    assert not torch.equal(drawn[:100], grammar.draw(4000, 12)[:100])


def test_the_background_follows_its_table() -> None:
    tokens = grammar.background(3000, np.random.default_rng(0))
    pairs = product(range(4), repeat=2)
    for (first, second), row in zip(pairs, grammar.TRANSITIONS.values(), strict=True):
        here = (tokens[:, :-2] == first) & (tokens[:, 1:-1] == second)
        following = tokens[:, 2:][here]
        share = np.bincount(following, minlength=4) / len(following)
        error = np.abs(share - row) / np.sqrt(np.array(row) * (1 - np.array(row)) / len(following))
        assert error.max() < 4.5
    assert all(math.isclose(sum(row), 1) for row in grammar.TRANSITIONS.values())


def test_sites_are_as_frequent_as_their_rates_say(drawn: Tensor) -> None:
    """rate x (enhancer-like sequences) x (1 - mutation)^length, plus composites and chance."""
    plain = torch.from_numpy(grammar.background(4000, np.random.default_rng(1)))
    found, chance = statistics.site_frequencies(drawn), statistics.site_frequencies(plain)
    enriched = 1 + grammar.ENHANCER_LIKE * (grammar.ENRICHMENT - 1)
    depleted = 1 + grammar.ENHANCER_LIKE * (1 / grammar.ENRICHMENT - 1)
    for name, motif in grammar.MOTIFS.items():
        planted = motif.rate * (enriched if motif.activator else depleted)
        planted += grammar.COMPOSITE * enriched * (name in ("HNF4A", "CEBPA"))
        expected = planted * (1 - grammar.MUTATION) ** len(motif.word) + chance[name]
        assert found[name] == pytest.approx(expected, abs=4.5 * math.sqrt(expected / len(drawn)))
    width = len(word("HNF4A")) + len(word("CEBPA"))
    expected = grammar.COMPOSITE * enriched * (1 - grammar.MUTATION) ** width
    assert found["composite"] == pytest.approx(expected, abs=4.5 * math.sqrt(expected / len(drawn)))


def test_the_other_strand() -> None:
    tokens = grammar.encode(["AACGT", "GATTC"])
    assert grammar.decode(grammar.reverse_complement(tokens)) == ["ACGTT", "GAATC"]
    with pytest.raises(ValueError, match="'N'"):
        grammar.encode(["ACNT"])


# the formula


def formula(drive: float) -> float:
    u = math.log1p(math.exp(1.2 * (drive - 1.5))) / 1.2
    return 8 * (1 - math.exp(-u / 2.5))


def saturated(occupied: float) -> float:
    return (1 - math.exp(-1.2 * occupied)) / (1 - math.exp(-1.2))


@pytest.mark.parametrize(
    ("tokens", "drive"),
    [
        (with_sites(), 0.0),
        (with_sites((10, word("HNF4A"))), 1.1),
        (with_sites((10, word("REST"))), -1.6),
        (with_sites((10, word("HNF4A")), (50, word("HNF4A"))), 1.1 * saturated(2)),
        (with_sites((10, word("HNF4A")), (24, word("CEBPA"))), 1.1 + 1.0 + 1.6),  # gap 5
        (with_sites((10, word("HNF4A")), (29, word("CEBPA"))), 1.1 + 1.0 + 0.8),  # gap 10
        (with_sites((10, word("HNF4A")), (35, word("CEBPA"))), 1.1 + 1.0),  # gap 16: too far
        (with_sites((10, word("CEBPA")), (24, word("HNF4A"))), 1.1 + 1.0),  # the wrong order
        (with_sites((10, "GG" + word("GATA"))), 0.5),
        (with_sites((10, "CAAAGTCCT")), 1.1 * saturated(0.4)),  # one mismatch
    ],
)
def test_activity_of_known_sequences(tokens: Tensor, drive: float) -> None:
    assert activity.activity(tokens).item() == pytest.approx(formula(drive), abs=1e-4)


def test_hnf1a_is_nearly_its_own_other_strand_and_counts_once() -> None:
    assert activity.both_strands(with_sites((10, word("HNF1A"))), "HNF1A").sum() == 1


def test_labels_do_not_depend_on_the_strand(drawn: Tensor) -> None:
    other = grammar.reverse_complement(drawn)
    torch.testing.assert_close(activity.activity(other), activity.activity(drawn))
    torch.testing.assert_close(activity.accessibility(other), activity.accessibility(drawn))
    assert statistics.site_frequencies(other) == statistics.site_frequencies(drawn)


def test_noise_has_its_size(drawn: Tensor) -> None:
    noise = activity.measured(drawn, torch.Generator().manual_seed(0)) - activity.activity(drawn)
    assert noise.std().item() == pytest.approx(activity.NOISE, rel=0.05)


def test_statistics_of_known_sequences() -> None:
    tokens = grammar.encode(["AAAACGT", "ACGTTTT"])
    assert statistics.longest_run(tokens).tolist() == [4, 4]
    torch.testing.assert_close(statistics.gc_content(tokens), torch.full((2,), 2 / 7))
    frequencies = statistics.kmers(tokens)
    assert frequencies.sum().item() == pytest.approx(1)
    assert frequencies[0].item() == pytest.approx(2 / 10)  # AAA
    assert frequencies[1].item() == pytest.approx(1 / 10)  # AAC
    assert statistics.kmer_correlation(tokens, tokens) == pytest.approx(1)


# masked diffusion


@pytest.fixture(scope="module")
def network() -> base.EsmForMaskedLM:
    torch.manual_seed(0)
    return base.untrained().eval()


def test_a_head_first_attends_at_its_offset(network: base.EsmForMaskedLM) -> None:
    network.set_attn_implementation("eager")
    attended = network.esm(torch.full((1, 100), base.MASK), output_attentions=True).attentions
    for head in range(8):
        offset = (1 + head // 2) * (1 if head % 2 else -1)
        assert attended[0][0, head, 50].argmax().item() == 50 - offset


def test_subs(network: base.EsmForMaskedLM, drawn: Tensor) -> None:
    """Letters that are not masked stay; at a mask the four letters' probabilities sum to one."""
    tokens = drawn[:4].clone()
    masks = base.random_masks(torch.tensor([1, 30, 99, 100]), 100, torch.Generator().manual_seed(0))
    assert masks.sum(-1).tolist() == [1, 30, 99, 100]
    with torch.no_grad():
        chances = base.log_probs(network, torch.where(masks, base.MASK, tokens)).exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(4, 100))
    assert torch.equal(chances[~masks].argmax(-1), tokens[~masks])
    assert set(chances[~masks].unique().tolist()) == {0.0, 1.0}
    assert chances[masks].max() < 1


def conditionals(joint: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities `(B, 3, 4)` of each letter given those not masked, from a joint of 3."""
    rows = []
    for row in tokens.tolist():
        kept = joint.clone()
        for place, token in enumerate(row):
            if token != base.MASK:
                others = [letter for letter in range(4) if letter != token]
                kept.index_fill_(place, torch.tensor(others), 0.0)
        places = [[d for d in range(3) if d != place] for place in range(3)]
        rows.append(torch.stack([kept.sum(others) for others in places]))
    chances = torch.stack(rows)
    return (chances / chances.sum(-1, keepdim=True)).log()


def test_the_bound_is_exact_where_conditionals_belong_to_one_joint() -> None:
    """Enumerated: the mean over k in 1..3 and the masks of k letters is -log p(x), for every x."""
    joint = torch.rand((4, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    joint /= joint.sum()
    tokens = torch.tensor(list(product(range(4), repeat=3)))
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for mask in list(product([False, True], repeat=3))[1:]:
        share = 1 / 3 / math.comb(3, sum(mask))
        masks = torch.tensor(mask).expand(len(tokens), 3)
        total += share * base.bound(lambda x: conditionals(joint, x), tokens, masks)
    torch.testing.assert_close(total, -joint.log().flatten())


def test_masks_are_uniform_on_counts_and_places() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = base.stratified_counts(300, 3, generator)
    assert torch.bincount(counts).tolist() == [0, 100, 100, 100]
    masks = base.random_masks(torch.ones(6000, dtype=torch.long), 3, generator)
    assert (masks.sum(0) - 2000).abs().max() < 4.5 * math.sqrt(6000 * 2 / 9)


def test_samples_have_no_mask_and_follow_the_generator(network: base.EsmForMaskedLM) -> None:
    first, again = (base.sample(network, 2, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.max() < base.MASK


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    assert pretrain.rate(0, 10_000) == pytest.approx(1 / pretrain.WARMUP)
    assert pretrain.rate(5000, 10_000) == 1
    assert pretrain.rate(8000, 10_000) == pytest.approx(0.5)
    assert pretrain.rate(10_000, 10_000) == 0


def test_area_under_curve_counts_pairs() -> None:
    scores, positive = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])
    assert pretrain.area_under_curve(scores, positive) == pytest.approx(3 / 4)


def test_the_tokenizer_has_a_token_per_letter() -> None:
    tokenizer = base.tokenizer()
    assert tokenizer("ACGT[MASK]A")["input_ids"] == [0, 1, 2, 3, base.MASK, 0]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (base.MASK, base.PAD)


def test_an_oracle_is_differentiable_in_its_letters() -> None:
    torch.manual_seed(0)
    oracle = oracles.Oracle(8).eval()
    letters = torch.full((2, 100, 4), 0.25, requires_grad=True)
    oracle(letters).sum().backward()
    assert letters.grad is not None and letters.grad.abs().sum() > 0


# the committed weights


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((pretrain.WEIGHTS / "figures.json").read_text())


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return grammar.draw(1000, pretrain.SEEDS["held_out"])


@pytest.mark.parametrize("name", ["oracle_train", "oracle_judge"])
def test_an_oracle_predicts_activity(name: str, held_out: Tensor, figures: dict[str, Any]) -> None:
    """The issue's bar is .88; figures.json has it of 10,000 sequences."""
    noisy = activity.measured(held_out, torch.Generator().manual_seed(0))
    scores = oracles.score(oracles.load(name), held_out)
    found = pretrain.r_squared(scores, noisy)
    assert found == pytest.approx(figures["oracles"][name]["r2"], abs=0.02)
    assert figures["oracles"][name]["r2"] >= 0.88


def test_the_two_activity_oracles_are_not_one(held_out: Tensor) -> None:
    """They agree on the data, and differ by about as much as each differs from the truth."""
    names = ("oracle_train", "oracle_judge")
    first, second = (oracles.score(oracles.load(name), held_out) for name in names)
    assert 0.1 < (first - second).square().mean().sqrt() < 0.6


def test_the_classifier_knows_what_is_accessible(held_out: Tensor, figures: dict[str, Any]) -> None:
    accessible = activity.accessible(held_out, torch.Generator().manual_seed(0))
    scores = oracles.score(oracles.load("accessibility"), held_out)
    found = pretrain.area_under_curve(scores, accessible)
    assert found == pytest.approx(figures["oracles"]["accessibility"]["auc"], abs=0.04)


def test_the_base_has_learned_the_grammar(held_out: Tensor, figures: dict[str, Any]) -> None:
    """Its bound, and each factor's word: its fourth letter is masked, the others are not."""
    model = base.load()
    generator = torch.Generator().manual_seed(0)
    found = base.log_likelihood(model, held_out[:64], generator, draws=5).mean().item()
    assert found == pytest.approx(figures["base"]["log_likelihood_held_out"], abs=2.5)
    for name in grammar.MOTIFS:
        tokens = with_sites((40, word(name)))
        asked, place = tokens.clone(), 43
        asked[0, place] = base.MASK
        with torch.no_grad():
            chances = base.log_probs(model, asked)[0, place].exp()
        assert chances[tokens[0, place]] > 0.8, name


def test_the_base_loads_in_plain_transformers() -> None:
    model = AutoModelForMaskedLM.from_pretrained(base.FOLDER)
    words = AutoTokenizer.from_pretrained(base.FOLDER)
    assert words("ACGT")["input_ids"] == [0, 1, 2, 3]
    assert sum(p.numel() for p in model.parameters()) == 548_007

"""Several prompt sets as one: whose turn it is, what is drawn, what a run of it writes."""

import json
from collections import Counter
from pathlib import Path

import helpers
import pytest
import torch
from safetensors.torch import load_file

from ddpo import config, prompts
from ddpo.__main__ import main
from ddpo.building import build
from ddpo.errors import UserError
from ddpo.parallel.sizes import Sizes
from ddpo.prompts import Prompt, PromptSet
from ddpo.training.selection import draw

SIZES = Sizes(prompts_per_iteration=6, samples_per_prompt=1, minibatches=1, epochs=1, micro_batch=1)

LORA = "lora/pytorch_lora_weights.safetensors"


def of(name: str, size: int) -> PromptSet:
    return PromptSet(name, tuple(Prompt(f"{name}{i}") for i in range(size)))


@pytest.mark.parametrize("weights", [[1], [2, 1], [1, 1, 1], [0.1, 5, 2.5, 1], [1e-3, 1e3]])
def test_turns_keep_the_shares_at_every_moment(weights: list[float]) -> None:
    counts = Counter[int]()
    for position in range(400):
        own, before = prompts.turn(position, weights)
        assert before == counts[own]  # none is left out, and none comes twice
        counts[own] += 1
        for number, weight in enumerate(weights):
            assert abs(counts[number] - (position + 1) * weight / sum(weights)) <= 1


def test_a_set_alone_is_drawn_as_without_weights() -> None:
    settings = config.load({"prompts": {"name": "animals"}, "rewards": [{"name": "brightness"}]})
    mixture = config.load({"prompts": [{"name": "animals", "weight": 3}]})
    alone, mixed = build.plain_prompts(settings), build.plain_prompts(mixture)
    assert (mixed.prompts, mixed.name) == (alone.prompts, "animals")
    for iteration in (0, 7, 8, 1000):
        assert draw(mixed, SIZES, 5, iteration) == draw(alone, SIZES, 5, iteration)


def test_each_set_has_its_share_of_an_iteration_and_passes_of_its_own() -> None:
    a, b = of("a", 5), of("b", 4)
    mixture = prompts.mixed([(a, 2), (b, 1)])
    drawn = [draw(mixture, SIZES, 3, iteration) for iteration in range(10)]
    texts = [prompt.text for each in drawn for prompt in each]
    assert all(sum("a" in prompt.text for prompt in each) == 4 for each in drawn)
    for name, size in (("a", 5), ("b", 4)):
        own = [text for text in texts if name in text]
        for first in range(0, len(own), size):
            assert len({*own[first : first + size]}) == size
        assert own[:size] != own[size : 2 * size]
    # the first set comes in the order that it has alone, and an iteration knows no other
    alone = [prompt.text for i in range(10) for prompt in draw(a, SIZES, 3, i)]
    assert [text for text in texts if "a" in text] == alone[:40]
    assert draw(mixture, SIZES, 3, 4) == drawn[4] != draw(mixture, SIZES, 4, 4)


def test_a_slice_has_of_each_set_by_its_weight() -> None:
    mixture = prompts.mixed([(of("a", 40), 3), (of("b", 10), 1)])
    assert mixture.name == "a+b" and len(mixture) == 50
    assert Counter(prompt.text[0] for prompt in mixture[:8]) == {"a": 6, "b": 2}
    assert not mixture[:8].shares


def test_a_prompt_of_two_sets_stands_once_and_is_drawn_for_both() -> None:
    both = prompts.mixed([(PromptSet("x", (Prompt("fox"), Prompt("owl"))), 1), (of("b", 2), 1)])
    again = prompts.mixed([(both, 1), (PromptSet("y", (Prompt("owl"),)), 9)])
    assert [prompt.text for prompt in again].count("owl") == 1 and len(again) == 4
    drawn = [prompt.text for i in range(20) for prompt in draw(again, SIZES, 0, i)]
    assert abs(drawn.count("owl") - 120 * (0.9 + 0.1 / 4)) <= 2


def test_the_hash_knows_the_weights() -> None:
    a, b = of("a", 3), of("b", 3)
    hashes = {prompts.mixed([(a, 1), (b, weight)]).hash for weight in (1, 1.001)}
    assert len(hashes) == 2 and prompts.mixed([(a, 1), (b, 1)]).hash in hashes


def test_other_metadata_under_one_key_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a fox", "count": 1}\n{"prompt": "a cat"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "a fox", "count": 2}\n')
    sets = [{"path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    settings = config.load({"prompts": sets})
    with pytest.raises(UserError, match=r"prompts.sets: 'a fox' stands in a and, with other meta"):
        build.plain_prompts(settings)
    apart = [sets[0], {**sets[1], "template": "a photo of {prompt}"}]
    section = {"sets": apart, "template": "{prompt}!"}
    assert [p.text for p in build.plain_prompts(config.load({"prompts": section}))] == [
        "a fox!",
        "a photo of a fox",
        "a cat!",
    ]


REFUSED = {
    "[{name: animals, weight: 0}]": "prompts.sets.0.weight: must be above 0, got 0",
    "[{name: animals, weight: .inf}]": "prompts.sets.0.weight: must be above 0 and finite",
    "[{name: animals, wieght: 2}]": "prompts.sets.0.wieght: no such option; did you mean weight?",
    "[{name: animals}, {weight: 2}]": "prompts.sets.1: needs a name, a path or a dataset",
    "[{name: animals, path: b.txt}]": "prompts.sets.0: name and path are given; keep one",
    "[{name: animals}, {name: animals, weight: 2}]": "prompts.sets.1: is prompts.sets.0 again",
    "[{name: animals, split: test}]": "prompts.sets.0.split: is of a data set",
    "[{name: animals}, {name: animls}]": "did you mean animals?",
    "[]": "prompts.sets: is empty",
    "[animals]": "prompts.sets.0: expected options, as {key: value}, got 'animals'",
    "{name: animals, sets: [{name: activities}]}": "prompts: name and sets are given; keep one",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_mixed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "smoke", "--prompts", text]) == 2
    assert REFUSED[text] in capsys.readouterr().err


def test_a_run_of_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It resumes bit for bit, keeps its weights, and is evaluated as one set."""
    (tmp_path / "words.txt").write_text("a fox\nan owl\na bee\n")
    mixture = f"[{{path: {tmp_path / 'words.txt'}, weight: 3}}, {{name: activities}}]"

    def train(name: str, *more: str) -> int:
        flags = ["--prompts", mixture, "--evaluation.num_prompts", "4", *more]
        return main(["train", *helpers.smoke(tmp_path / name), *flags])

    assert train("whole", "--trainer.iterations", "2") == 0
    assert train("run", "--trainer.iterations", "1") == 0
    run = str(tmp_path / "run")
    assert main(["train", "--resume", run, "--prompts.sets.0.weight", "2"]) == 2
    assert "prompts.sets: differs from the run" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--trainer.iterations", "2"]) == 0
    one, other = (load_file(tmp_path / name / LORA) for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})
    assert main(["evaluate", run]) == 0
    results = json.loads((tmp_path / "run/evaluation/results.json").read_bytes())
    name, *_ = results["sets"]
    assert name == "words+activities"
    lines = (tmp_path / "run/evaluation/samples.jsonl").read_text().splitlines()
    shown = {row["prompt"] for row in map(json.loads, lines) if row["set"] == name}
    assert shown > {"a fox", "an owl", "a bee"} and len(shown) == 4
    assert "words+activities" in (tmp_path / "run/README.md").read_text()

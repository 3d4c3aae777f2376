"""Weights of rewards as a taste: what is drawn, what is credited, what is refused."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import helpers
import pytest
import torch
from PIL import Image

from ddpo import advantages, tastes
from ddpo.__main__ import main
from ddpo.building import build
from ddpo.errors import UserError
from ddpo.parallel.seeds import generator
from ddpo.prompts import Prompt, PromptSet
from ddpo.rewards import Reward
from ddpo.runs import grid
from ddpo.runs.finished import Run
from ddpo.tastes import Known, PersonalPrompts
from ddpo.training.credit import Mixture

TRAINING = Path(__file__).parents[2] / "ddpo" / "training"
WORDS = PromptSet("words", tuple(helpers.as_prompts(["a fox", "an owl"])))
KNOWN = Known(WORDS, ["a", "b", "c"], Path(), 1, torch.device("cpu"))


def personal(dropout: float = 0.0, **options: int) -> PersonalPrompts:
    return PersonalPrompts("w", WORDS.prompts, tastes.build("weights", KNOWN, **options), dropout)


def test_the_loop_knows_no_tastes() -> None:
    """Conditions and prompts carry them."""
    sources = [file.read_text() for file in TRAINING.rglob("*.py")]
    assert sources and not any(re.search("taste", source, re.IGNORECASE) for source in sources)


def test_every_mixture_is_equally_likely() -> None:
    """3 rewards in steps of 1/4: 15 mixtures, which all add up to 1."""
    prompts = personal(levels=4)
    drawn = [prompts.drawn(0, generator(0, i)) for i in range(3000)]
    counts = Counter(tuple(prompt.weights.values()) for prompt in drawn if prompt.weights)
    assert len(counts) == 15
    assert all(sum(mixture) == 1 for mixture in counts)
    assert all(140 < count < 260 for count in counts.values())  # 200 each, sd 13.7
    first = drawn[0]
    assert first.taste is not None and first.weights is not None
    assert first.taste.tolist() == [[0.5 + weight for weight in first.weights.values()]]
    assert first.key.startswith("a fox | a ") and len({prompt.key for prompt in drawn}) == 15


def test_a_mixture_is_told_no_louder_than_its_corners() -> None:
    """What is half-way between two projections of corners is nearly the projection of half of each.

    Of the weights themselves it would be 1.41 times as long.
    """
    taste = tastes.build("weights", KNOWN)
    projection = torch.nn.Linear(3, 4096, bias=False)
    torch.nn.init.normal_(projection.weight, generator=torch.Generator().manual_seed(0))

    def told(**mixture: float) -> torch.Tensor:
        return torch.nn.functional.layer_norm(projection(taste.of(mixture)), [4096])

    half, chord = told(a=0.5, c=0.5), (told(a=1) + told(c=1)) / 2
    assert 1 <= (half.norm() / chord.norm()).item() < 1.12
    assert torch.cosine_similarity(half, chord).item() > 0.999


def test_some_prompts_are_for_nobody() -> None:
    prompts = personal(dropout=0.3)
    drawn = [prompts.drawn(0, generator(1, i)) for i in range(1000)]
    nobody = [prompt for prompt in drawn if prompt.taste is None]
    assert 240 < len(nobody) < 360
    assert {prompt.key for prompt in nobody} == {WORDS[0].key}


def test_shown_prompts_have_one_taste_and_slices_stay_personal() -> None:
    prompts = personal()
    assert prompts[1].weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert isinstance(prompts[:1], PersonalPrompts) and prompts[:1][0] == prompts[0]


def test_samples_are_credited_with_their_own_mixture() -> None:
    """r = sum of w_k weight_k r_k, compared within one prompt and one mixture."""
    values = {"a": torch.tensor([1.0, 3.0, 5.0, 2.0]), "b": torch.tensor([7.0, 1.0, 0.0, 4.0])}
    rewards = [Reward("a", 2.0, helpers.redness), Reward("b", 1.0, helpers.redness)]
    mixture = Mixture(rewards, lambda: advantages.build("group", std="none"))
    prompts = [
        replace(Prompt("x"), weights=weights)
        for weights in ({"a": 1.0, "b": 0.0}, {"a": 0.25, "b": 0.75})
        for _ in range(2)
    ]
    group = torch.tensor([0, 0, 1, 1])
    credit, _ = mixture.credit(values, prompts, group)
    assert credit.reward.tolist() == [2.0, 6.0, 2.5, 4.0]
    assert credit.advantage.tolist() == [-2.0, 2.0, -0.75, 0.75]
    apart = Mixture(rewards, lambda: advantages.build("group", std="none"), per_reward=True)
    credit, _ = apart.credit(values, prompts, group)
    assert credit.advantage.tolist() == [-2.0, 2.0, -0.75, 0.75]


FLAGS = ["--advantage.name", "group", "--model.taste", "{name: weights, dim: 2, dropout: 0.2}"]
REWARDS = "[{name: brightness}, {name: jpeg_compressibility}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tastes are weights; its adapter is large enough to be seen."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    argv = helpers.smoke(folder, "--rewards", REWARDS, "--trainer.lr", "3e-2", *FLAGS)
    assert main(["train", *argv]) == 0
    return folder


def test_a_picture_to_a_mixture(run: Path, tmp_path: Path) -> None:
    """Base, nobody's, two scales of the taste: another picture each, and 0 is nobody's."""
    out = tmp_path / "sample.png"
    argv = ["sample", str(run), "--prompt", "a fox", "--count", "1", "--out", str(out)]
    told = ["--weights", "{brightness: 0.3, jpeg_compressibility: 0.7}"]
    scales = ["--taste_scale", "0", "--taste_scale", "1", "--taste_scale", "5"]
    assert main([*argv, *told, *scales]) == 0
    assert Image.open(out).height > 5 * 16
    made = Run(run)
    taste = made.taste.of({"brightness": 1})
    off, nobody, plain, strong = (
        made.sample(["a fox"], [0], taste=each, taste_scale=scale)[0].tobytes()
        for each, scale in ((taste, 0.0), (None, 1.0), (taste, 1.0), (taste, 5.0))
    )
    assert off == nobody and len({nobody, plain, strong}) == 3


def test_a_grid_of_tastes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base, one taste, the middle of the two, the other; the same noise in all."""
    seen: list[tuple[list[str], list[Any]]] = []

    def table(cells: Any, rows: Any, titles: list[str], *_: Any, **__: Any) -> Image.Image:
        seen.append((titles, [cell.tobytes() for cell in cells[0]]))
        return cells[0][0]

    monkeypatch.setattr(grid, "table", table)
    argv = ["grid", str(run), "--count", "1", "--out", str(tmp_path / "grid.png")]
    bright, small = "{brightness: 1}", "{jpeg_compressibility: 1}"
    assert main([*argv, "--weights", bright, "--weights", small, "--between", "1"]) == 0
    ((titles, pictures),) = seen
    assert titles == ["base", "brightness: 1", "0.5 of the way", "jpeg_compressibility: 1"]
    made = Run(run)
    half = {"brightness": 0.5, "jpeg_compressibility": 0.5}
    known = build.plain_prompts(made.config)[0].text
    assert pictures[0] == made.sample([known], [0], "base")[0].tobytes()
    for place, weights in ((1, {"brightness": 1}), (2, half), (3, {"jpeg_compressibility": 1})):
        own = made.sample([known], [0], taste=made.taste.of(weights))[0]
        assert pictures[place] == own.tobytes()
    assert len(set(pictures)) == 4
    scales = ["--lora_scale", "0.5", "--taste_scale", "5"]
    assert main([*argv, "--weights", bright, *scales]) == 0
    titles, pictures = seen[-1]
    strong = made.sample([known], [0], "last", 0.5, made.taste.of({"brightness": 1}), 5.0)[0]
    assert titles == ["base", "brightness: 1"] and pictures[1] == strong.tobytes()
    with pytest.raises(UserError, match="--lora_scale and tastes would differ"):
        grid.Across(lora_scale=(0.5, 1), taste=[("", made.taste.of(half))]).check(1)
    with pytest.raises(UserError, match="--seed and tastes would differ"):
        grid.Across(seed=(0, 1), taste=[("", made.taste.of(half))]).check(1)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--weights", "{brightness: 0.5}"], "--weights: they add up to 0.5; let them add up to 1"),
        (["--weights", "{britness: 1}"], "no reward is called 'britness'; did you mean bright"),
        (["--weights", "{brightness: -1}"], "brightness: -1 is no number of 0 or more"),
        (["--weights", "3"], "--weights: 3 is no mapping; write {brightness: 1}"),
        (["--user", "me"], "--user: a taste of this run is told by --weights, only"),
        (["--taste_scale", "2"], "--taste_scale: there is no taste to scale"),
    ],
)
def test_what_is_told_wrongly_is_refused(
    run: Path, flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(run), "--prompt", "a fox", *flags]) == 2
    assert line in capsys.readouterr().err
    assert main(["grid", str(run), *flags]) == 2
    assert line in capsys.readouterr().err
    assert not (run / "grid.png").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.taste.dim", "3"], "a taste of weights is 1 x 2 here; set tokens 1 and dim 2"),
        (["--advantage.name", "batch"], "advantage.name: batch compares images of different mix"),
        (["--advantage.name", "per_prompt"], "take group, or advantage.min_count 2, the samples"),
        (["--rewards", "[{name: brightness}]"], "there is only brightness; give rewards another"),
        (["--model.taste.name", "table"], "table needs prompts with a column user"),
        (["--model.pretrained", "emoji_flow"], "model.taste: sd3 has no layers for one"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    flags: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = helpers.smoke(tmp_path / "new", "--rewards", REWARDS, *FLAGS, *flags)
    code, told = helpers.call(capsys, *argv)
    assert code == 2 and line in told
    assert not (tmp_path / "new").exists()


def test_a_run_resumes_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    flags = ["--rewards", REWARDS, "--trainer.lr", "3e-2", *FLAGS]
    argv = helpers.smoke(tmp_path / "two", *flags)
    assert main(["train", *argv, "--trainer.iterations", "1"]) == 0
    resume = ["--resume", str(tmp_path / "two"), "--trainer.iterations", "3"]
    assert main(["train", *resume]) == 0
    one, two = (
        sorted((folder / "checkpoints").glob("*"))[-1] / "parameters.safetensors"
        for folder in (run, tmp_path / "two")
    )
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("file_format", ["diffusers", "merged"])
def test_an_export_draws_the_same_in_diffusers(
    run: Path, file_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert main(["export", str(run), "--to", str(to), "--format", file_format]) == 0
    assert "plain diffusers" in capsys.readouterr().out
    assert (to / "ip_adapter.safetensors").is_file() and (to / "README.md").is_file()


@pytest.fixture(scope="module")
def flux_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a random FLUX, under real guidance and a LoRA that diffusers reads merged."""
    folder = tmp_path_factory.mktemp("flux")
    flow = ["--sampler.name", "flow_sde", "--model.max_sequence_length", "24"]
    model = ["--model.pretrained", families.saved("flux", folder / "base"), *flow]
    size = ["--model.size", "[16, 24]", "--sampler.guidance_scale", "2"]
    personal = ["--rewards", REWARDS, "--trainer.lr", "3e-2", *FLAGS]
    argv = helpers.smoke(folder / "run", *model, *size, *personal, "--trainer.iterations", "1")
    assert main(["train", *argv]) == 0
    return folder / "run"


@pytest.mark.parametrize("file_format", ["diffusers", "merged"])
def test_flux_has_tastes_that_diffusers_reads(
    flux_run: Path, file_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    code = main(["export", str(flux_run), "--to", str(to), "--format", file_format])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "plain diffusers" in told.out and "cannot be seen" not in told.out
    assert (to / "ip_adapter.safetensors").is_file() and (to / "README.md").is_file()


def test_an_export_that_has_no_place_for_a_taste_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "k"), "--format", "kohya"]) == 2
    assert "kohya's files have no place for a taste" in capsys.readouterr().err

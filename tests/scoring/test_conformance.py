"""The conformance kit tells rewards that break their contract from those that keep it; ours keep
it."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpo import images, rewards
from ddpo.commands import check, frame, score
from ddpo.models.emoji import scenes
from ddpo.scoring import conformance

Metadata = Sequence[Mapping[str, Any]]


def level(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def broken(case: conformance.Case) -> set[str]:
    return {finding.check for finding in conformance.findings(case) if finding.passed is False}


def good(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + torch.tensor([len(text) / 100 for text in prompts])


def partial(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    """Says nothing of most prompts."""
    return torch.where(torch.tensor(["count" in row for row in metadata]), level(images), torch.nan)


def listed(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Any:
    return np.array(level(images).tolist())


@pytest.mark.parametrize("reward", [good, partial, listed])
def test_a_reward_that_keeps_the_contract_passes(reward: Any) -> None:
    assert broken(conformance.Case(reward)) == set()


def one_number(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return images.mean()


def a_column(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images)[:, None]


def squeezed(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images)[:, None].squeeze()


def integers(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return (level(images) * 100).long()


def infinite(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return (level(images) - level(images)[0]).log()


def silent(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) * torch.nan


def centered(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) - images.mean()


def a_little_of_the_neighbor(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + 0.01 * level(images).roll(1)


def ranked(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images).sort().values


def by_position(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + torch.arange(len(images))


def noisy(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + 1e-3 * torch.rand(len(images))


def noisy_in_numpy(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + 0.0 * float(np.random.rand())


COUNTS: list[int] = []


def counting(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    COUNTS.append(1)
    return level(images) + len(COUNTS)


def in_place(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images.mul_(0.5))


def writes_metadata(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
    metadata[0]["seen"] = True
    return level(images)


def main_thread_only(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("no event loop in this thread")
    return level(images)


def with_gradients(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    images.requires_grad_()
    return torch.autograd.grad(images.square().sum(), images)[0].mean((1, 2, 3))


def wants_metadata(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    return level(images) + torch.tensor([float(len(row["animal"])) for row in metadata])


def raises(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
    raise ValueError("no such weights")


def two_arguments(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return level(images)


@pytest.mark.parametrize(
    ("reward", "checks"),
    [
        (one_number, "shape"),
        (a_column, "shape"),
        (squeezed, "shape"),
        (integers, "type"),
        (infinite, "values"),
        (silent, "values"),
        (centered, "singles"),
        (ranked, "order singles"),
        (a_little_of_the_neighbor, "order singles"),
        (by_position, "order singles"),
        (noisy, "determinism generators"),
        (noisy_in_numpy, "generators"),
        (counting, "determinism"),
        (in_place, "inputs"),
        (writes_metadata, "inputs"),
        (main_thread_only, "threads"),
        (with_gradients, "threads"),
        (wants_metadata, "bare"),
        (raises, "call"),
        (two_arguments, "call"),
    ],
)
def test_each_fault_is_seen_by_its_check(reward: Any, checks: str) -> None:
    assert broken(conformance.Case(reward)) == set(checks.split())


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a check; what was expected and found; exit code 2 where one fails; mistakes cost one
    line."""
    monkeypatch.chdir(tmp_path)
    source = (
        "def mine(images, prompts, metadata, *, power: float = 1.0):\n"
        "    return images.mean((1, 2, 3))"
    )
    Path("mine.py").write_text(f"{source} ** power\n")
    Path("far.py").write_text(f"{source.replace('mine', 'far')} - images.mean()\n")
    Path("text.py").write_text(
        "import torch\n"
        "def text(images, prompts, metadata):\n"
        "    return torch.tensor([float(row.get('length', 'nan')) for row in metadata])\n"
    )
    Path("lengths.jsonl").write_text('{"prompt": "a", "length": 1}\n{"prompt": "b", "length": 2}\n')
    for spec in ("mine.py", "mine.py:mine", "jpeg_compressibility"):
        assert frame.run(check.main, ["reward", spec, "--params", "{}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["ok", name] for name in conformance.CHECKS if name != "gradient"
        ]

    assert frame.run(check.main, ["reward", "far.py"]) == 2
    out, error = capsys.readouterr()
    (failed,) = [line for line in out.splitlines() if not line.startswith("ok")]
    assert failed.startswith("FAIL  singles") and "found: image 1 of 6 scores" in failed
    assert error == "ddpo: reward far fails singles\n"

    assert frame.run(check.main, ["reward", "text.py"]) == 2
    assert "--prompts" in capsys.readouterr().out
    assert frame.run(check.main, ["reward", "text.py", "--prompts", "lengths.jsonl"]) == 0
    capsys.readouterr()

    for argv, words in (
        (["reward", "mine.py", "--params", "{power: 2}"], "is not JSON"),
        (["reward", "mine.py", "--params", "[1]"], "is not a JSON object"),
        (["reward", "mine.py", "--params", '{"powr": 2}'], "did you mean power?"),
        (["reward", "mine.py", "--params", '{"power": "x"}'], "expected a float"),
        (["reward", "jpeg_compresibility"], "did you mean jpeg_compressibility?"),
        (["reward", "nowhere.py"], "nowhere.py: no such file"),
        (["objective", "ddpo"], "invalid choice: 'objective'"),
        ([], "required: kind, name"),
    ):
        assert frame.run(check.main, argv) == 2, argv
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ddpo: ") and words in line, line


def test_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of several sizes and modes, each by itself; nothing is scored where one cannot be
    read."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10), (255, 0, 0)).save("red.png")
    Image.new("RGBA", (7, 9), (0, 0, 255, 255)).save("blue.png")
    Image.new("L", (3, 3), 51).save("gray.png")
    Path("text.png").write_text("no picture")
    Path("red.py").write_text(
        "def red(images, prompts, metadata, *, power: float = 1.0):\n"
        "    red = images[:, 0].mean((1, 2))\n"
        "    return red ** power + len(prompts[0]) + metadata[0].get('more', 0)\n"
    )
    pictures = ["red.png", "blue.png", "gray.png"]
    asked = ["--prompt", "fox", "--metadata", '{"more": 10}', "--params", '{"power": 2}']
    assert frame.run(score.main, ["--reward", "red.py", *asked, *pictures]) == 0
    assert capsys.readouterr().out == "14\tred.png\n13\tblue.png\n13.04\tgray.png\n"
    for argv, words in (
        (["red.png", "text.png"], "text.png: cannot be read as an image"),
        (["red.png", "nowhere.png"], "nowhere.png: cannot be read as an image"),
        (["."], ".: cannot be read as an image"),
        (["red.png", "--params", "{"], "'{' is not JSON"),
        (["red.png", "--params", '{"power": "x"}'], "expected a float"),
        (["red.png", "--reward", "jpeg"], "nothing is called 'jpeg'"),
        ([], "required: files"),
    ):
        assert frame.run(score.main, ["--reward", "red.py", *argv]) == 2, argv
        out, error = capsys.readouterr()
        assert out == "" and len(error.splitlines()) == 1 and words in error, error


def test_the_name_of_a_reward_in_a_file() -> None:
    for spec in ("my/redness.py", "my/reds.py:redness", "package.reds:redness", "redness"):
        assert rewards.short_name(spec) == "redness"


def test_the_pictures_differ() -> None:
    """Else no check of order or of the batch could fail."""
    case = conformance.Case(good)
    assert (
        case.images.shape == (6, 3, 64, 64)
        and len({row.tobytes() for row in case.images.numpy()}) == 6
    )
    assert len(images.GUARDS["brightness"](case.images).unique()) == 6
    bike, chess, dishes = "a cat riding a bike", "a cow playing chess", "a goat washing dishes"
    shown = ("a fox", bike, "a dog", "a whale", chess, dishes)
    drawn = [scenes.draw(*each) for each in zip(shown, range(6), scenes.BACKGROUNDS, strict=True)]
    assert torch.equal(case.images, images.from_pil(drawn)), (
        "the file holds the scenes that are said"
    )

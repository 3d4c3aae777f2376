"""ddpo evaluate: an option is obeyed, and results.json says with what the pictures were made, or
refused."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import yaml
from option_cases import Flags, places, world
from PIL import Image

from ddpo import config, evaluate
from ddpo.__main__ import main
from ddpo.config.flags import within
from ddpo.evaluation import card, matched, page
from ddpo.evaluation.matched import Shot
from ddpo.records import tracking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with world(tmp_path_factory.mktemp("options"), run=True) as root:
        yield root


OBEYED: dict[str, Flags] = {
    "sampler.name": ["ddpm"],
    "sampler.num_steps": ["2"],
    "sampler.guidance_scale": ["4"],
    "sampler.batch_size": ["3"],
    "sampler.eta": ["0"],
    "sampler.negative_prompt": ["a cat"],
    "evaluation.prompts": ["activities_heldout"],
    "evaluation.samples_per_prompt": ["2"],
    "evaluation.num_prompts": ["1"],
    "evaluation.seed": ["1000"],
    "evaluation.kl_pictures": ["1"],
    "evaluation.features": ["emoji"],
    "evaluation.sampler": ["{num_steps: 2}"],
    "eval_rewards": ["[{name: brightness, label: light}]"],
    "model.dtype": ["bf16"],
    "model.size": ["[16, 24]"],
    "trainer.reward_timeout_s": ["7"],
    "plugins": ["[own]", "--eval_rewards", "[{name: mine}]"],
    "--checkpoint": ["000001"],
}


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Callable[[Flags], tuple[dict[str, Any], Any]]:
    """results.json, and the pictures with all that they are made with, of
    `ddpo evaluate run FLAGS`."""

    @cache
    def evaluated(flags: tuple[str, ...]) -> Any:
        calls, shoot = [], matched._shoot

        def watched(policy: Any, sampler: Any, prompts: Any, seeds: Any, *more: Any) -> list[Shot]:
            calls.append([sampler.batch_size, policy.dtype, *more[2:3]])
            return shoot(policy, sampler, prompts, seeds, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matched, "_shoot", watched)
            patch.setattr(page, "write", lambda folder: folder)
            patch.setattr(card, "write", lambda folder: folder)
            shutil.rmtree("run/pictures", ignore_errors=True)  # what is there is not made again
            assert main(["evaluate", "run", *flags]) == 0
        place = Path("run/evaluation")
        pictures = {file.name: file.read_bytes() for file in (place / "images").iterdir()}
        lines = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
        return json.loads((place / "results.json").read_bytes()), (calls, pictures, lines)

    return lambda flags: evaluated(tuple(flags))


def test_every_option_of_an_evaluation_is_in_the_table(folder: Path) -> None:
    known = {option.split(".0.")[0] for option in OBEYED}
    settable = {
        place for place in places(config.load("run/config.yaml")) if evaluate.settable(place)
    }
    assert settable <= known and {"eval_rewards", "--checkpoint"} <= known


@pytest.mark.parametrize("option", OBEYED)
def test_an_evaluation_obeys(option: str, evaluated: Any) -> None:
    """Another evaluation than without the option, and results.json says with what it was made."""
    value, *more = OBEYED[option]
    plain, seen = evaluated([])
    results, other = evaluated([option if option.startswith("--") else f"--{option}", value, *more])
    assert (other, results["sets"], results["spread"]) != (seen, plain["sets"], plain["spread"])
    flat, own = (dict(tracking.leaves(each["config"])) for each in (results, plain))
    changed = {key for key in {**flat, **own} if flat.get(key) != own.get(key)}
    if option == "--checkpoint":
        assert (plain["checkpoint"], results["checkpoint"]) == ("000002", "000001") and not changed
        (_, pictures, lines), (_, old, _) = other, seen
        assert {line["checkpoint"] for line in lines if line["column"] == "tuned"} == {"000001"}
        same = {name for name in pictures if pictures[name] == old[name]}
        assert same == {name for name in pictures if name.endswith("_base.png")}
    else:
        assert changed and all(within(key, [option, "eval_rewards", "sampler"]) for key in changed)
        shown = yaml.safe_load(value) if option in flat else None
        assert option not in flat or flat[option] == shown


def test_how_the_work_is_cut_changes_no_picture(evaluated: Any) -> None:
    """Beyond rounding: what sampler.batch_size and reward_timeout_s change is not seen."""
    _, (_, plain, _) = evaluated([])
    for option in ("sampler.batch_size", "trainer.reward_timeout_s"):
        _, (_, pictures, _) = evaluated([f"--{option}", *OBEYED[option]])
        for name in plain.keys() | pictures.keys():
            one, two = (
                np.asarray(Image.open(io.BytesIO(each[name])), int) for each in (plain, pictures)
            )
            assert np.abs(one - two).max() <= 1


def test_an_evaluation_refuses_all_else_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.load("run/config.yaml")
    others = [place for place in places(settings) if not evaluate.settable(place)]
    assert {"seed", "trainer.lr", "run_dir", "rewards.0.weight", "prompts.name"} <= {*others}
    before = Path("run/evaluation").exists()
    for option in [*others, "config", "objective", "model"]:
        assert main(["evaluate", "run", f"--{option}", "1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            f"ddpo: --{option}: an evaluation cannot change it; what it can set: sampler, "
        )
    assert Path("run/evaluation").exists() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--checkpoint", "000007"], "run has no checkpoint 000007; there are: 000001, 000002"),
        (["--checkpoint", "bst"], "run has no checkpoint bst; there are: 000001, 000002"),
        (["--sampler.num_steps", "0"], "sampler.num_steps: must be at least 1"),
        (["--sampler.num_stesp", "2"], "did you mean num_steps?"),
        (
            ["--eval_rewards", "[{name: jpeg_compressibility}]"],
            "jpeg_compressibility is there twice",
        ),
        (["--eval_rewards", "[{name: brightness, weight: 2}]"], "judges are not summed"),
        (["--evaluation.seed", "-1"], "evaluation.seed: must be at least 0 and below 2^64"),
        (["run"], "run is named twice; name it once"),
        (["nothing"], "nothing is not the folder of a run: there is no such folder"),
        (["words.txt"], "a LoRA is a .safetensors file, and a run a folder"),
        (["own"], "own is no run (config.yaml), no model (model_index.json) and no LoRA"),
    ],
)
def test_mistakes_in_an_evaluation(
    flags: Flags, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_best_checkpoint_is_the_one_of_the_evaluations(evaluated: Any) -> None:
    means = {
        row["iteration"]: row["eval/jpeg_compressibility"]
        for row in helpers.metrics.read(Path("run/metrics.jsonl"))
    }
    best = max(means, key=lambda iteration: means[iteration])
    assert evaluated(["--checkpoint", "best"])[0]["checkpoint"] == f"{best:06d}"


def test_the_help_of_an_evaluation_lists_what_can_be_set(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["run", "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", *argv])
        text = capsys.readouterr().out
        assert all(f"--{place}" in text for place in evaluate.SETTABLE if place != "sampler")
        assert "--sampler.eta" in text and "--trainer.lr" not in text and "--seed " not in text
        assert "best" in text and ("000002" in text) == (argv[0] == "run")

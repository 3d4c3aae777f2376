"""What an evaluation compares: runs, checkpoints, LoRA files, whole models, at the same seeds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from option_cases import world
from PIL import Image

import ddpo
from ddpo.__main__ import main
from ddpo.evaluation import results
from ddpo.parallel.progress import Progress
from ddpo.records import metrics
from ddpo.runs.targets import kinds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with world(tmp_path_factory.mktemp("targets"), run=True) as root:
        assert main(["export", "run", "--to", "kohya", "--format", "kohya"]) == 0
        assert main(["export", "run", "--to", "merged", "--format", "merged"]) == 0
        yield root


def evaluate(*argv: str) -> tuple[dict[str, Any], dict[str, dict[tuple[str, int], Any]]]:
    """results.json, and by column the pictures of each prompt and seed."""
    assert main(["evaluate", *argv, "--out", "out"]) == 0
    place = Path("out/evaluation")
    pictures: dict[str, dict[tuple[str, int], Any]] = {}
    for line in map(json.loads, (place / "samples.jsonl").read_text().splitlines()):
        with Image.open(place / line["image"]) as picture:
            own = pictures.setdefault(line["column"], {})
            own[line["prompt"], line["seed"]] = np.asarray(picture, int)
    return json.loads((place / "results.json").read_bytes()), pictures


PROMPTS = ["--prompts", "words.txt", "--sampler.num_steps", "3", "--sampler.guidance_scale", "1.5"]


def test_a_run_its_lora_in_two_formats_and_the_merged_model(folder: Path) -> None:
    """Four ways to name one model; the base is the model that the LoRAs are named over."""
    base = ddpo.load("run").config.model.pretrained
    kohya = next(Path("kohya").glob("*.safetensors"))
    names = [base, str(kohya), "run/lora", "merged", "run", "run@1"]
    found, pictures = evaluate(*names, *PROMPTS, "--eval_rewards", "sharpness,brightness")
    columns = found["columns"]
    assert columns[1:] == [kohya.stem, "run/lora", "merged", "run", "run@1"]
    reference, *others = columns
    assert found["targets"]["run@1"]["checkpoint"] == "000001"
    for key, picture in pictures[reference].items():
        first, *same = (pictures[column][key] for column in others[:4])
        assert all(np.abs(first - each).max() <= 1 for each in same)
        assert np.abs(first - picture).max() > 2 and len({*map(len, pictures.values())}) == 1
    assert {"sharpness", "brightness"} <= found["sets"]["words"].keys()
    _check_divergences(found)
    entry = found["sets"]["words"]["sharpness"]
    assert entry["difference"] == entry[columns[1]]["difference"] and "win_rate" in entry["run"]
    assert (folder / "out" / "index.html").is_file()


def _check_divergences(found: dict[str, Any]) -> None:
    """The KL to the base of one chain, however its weights are named."""
    reference, *others = found["columns"]
    kl = {column: entry["kl"]["mean"] for column, entry in found["spread"]["words"].items()}
    assert kl[reference] is None and kl["run"] > 0
    # the number of the run itself, whose base is its adapter switched off
    assert [kl[column] for column in others[:3]] == pytest.approx([kl["run"]] * 3, rel=1e-3)
    assert abs(kl["run@1"] - kl["run"]) > 0.01 * kl["run"]


def test_the_divergence_of_a_lora_is_to_the_model_before_it(folder: Path) -> None:
    """Which is loaded for it where no column shows it; another family's chain has none."""
    lora, flags = "run/lora", ["--sampler.num_steps", "3", "--prompts", "words.txt"]
    flags += ["--eval_rewards", "sharpness"]
    base = ddpo.load("run").config.model.pretrained
    found, _ = evaluate("other", base, lora, *flags)
    kl = {column: entry["kl"]["mean"] for column, entry in found["spread"]["words"].items()}
    names = found["columns"]
    assert kl[names[0]] is None and kl[names[1]] > 10 * kl[names[2]] > 0
    silent, _ = evaluate(
        base, lora, *flags, "--evaluation.kl_pictures", "0", "--evaluation.seed", "9"
    )
    assert all(entry["kl"]["mean"] is None for entry in silent["spread"]["words"].values())


def test_the_base_is_what_ddpo_sample_draws(folder: Path) -> None:
    """To the last bit, whatever the number of pictures a network call makes."""
    for batch_size in ("1", "3", "8"):
        flags = [*PROMPTS, "--sampler.batch_size", batch_size]
        assert main(["evaluate", "run", *flags, "--out", f"out_{batch_size}"]) == 0
        run = ddpo.load("run")
        run.sampler = type(run.sampler)(run.sampler.steps, 1.5, int(batch_size))
        place = Path(f"out_{batch_size}/evaluation")
        for line in map(json.loads, (place / "samples.jsonl").read_text().splitlines()):
            if line["column"] == "base":
                (drawn,) = run.sample([line["prompt"]], [line["seed"]], "base")
                with Image.open(place / line["image"]) as picture:
                    assert np.array_equal(picture, drawn)


def test_two_processes_are_one(folder: Path) -> None:
    """The same pictures and numbers, those of a network too; each picture is made once."""
    flags = ["run", *PROMPTS, "--evaluation.samples_per_prompt", "2", "--sampler.batch_size", "2"]
    flags += ["--eval_rewards", "[{name: clip_score, params: {pretrained: emoji}}]"]
    assert main(["evaluate", *flags, "--out", "alone"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--standalone", "-m", "ddpo"]
    subprocess.run(
        [*torchrun, "evaluate", *flags, "--out", "together"], env=helpers.one_thread(), check=True
    )
    files = [sorted(Path(out).rglob("*.png")) for out in ("alone", "together")]
    for one, other in zip(*files, strict=True):
        assert one.relative_to("alone") == other.relative_to("together")
        assert one.read_bytes() == other.read_bytes()
    for name in ("samples.jsonl", "prompts.csv", "results.json"):
        one, other = (Path(out, "evaluation", name).read_bytes() for out in ("alone", "together"))
        assert one == other.replace(b'"run_dir": "together"', b'"run_dir": "alone"'), name
    assert len(list(Path("together").glob("pictures/**/*.png"))) == 8  # 2 prompts, seeds, columns


def test_more_seeds_and_another_reward_add_to_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    add = Progress.add
    monkeypatch.setattr(
        Progress, "add", lambda self, new, old: (made.append(new), add(self, new, old))
    )
    flags = ["run", "--out", "more", "--evaluation.prompts", "null"]
    assert main(["evaluate", *flags]) == 0
    before = {file: file.stat().st_mtime_ns for file in Path("more/pictures").rglob("*.png")}
    assert sum(made) == len(before) == 4  # two prompts, two columns
    made.clear()
    assert main(["evaluate", *flags, "--eval_rewards", "sharpness"]) == 0
    assert sum(made) == 0
    assert main(["evaluate", *flags, "--evaluation.samples_per_prompt", "2"]) == 0
    assert sum(made) == 4
    made.clear()
    # a damaged one is made again, and no other
    damaged = next(iter(before))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100])
    assert main(["evaluate", *flags]) == 0
    assert sum(made) == 1 and damaged.read_bytes() == content
    others = {file: time for file, time in before.items() if file != damaged}
    assert all(file.stat().st_mtime_ns == time for file, time in others.items())


def test_all_numbers_come_from_samples_jsonl(folder: Path) -> None:
    flags = ["--evaluation.samples_per_prompt", "3", "--evaluation.features", "emoji"]
    found, _ = evaluate("run", *flags)
    assert found["spread"]["words"]["tuned"]["cmmd"] is not None
    assert 1 < found["spread"]["words"]["tuned"]["vendi_within"] <= 3
    again = metrics.clean(results.recompute(Path("out/evaluation")))
    assert {key: found[key] for key in again} == again
    # without the program: the gain of a prompt is the difference of its means
    rows = metrics.read(Path("out/evaluation/samples.jsonl"))
    own = [row for row in rows if row["set"] == "words" and row["prompt"] == "a fox"]
    means = {
        column: np.mean([r["scores"]["brightness"] for r in own if r["column"] == column])
        for column in ("base", "tuned")
    }
    (gain,) = [
        row
        for row in results.gains(rows, ["base", "tuned"])
        if (row["set"], row["prompt"], row["score"]) == ("words", "a fox", "brightness")
    ]
    assert gain["gain"] == pytest.approx(means["tuned"] - means["base"]) and gain["n"] == 3
    tuned = [row["kl"] for row in rows if row["column"] == "tuned"]
    assert all(row["kl"] is None for row in rows if row["column"] == "base")
    assert sum(value is not None for value in tuned) == 4 and min(filter(None, tuned)) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base"], "base is that of a run, and no run is named"),
        (["run/lora"], "is a LoRA; name the model it belongs to before it"),
        (["other@3"], "other is not the folder of a run: it has no config.yaml"),
    ],
)
def test_what_cannot_be_compared(words: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ddpo.errors.UserError, match=message):
        kinds(words)


def test_the_estimate_is_of_what_is_left_to_make() -> None:
    with Progress(100, quiet=True) as progress:
        progress.add(0, 40)
        progress.add(20, 0)
        assert progress.line(120.0) == "20 of 60 pictures, about 4 minutes left"

"""The model card: what it says is what the folder holds, and its code gives our pictures."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

import ddpo
from ddpo import config, train
from ddpo.commands import frame
from ddpo.evaluation import card
from ddpo.parallel.seeds import Purpose, generator
from ddpo.runs import judge


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`evaluated`: a LoRA; `whole`: the UNet, in half precision and by ddpm."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--trainer.lr", "1e-2", "--trainer.iterations", "2", "--evaluation.num_prompts", "3"]
    argv = helpers.smoke(
        folder / "evaluated", *flags, "--lora.alpha", "8", "--evaluation.samples_per_prompt", "2"
    )
    assert frame.run(train.main, argv) == 0
    before = (folder / "evaluated" / "README.md").read_text()
    assert (
        "It has not been evaluated. `ddpo evaluate evaluated`" in before
        and "evaluation/" not in before
    )
    judge.judge(config.load(folder / "evaluated" / "config.yaml"))
    argv = helpers.smoke(folder / "whole", *flags, "--sampler.name", "ddpm")
    at = argv.index("--lora.rank")
    argv[at : at + 2] = ["--lora", "null"]
    assert frame.run(train.main, argv) == 0
    return folder


def copy(run: Path, to: Path, **changes: Any) -> Path:
    """The run under another configuration, its card written again."""
    shutil.copytree(run, to)
    settings = yaml.safe_load((to / "config.yaml").read_text())
    for place, value in changes.items():
        section, key = place.split("__")
        settings[section][key] = value
    (to / "config.yaml").write_text(yaml.safe_dump(settings))
    return card.write(to)


def test_its_numbers_and_pictures_are_those_of_the_evaluation(runs: Path) -> None:
    folder = runs / "evaluated"
    text = (folder / "README.md").read_text()
    results = json.loads((folder / "evaluation/results.json").read_text())
    for name, scores in results["sets"].items():
        entry = scores["jpeg_compressibility"]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert (f"`{name}` were never trained on" in text) == (name == "animals_heldout")
        assert cells[1] == "jpeg_compressibility, trained on"
        numbers = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", " ".join(cells[2:5]))]
        difference = [entry["difference"][key] for key in ("mean", "low", "high")]
        expected = [entry["base"]["mean"], entry["tuned"]["mean"], *difference]
        assert numbers == pytest.approx(expected, abs=6e-4) and cells[5].endswith("of 6")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == ["evaluation/before_after.png", "evaluation/curves.png"]
    assert all((folder / picture).is_file() for picture in pictures)
    for guard in ("brightness", "saturation", "edge_density", "color_entropy"):
        assert f"guard: {guard}: " in text
    assert "not been evaluated" not in text and "earlier state" not in text
    assert "Minus the size of the image as a JPEG" in text, "what the reward is"


def test_what_the_hub_reads(runs: Path, tmp_path: Path) -> None:
    """As its own library parses it. A folder of this machine is nobody's base model."""
    data = ModelCard.load(runs / "evaluated" / "README.md").data
    assert data.base_model is None and data.pipeline_tag == "text-to-image" and "lora" in data.tags
    assert [(result.dataset_name, result.metric_type) for result in data.eval_results] == [
        ("animals", "jpeg_compressibility"),
        ("animals_heldout", "jpeg_compressibility"),
    ]
    assert all((runs / "evaluated" / widget["output"]["url"]).is_file() for widget in data.widget)

    hub = copy(runs / "evaluated", tmp_path / "hub", model__pretrained="somebody/some-model")
    data = ModelCard.load(hub).data
    assert (data.base_model, data.base_model_relation) == ("somebody/some-model", "adapter")
    assert 'from_pretrained("somebody/some-model"' in hub.read_text()
    data = ModelCard.load(
        copy(runs / "whole", tmp_path / "whole", model__pretrained="some/model")
    ).data
    assert (
        data.base_model_relation == "finetune"
        and "lora" not in data.tags
        and data.eval_results is None
    )


def test_what_it_says_of_other_runs(runs: Path, tmp_path: Path) -> None:
    toy = copy(runs / "evaluated", tmp_path / "toy", model__pretrained="emoji").read_text()
    assert "**A toy.**" in toy and "EMBEDDED" in toy and '"emoji"' not in toy
    more = copy(
        runs / "evaluated", tmp_path / "more", trainer__iterations=5, ema__decay=0.9
    ).read_text()
    assert "**This is of an earlier state, 2 iterations**" in more and "the running average" in more
    whole = (runs / "whole" / "README.md").read_text()
    assert (
        "The whole UNet was trained; `lora/unet` holds it" in whole and "holds a LoRA" not in whole
    )


@pytest.mark.parametrize("name", ["evaluated", "whole"])
def test_its_code_gives_our_pictures(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (runs / name / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(runs / name)
    found: dict[str, Any] = {}
    exec(code, found)
    # by ddpm diffusers draws noise in the last step too, so that only the weights compare
    if name == "whole":
        ours = ddpo.load(runs / name)
        theirs = dict(found["pipeline"].unet.named_parameters())
        with ours.policy.weights(ours.remember()):
            assert all(
                np.array_equal(p.detach(), theirs[n].detach())
                for n, p in ours.policy.unet.named_parameters()
            )
        return
    pipeline, (ours,) = found["pipeline"], ddpo.load(runs / name).sample(["a cat"], [7])
    call = re.search(r"pipeline\(\s*(.*?)\s*\)\.images", code, re.DOTALL)
    assert call and call[1].startswith('"a cat"')
    again = f"pipeline({call[1]}, generator=noise).images[0]"
    theirs = eval(again, {"pipeline": pipeline, "noise": generator(Purpose.EVALUATION, 7)})
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1

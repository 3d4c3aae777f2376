"""`ddpo schema`: what an editor is told of a configuration file, and that it is what we read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ddpo import config, plugins
from ddpo.__main__ import main
from ddpo.config import schema
from ddpo.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def bundled() -> Iterator[Draft202012Validator]:
    """Of the things that come with ddpo alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, "")
        patch.setattr(plugins, "_points", lambda kind: [])
        document = schema.document()
    Draft202012Validator.check_schema(document)
    yield Draft202012Validator(document)


def test_the_committed_schema_is_the_present_one(bundled: Draft202012Validator) -> None:
    committed = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    assert committed == bundled.schema, "ddpo schema > configs/schema.json (without DDPO_PLUGINS)"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_configurations_are_valid(file: Path, bundled: Draft202012Validator) -> None:
    """As written, and with every default as `config.yaml` of a run has them."""
    for values in (file.read_text(encoding="utf-8"), config.dump(config.load(file))):
        errors = [error.message for error in bundled.iter_errors(yaml.safe_load(values))]
        assert not errors


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_editor_finds_the_schema(file: Path) -> None:
    """By a comment that is not the file's summary."""
    lines = file.read_text(encoding="utf-8").splitlines()
    (place,) = [
        i for i, line in enumerate(lines) if line.startswith("# yaml-language-server: $schema=")
    ]
    assert (file.parent / lines[place].partition("=")[2]).is_file()
    summary = dict(plugins.summaries("configs"))[file.stem]
    assert place > 0 and summary and "$schema" not in summary


BROKEN = [
    "trainr: {lr: 1.0}",
    "trainer: {itterations: 3}",
    "trainer: {lr: fast}",
    "trainer: {lr: 0}",
    "trainer: {epochs: 1.5}",
    "trainer: {epochs: true}",
    "trainer: {betas: [0.9]}",
    "trainer: {betas: [0.9, 1.0]}",
    "trainer: [1]",
    "trainer: {max_missing: 1}",
    "lora: {rank: 0}",
    "lora: 3",
    "lora: {alpha: x}",
    "model: {dtype: fp8}",
    "model: {loras: a}",
    "model: {gradient_checkpointing: 1}",
    "sampler: {name: ddmi}",
    "sampler: {name: ddim, variance: large}",
    "sampler: {name: ddpm, variance: huge}",
    "objective: {name: othr}",
    "objective: {name: ddpo, clip_rage: 1.0}",
    "objective: {clip_rage: 1.0}",
    "objective: {name: prdp, beta: 0}",
    "objective: {options: {}}",
    "objective: {timestep_window: [-1, 3]}",
    "advantage: {name: group, std: grop}",
    "advantage: {name: batch, min_count: 3}",
    "rewards: {name: jpeg_compressibility}",
    "rewards: [{weight: 1.0}]",
    "rewards: [{name: jpeg_compressibilty}]",
    "rewards: [{name: jpeg_compressibility, qualty: 3}]",
    "rewards: [{name: jpeg_compressibility, params: {qualty: 3}}]",
    "rewards: [{name: jpeg_compressibility, params: {quality: 101}}]",
    "eval_rewards: [{name: vlm_judge, params: {judge: x}}]",
    "log: {trackers: [wand]}",
    "seed: -1",
    "seed: 18446744073709551616",
    "run_dir: ' '",
    "plugins: mine",
    "run_dir: null",
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_refused_is_underlined(text: str, bundled: Draft202012Validator) -> None:
    values = yaml.safe_load(text)
    with pytest.raises(UserError):
        config.load(values)
    assert not bundled.is_valid(values)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "lora: null",
        "trainer: {lr: 1}",
        "rewards: [{name: 'mine.py:f', params: {a: 1}}]",
        "objective: {name: 'package.module:loss', anything: 3}",
        "prompts: {path: mine.txt}",
    ],
)
def test_what_is_right_is_not(text: str, bundled: Draft202012Validator) -> None:
    assert bundled.is_valid(yaml.safe_load(text))


def test_it_knows_the_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their required options; one that cannot be imported costs a line, and may have any."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "mine_too.py").write_text(
        "def mine_too(logp, batch, *, beta: float, table: object = None): ...\n"
    )
    (tmp_path / "objectives" / "broken_one.py").write_text("import no_such_module\n")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    assert main(["schema"]) == 0
    said = capsys.readouterr()
    validator = Draft202012Validator(json.loads(said.out))

    def valid(**options: Any) -> bool:
        return validator.is_valid({"objective": options})

    assert valid(name="mine_too", beta=1.0, table=[1])
    assert not valid(name="mine_too") and not valid(name="mine_too", beta=1.0, gamma=1)
    assert valid(name="broken_one", x=1) and not valid(name="mine_three")

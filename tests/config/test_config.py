"""Configuration: what is read, what is refused and in which words."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpo import config, plugins
from ddpo.building import build
from ddpo.commands import frame
from ddpo.config import Config, Lora, Objective, Prompts, Reward, Sampler, Trainer, checks
from ddpo.errors import Stopped, UserError

TOY_MODEL = '''"""A model that is never built."""
class toy:
    """A toy."""
    def __init__(self, weights, *, device, dtype, loras=(), lora=None, shift: float = 1.0): ...
'''
TOY_OBJECTIVE = '''
from typing import Literal

def toy(
    logp,
    batch,
    *,
    clip_range: float = 1e-4,
    mode: Literal["a", "b"] = "a",
    target: float | None = None,
):
    """A toy loss.

    `clip_range` is in units of logp. It has a `mode`.
    """
'''
OTHER_OBJECTIVE = '''
def other(logp, batch, *, beta: float, steps: int = 3):
    """Another loss; `beta` has no default."""
'''
TOY_REWARD = '''
class toy:
    """A toy reward."""
    def __init__(self, *, device, dtype, quality: int = 95, names: list[str] = []): ...
    def __call__(self, images, prompts, metadata): ...
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin folder with a model, two objectives, a reward, and toy.yaml that uses them; we are
    there."""
    files = {
        "models/toy.py": TOY_MODEL,
        "objectives/toy.py": TOY_OBJECTIVE,
        "objectives/other.py": OTHER_OBJECTIVE,
        "rewards/toy.py": TOY_REWARD,
        "toy.yaml": """
            model: {name: toy}
            objective: {name: toy, clip_range: 1e-3}
            rewards: [{name: toy, weight: 2, params: {quality: 90}}]
            trainer: {lr: 1e-5, betas: [0.8, 0.9]}
            plugins: [.]
        """,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    for kind in ("models", "objectives", "rewards"):
        for name in ("toy", "other"):
            sys.modules.pop(f"ddpo.{kind}.{name}", None)  # of the folder before
    return tmp_path


def parse(*argv: str) -> Config:
    found = config.parse(["--config", "toy.yaml", *argv])
    checks.check(found)
    return found


def test_a_file_and_every_default(folder: Path) -> None:
    found = parse()
    assert found.trainer.lr == 1e-5 and found.trainer.betas == (0.8, 0.9)
    assert found.objective == Objective(
        name="toy", options={"clip_range": 1e-3, "mode": "a", "target": None}
    )
    assert found.rewards == [Reward(name="toy", weight=2.0, params={"quality": 90, "names": []})]
    assert found.sampler.options == {"eta": 1.0}
    assert found.advantage.options == {"buffer_size": 32, "min_count": 16}
    assert found.model.options == {"shift": 1.0}, "what the caller fills in is no option"
    assert isinstance(found.rewards[0].weight, float)
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    assert found.lora == Lora(target_modules=attention), "as they are of any family"
    assert found.seed == 0


@pytest.mark.parametrize(
    ("argv", "place", "value"),
    [
        (["--trainer.lr", "1e-3"], "trainer.lr", 1e-3),
        (["--trainer.lr=1"], "trainer.lr", 1.0),
        (["--objective.clip_range", "2e-3"], "objective.clip_range", 2e-3),
        (["--objective.target", "1e-2"], "objective.target", 1e-2),
        (["--objective.target", "null"], "objective.target", None),
        (["--sampler.eta", "0"], "sampler.eta", 0.0),
        (["--rewards.0.weight", "-1"], "rewards.0.weight", -1.0),
        (["--rewards.0.params.quality", "10"], "rewards.0.params.quality", 10),
        (["--model.gradient_checkpointing", "true"], "model.gradient_checkpointing", True),
        (["--run_dir", "2026"], "run_dir", "2026"),
        (
            ["--prompts.template", "{prompt}, a photo: good"],
            "prompts.template",
            "{prompt}, a photo: good",
        ),
        (["--lora.target_modules", "[to_q, to_v]"], "lora.target_modules", ["to_q", "to_v"]),
        (["--trainer.betas", "[0.5, 0.6]"], "trainer.betas", [0.5, 0.6]),
        (["--lora.rank", "1", "--lora.rank", "2"], "lora.rank", 2),
        (["--lora", "{rank: 4}"], "lora.rank", 4),
        (["--sampler.name", "ddpm", "--sampler.variance", "large"], "sampler.variance", "large"),
        (["--objective", "{name: other, beta: 1e-1}"], "objective.beta", 0.1),
        (["--rewards", "[{name: toy, weight: 1}]"], "rewards.0.weight", 1.0),
    ],
)
def test_overrides(folder: Path, argv: list[str], place: str, value: Any) -> None:
    inner = yaml.safe_load(config.dump(parse(*argv)))
    for part in place.split("."):
        inner = inner[int(part) if part.isdigit() else part]
    assert inner == value and type(inner) is type(value)


def test_lora_null_and_back(folder: Path) -> None:
    assert parse("--lora", "null").lora is None
    (folder / "toy.yaml").write_text((folder / "toy.yaml").read_text() + "\n            lora: null")
    assert parse().lora is None
    lora = parse("--lora.rank", "4").lora
    assert lora is not None and lora.rank == 4


def test_the_list_of_rewards_is_replaced(folder: Path) -> None:
    toy = (folder / "rewards" / "toy.py").read_text()
    (folder / "rewards" / "own.py").write_text(toy.replace("toy", "own"))
    found = parse(
        "--rewards",
        "[{name: toy}, {name: 'rewards/own.py:own'}]",
        "--rewards.1.params.quality",
        "3",
    )
    assert [reward.params["quality"] for reward in found.rewards] == [95, 3]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--objective.clip_rage", "1"],
            "objective.clip_rage: no such option of toy; did you mean clip_range?",
        ),
        (
            ["--trainer.itterations", "1"],
            "trainer.itterations: no such option; did you mean iterations?",
        ),
        (["--trainer.lr", "abc"], "trainer.lr: expected a float, got 'abc'"),
        (["--trainer.lr", "null"], "trainer.lr: expected a float, got null"),
        (["--lora.rank", "1.5"], "lora.rank: expected an int, got '1.5'"),
        (["--lora.alpha", "x"], "lora.alpha: expected a float or null, got 'x'"),
        (
            ["--model.dtype", "fp8"],
            "model.dtype: expected one of auto, fp32, bf16, fp16, got 'fp8'",
        ),
        (["--objective.mode", "c"], "objective.mode: expected one of a, b, got 'c'"),
        (["--model.loras", "a"], "model.loras: expected a list of text, as [a, b], got 'a'"),
        (["--trainer.betas", "[1]"], "trainer.betas.0: must be at least 0 and below 1, got 1"),
        (["--trainr.lr", "1"], "--trainr.lr: no such option; did you mean trainer?"),
        (["--overwite"], "--overwite: no such option; did you mean overwrite?"),
        (["--trainer.lr"], "--trainer.lr: needs a value"),
        (["--trainer.lr.x", "1"], "trainer.lr.x: no such option"),
        (
            ["toy.yaml"],
            "toy.yaml: an argument without a name; write --config FILE or --section.key value",
        ),
        (
            ["--objective.name", "othr"],
            "objective.name: nothing is called 'othr'; did you mean other?",
        ),
        (["--objective.name", "other"], "objective.beta: needs a value, a float"),
        (["--sampler.name", "ddmi"], "sampler.name: nothing is called 'ddmi'; did you mean ddpm?"),
        (
            ["--advantage.name", "grop"],
            "advantage.name: nothing is called 'grop'; did you mean group?",
        ),
        (
            ["--rewards.0.params.qualty", "1"],
            "rewards.0.params.qualty: no such option of toy; did you mean quality?",
        ),
        (["--rewards", "[{weight: 1}]"], "rewards.0.name: needs a value, text"),
        (["--rewards", "3"], "rewards: expected a list, as [{name: ...}], got 3"),
        (["--model", "null"], "model: expected options, as {key: value}, got null"),
        (["--objective", "toy"], "objective: expected options, as {key: value}, got 'toy'"),
        (["--config", "nowhere.yaml"], "--config: nowhere.yaml: no such file"),
        (["--plugins", "[nowhere]"], "plugins: nowhere: no such folder"),
        (["--plugins", "nowhere"], "plugins: expected a list of folders, as [a, b], got 'nowhere'"),
        (["--lora.rank", "true"], "lora.rank: expected an int, got 'true'"),
        (["--lora.rank", "8.0"], "lora.rank: expected an int, got '8.0'"),
        (["--trainer.lr", ""], "trainer.lr: expected a float, got ''"),
        (["--trainer.lr", ".nan"], "trainer.lr: must be above 0 and finite, got nan"),
        (
            ["--trainer.betas", "[true, 0.2]"],
            "trainer.betas: expected [float, float], got '[true, 0.2]'",
        ),
        (["--trainer.betas", "[0.5]"], "trainer.betas: expected [float, float], got [0.5]"),
        (["--trainer.betas", "0.5"], "trainer.betas: expected [float, float], got 0.5"),
        (
            ["--model.gradient_checkpointing", "1"],
            "model.gradient_checkpointing: expected true or false, got '1'",
        ),
        (
            ["--trainer.lr_schedule", "cosin"],
            "trainer.lr_schedule: expected one of constant, cosine, linear, got 'cosin'; "
            "did you mean cosine?",
        ),
        (["--rewards.5.weight", "1"], "rewards.5.weight: no such entry; the next of the list is 1"),
        (["--rewards.x.weight", "1"], "rewards.x.weight: no such entry; the next of the list is 1"),
        (["--rewards", "[3]"], "rewards.0: expected options, as {key: value}, got 3"),
        (["--rewards", "null"], "rewards: expected a list, as [{name: ...}], got null"),
        (["--rewards.0.params", "3"], "rewards.0.params: expected options, as {key: value}, got 3"),
        (
            ["--rewards.0.params.names", "[[a]]"],
            "rewards.0.params.names.0: expected text, got ['a']",
        ),
        (["--objective", "{name: 3}"], "objective.name: expected text, got 3"),
        (["--objective.name", "null"], "objective.name: expected text, got null"),
        (["--run_dir", " "], "run_dir: must be text that is not blank, got ' '"),
        (["--lora", "3"], "lora: expected options, as {key: value} or null, got 3"),
    ],
)
def test_words_of_refusal(folder: Path, argv: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse(["--config", "toy.yaml", *argv], flags=["--resume RUN_DIR", "--overwrite"])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("trainr: {}", "trainr: no such option; did you mean trainer?"),
        ("objective: {options: {}}", "objective.options: no such option of ddpo"),
        ("trainer: {lr: null}", "trainer.lr: expected a float, got null"),
        ("run_dir: 3", "run_dir: expected text, got 3"),
        ("seed: true", "seed: expected an int, got True"),
        ("trainer: {epochs: 2.0}", "trainer.epochs: expected an int, got 2.0"),
        ("trainer: {1: 2}", "trainer.1: no such option; known: adam_eps, betas, "),
        ("1: 2", "1: no such option; known: advantage, "),
        (
            "evaluation: {prompts: [3]}",
            "evaluation.prompts: expected text or a list of text, as [a, b] or null, got [3]",
        ),
        ("run_dir: 2026-01-01", "run_dir: expected text, got datetime.date(2026, 1, 1)"),
        ("rewards: {0: {name: toy}}", "rewards: expected a list, as [{name: ...}], got {"),
        ("objective: {name: [1]}", "objective.name: expected text, got [1]"),
        (
            "rewards: [{name: jpeg_compressibility, parms: {}}]",
            "rewards.0.parms: no such option; did you",
        ),
        ("trainer: 3", "trainer: expected options, as {key: value}, got 3"),
        ("trainer: {lr: [}", "x.yaml, line 1: not valid YAML"),
        ("- a", "x.yaml: expected options, as {key: value}, got ['a']"),
    ],
)
def test_words_about_a_file(folder: Path, text: str, line: str) -> None:
    (folder / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.load("x.yaml")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "seed: 1\nrun_dir: a\nseed: 2",
            "x.yaml, line 3: seed stands twice, first in line 1; keep one",
        ),
        (
            "trainer: {lr: 1}\nema: {decay: 0}\ntrainer: {lr: 2}",
            "line 3: trainer stands twice, first in line 1",
        ),
        (
            "trainer:\n  lr: 1\n  epochs: 2\n  lr: 1",
            "line 4: trainer.lr stands twice, first in line 2",
        ),
        (
            "rewards: [{name: toy}, {name: toy, params: {a: 1, 'a': 2}}]",
            "rewards.1.params.a stands twice",
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.load("x.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--rewards", "[{name: toy, name: b}]"],
            "--rewards, line 1: rewards.0.name stands twice, ",
        ),
        (
            ["--objective", "{name: toy, name: toy}"],
            "--objective, line 1: objective.name stands twice, ",
        ),
        (["--rewards.0.params", "{quality: 1, quality: 2}"], "--rewards.0.params, line 1: "),
        (["--trainer.betas", "{a: 1, a: 2}"], "trainer.betas, line 1: a stands twice, "),
        (["--plugins", "[{a: 1, a: 2}]"], "--plugins, line 1: plugins.0.a stands twice, "),
        (["--plugins", "[3]"], "plugins: expected a list of folders, as [a, b], got [3]"),
        (["--plugins", "[a"], "--plugins, line 1: not valid YAML"),
        (["--seed", "9" * 41], f"seed: must be at least 0 and below 2^64, got {'9' * 41}"),
        (["--seed", str(2**64)], "seed: must be at least 0 and below 2^64"),
        (["--seed", "-1"], "seed: must be at least 0 and below 2^64, got -1"),
        (
            ["--prompts", "{name: animals, path: a.txt}"],
            "prompts: name and path are given; keep one",
        ),
    ],
)
def test_words_about_the_command_line(folder: Path, argv: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse(["--config", "toy.yaml", *argv])
    assert str(caught.value).startswith(line)


def test_an_alias_is_no_second_key(folder: Path) -> None:
    """A merge key gives values, and what stands beside it takes their place, as YAML says."""
    first = "{name: jpeg_compressibility, params: &p {quality: 1}}"
    second = "{name: jpeg_compressibility, label: b, params: {<<: *p, quality: 2}}"
    (folder / "x.yaml").write_text(f"rewards: [{first}, {second}]")
    assert [reward.params["quality"] for reward in config.load("x.yaml").rewards] == [1, 2]


def test_the_largest_seed_is_taken_by_every_generator() -> None:
    from ddpo.parallel.seeds import generator

    largest = parse_seed(str(2**64 - 1))
    torch.manual_seed(largest)
    assert (
        generator(1, largest, 0, 0).initial_seed() != generator(1, largest - 1, 0, 0).initial_seed()
    )


def parse_seed(text: str) -> int:
    return config.parse(["--config", "smoke", "--seed", text]).seed


def test_a_new_name_drops_the_files_options(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert parse(
        "--objective.steps", "4", "--objective.name", "other", "--objective.beta", "1"
    ).objective.options == {
        "beta": 1.0,
        "steps": 4,
    }
    assert "clip_range" in caplog.text
    caplog.clear()
    assert parse("--objective.name", "toy").objective.options["clip_range"] == 1e-3
    assert parse("--rewards.0.name", "rewards/toy.py:toy").rewards[0].params["quality"] == 95
    assert caplog.text.count("left out") == 1


def test_a_path_of_prompts_takes_the_place_of_the_name(folder: Path) -> None:
    assert parse("--prompts.path", "mine.txt").prompts == Prompts(name=None, path="mine.txt")
    (folder / "toy.yaml").write_text(
        (folder / "toy.yaml").read_text() + "\n            prompts: {path: mine.txt}"
    )
    assert parse().prompts.name is None
    assert parse("--prompts.name", "activities").prompts == Prompts(name="activities")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainer": {"minibatches": 3}}, "take 2 or 4, or prompts_per_iteration 33"),
        ({"trainer": {"minibatches": 64}}, "take 32, or prompts_per_iteration 64"),
        ({"trainer": {"epochs": 0}}, "trainer.epochs: must be at least 1, got 0"),
        ({"trainer": {"lr": 0}}, "trainer.lr: must be above 0"),
        ({"trainer": {"lr": ".inf"}}, "trainer.lr: must be above 0"),
        (
            {"trainer": {"betas": [0.9, 1]}},
            "trainer.betas.1: must be at least 0 and below 1, got 1",
        ),
        ({"sampler": {"num_steps": 0}}, "sampler.num_steps: must be at least 1"),
        ({"lora": {"alpha": 0}}, "lora.alpha: must be above 0"),
        ({"lora": {"rank": 0}}, "lora.rank: must be at least 1"),
        ({"ema": {"decay": 1}}, "ema.decay"),
        ({"evaluation": {"num_prompts": 0}}, "evaluation.num_prompts"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"run_dir": " "}, "run_dir"),
        ({"rewards": []}, "rewards: needs at least one"),
        (
            {"rewards": [{"name": "toy", "weight": float("nan")}]},
            "rewards.0.weight: must be finite",
        ),
        ({"rewards": [{"name": "toy", "weight": 0}]}, "all weights are 0"),
        ({"rewards": [{"name": "toy"}, {"name": "toy"}]}, "rewards.1.name: toy is there twice"),
        (
            {"rewards": [{"name": "toy"}, {"name": "rewards/toy.py"}]},
            "rewards.1.name: toy is there twice",
        ),
        (
            {"eval_rewards": [{"name": "toy"}]},
            "eval_rewards.0.name: toy is there twice; give it once, or",
        ),
        (
            {
                "rewards": [{"name": "toy", "label": "a"}],
                "eval_rewards": [{"name": "toy", "label": "a"}],
            },
            "eval_rewards.0.label: a is there twice",
        ),
        (
            {"rewards": [{"name": "toy", "label": "std"}]},
            "rewards.0.label: std is a name that metrics need",
        ),
        (
            {"rewards": [{"name": "toy", "label": "saturation"}]},
            "rewards.0.label: saturation is a name",
        ),
        ({"rewards": [{"name": "toy", "max": float("inf")}]}, "rewards.0.max: must be finite"),
        ({"rewards": [{"name": "toy", "min": 2, "max": 1}]}, "rewards.0.min: 2.0 is above max 1.0"),
        (
            {"eval_rewards": [{"name": "toy", "max": 1}]},
            "eval_rewards.0.max: a judge gates nothing",
        ),
        ({"trainer": {"max_missing": 1}}, "trainer.max_missing: must be at least 0 and below 1"),
        (
            {
                "objective": {"name": "toy", "offline": True},
                "prompts": {"path": "a.jsonl"},
                "trainer": {"samples_per_prompt": 2},
                "advantage": {"per_reward": True},
            },
            "objective.offline: rewards only judge, and advantage.per_reward",
        ),
        ({"log": {"trackers": ["tensorbord"]}}, "did you mean tensorboard?"),
    ],
)
def test_check(folder: Path, change: dict[str, Any], words: str) -> None:
    base = yaml.safe_load((folder / "toy.yaml").read_text())
    checks.check(config.load(base))
    with pytest.raises(UserError, match=r".+: ") as caught:
        checks.check(config.load(base | change))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("section", "given", "words"),
    [
        ("objective", {"name": "ddpo", "clip_range": -1}, "clip_range: must be above 0, got -1"),
        ("objective", {"name": "grpo", "clip_range_high": 0}, "clip_range_high: must be above 0"),
        ("objective", {"name": "grpo", "clip_range_high": None}, ""),
        ("objective", {"name": "dpok", "kl_coef": -0.1}, "kl_coef: must be at least 0, got -0.1"),
        ("objective", {"name": "dpok", "reward_weight": 0}, "reward_weight: must be above 0"),
        ("objective", {"name": "prdp", "beta": 0}, "beta: must be above 0"),
        (
            "objective",
            {"name": "p3o", "max_weight": 0.5},
            "max_weight: must be at least 1, got 0.5",
        ),
        ("objective", {"name": "rwr", "beta": 0}, ""),
        (
            "objective",
            {"name": "rwr", "percentile": 1},
            "percentile: must be at least 0 and below 1",
        ),
        ("objective", {"name": "rwr", "percentile": "0.9"}, ""),
        ("objective", {"name": "d3po", "beta": float("nan")}, "beta: must be above 0"),
        ("objective", {"name": "dpo", "beta": -1}, "beta: must be above 0"),
        (
            "objective",
            {"name": "ddpo", "timestep_window": [-1, 3]},
            "timestep_window.0: must be at least 0",
        ),
        (
            "objective",
            {"name": "ddpo", "timestep_window": [2, 0]},
            "timestep_window.1: must be at least 1",
        ),
        (
            "advantage",
            {"name": "per_prompt", "buffer_size": 0},
            "buffer_size: must be at least 1, got 0",
        ),
        (
            "advantage",
            {"name": "per_prompt", "min_count": 0},
            "min_count: must be at least 1, got 0",
        ),
        ("objective", {"name": "ranged", "strength": 2}, "strength: must be below 1, got 2"),
    ],
)
def test_ranges_stand_where_an_option_is_declared(
    folder: Path, section: str, given: dict[str, Any], words: str
) -> None:
    """Of bundled objectives and advantages, and of one's own."""
    (folder / "objectives/ranged.py").write_text(
        "from typing import Annotated\n"
        "from pydantic import Field\n"
        "Low = Annotated[int, Field(lt=1)]\n"
        "def ranged(logp, batch, *, strength: Low = 0):\n"
        "    return logp.mean()\n"
    )
    base = yaml.safe_load((folder / "toy.yaml").read_text())
    if not words:
        assert config.load(base | {section: given})
        return
    with pytest.raises(UserError, match=rf"^{section}\.") as caught:
        config.load(base | {section: given})
    assert words in str(caught.value)


def test_help_says_the_range(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.parse(["--config", "toy.yaml", "--objective.name", "grpo", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "clip_range_high` is the upper end where" in said
    assert "null: the same; above 0 (a float or null, default: null)" in said
    assert "adafactor has others; at least 0 and below 1 ([float, float], default: [0.8" in said


def test_labels_tell_two_of_a_kind_apart(folder: Path) -> None:
    base = yaml.safe_load((folder / "toy.yaml").read_text())
    entries = [{"name": "toy", "label": "first"}, {"name": "toy", "params": {"quality": 3}}]
    found = config.load(
        base | {"rewards": entries, "eval_rewards": [{"name": "toy", "label": "judge"}]}
    )
    checks.check(found)
    every = build.reward_list([*found.rewards, *found.eval_rewards], torch.device("cpu"), "fp32")
    assert [reward.name for reward in every] == ["first", "toy", "judge"]


def test_a_tracker_that_is_not_installed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'ddpo\[wandb\]'"):
        parse("--log.trackers", "[wandb]")


def test_python_and_yaml_agree(folder: Path) -> None:
    built = Config(
        model=config.Model(name="toy"),
        lora=None,
        sampler=Sampler(name="ddpm", num_steps=4, options={"variance": "large"}),
        rewards=[Reward(name="toy", params={"names": ["a"]})],
        objective=Objective(name="other", options={"beta": 0.5}),
        trainer=Trainer(lr=1e-7, betas=(0.1, 0.2)),
        plugins=["."],
    )
    Path("dumped.yaml").write_text(config.dump(built))
    found = config.parse(["--config", "dumped.yaml"])
    assert found == config.load(built) == config.load(Path("dumped.yaml"))
    assert found.objective.options == {"beta": 0.5, "steps": 3}
    assert built.objective.options == {"beta": 0.5}, "loading must not change what it is given"


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lr=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**63),
    text=st.sampled_from(["null", "1", "[a]", "{prompt}: x", "~"])
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    names=st.lists(st.sampled_from(["to_q", "null", "1e-3", "a: b", "yes", "[x]"])),
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_round_trip(
    folder: Path, lr: float, seed: int, text: str, names: list[str], target: float | None
) -> None:
    built = Config(
        model=config.Model(name="toy"),
        lora=Lora(target_modules=names),
        prompts=Prompts(template=text),
        objective=Objective(name="toy", options={"target": target}),
        trainer=Trainer(lr=lr),
        plugins=["."],
        seed=seed,
        run_dir=text,
    )
    Path("dumped.yaml").write_text(config.dump(built), encoding="utf-8")
    found = config.parse(["--config", "dumped.yaml"])
    assert found == config.load(built)
    for name in Config.model_fields:
        if name not in ("objective", "sampler", "advantage", "model"):
            assert getattr(found, name) == getattr(built, name)


def test_changed(folder: Path) -> None:
    old = parse()
    assert config.changed(old, parse()) == []
    new = parse(
        "--trainer.lr", "1", "--objective.mode", "b", "--lora", "null", "--rewards.0.weight", "3"
    )
    assert config.changed(old, new) == ["lora", "rewards", "objective.mode", "trainer.lr"]
    assert config.changed(old, parse("--sampler.name", "ddpm")) == [
        "sampler.name",
        "sampler.eta",
        "sampler.variance",
    ]


def test_help_shows_the_options_of_the_named_things(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        config.parse(
            ["--config", "toy.yaml", "--trainer.lr", "0.25", "--help"], flags=["--overwrite"]
        )
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "[--overwrite]" in shown
    assert "`clip_range` is in units of logp. (a float, default: 0.001)" in shown
    assert "--objective.mode {a,b} It has a `mode`." in shown
    assert "--rewards.0.params.quality" in shown and "(an int, default: 90)" in shown
    assert "--sampler.eta" in shown and "--model.shift" in shown and "--beta" not in shown
    assert "learning rate; above 0 (a float, default: 0.25)" in shown
    for name in ("device", "options", "target_modules+"):
        assert f".{name}" not in shown


def test_every_value_has_a_help_text() -> None:
    sections = [
        Config,
        config.Model,
        Lora,
        Sampler,
        Prompts,
        Reward,
        Objective,
        config.Advantage,
        Trainer,
    ]
    sections += [config.Ema, config.Checkpoint, config.Evaluation, config.Log]
    fields = [(cls, name, info) for cls in sections for name, info in cls.model_fields.items()]
    own = {*config.Config.model_fields} - {"seed", "run_dir", "plugins"} | {"options", "params"}
    missing = [f"{cls.__name__}.{name}" for cls, name, info in fields if not info.description]
    assert {each.partition(".")[2] for each in missing} <= own


def test_a_bundled_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text((folder / "toy.yaml").read_text())
    monkeypatch.setattr(
        plugins,
        "folders",
        lambda kind, found=plugins.folders: (
            [str(folder / "configs")] if kind == "configs" else found(kind)
        ),
    )
    assert config.load("demo") == config.load("toy.yaml")
    with pytest.raises(UserError, match="--config: nothing is called 'dem'; did you mean demo"):
        config.parse(["--config", "dem"])
    with pytest.raises(
        UserError, match="--config: needs a YAML file, or the name of a bundled one: demo"
    ):
        config.parse([])


@pytest.mark.parametrize("name", plugins.names("configs"))
def test_our_own_configurations(name: str) -> None:
    checks.check(config.load(name))


def quietly(*argv: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs Python, which fails if torch was imported at its end; the seconds it took."""
    code = f"""
import atexit, runpy, sys
sys.argv[1:] = {list(argv[1:])!r}
atexit.register(lambda: print("torch was imported" if "torch" in sys.modules else "no torch"))
{argv[0]}
"""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    return done, time.perf_counter() - start


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["import ddpo.config"], ""),
        (["import ddpo"], ""),
        (["runpy.run_module('ddpo', run_name='__main__')", "--help"], "evaluate"),
        (
            ["runpy.run_module('ddpo', run_name='__main__')", "list", "rewards"],
            "jpeg_compressibility",
        ),
        (["runpy.run_module('ddpo', run_name='__main__')", "list", "objectives"], "ddpo"),
        (["runpy.run_module('ddpo', run_name='__main__')", "list", "metrics"], "ratio/max_dev"),
        (["runpy.run_module('ddpo', run_name='__main__')", "list", "prompts"], "animals"),
        (["runpy.run_module('ddpo', run_name='__main__')", "list", "models"], "stable_diffusion"),
    ],
)
def test_looking_around_costs_nothing(argv: list[str], shown: str) -> None:
    done, seconds = quietly(*argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no torch\n") and shown in done.stdout
    assert seconds < 5, "a second on a quiet machine"


def test_an_unknown_command() -> None:
    done, _ = quietly("runpy.run_module('ddpo', run_name='__main__')", "trian")
    assert (done.returncode, done.stderr) == (
        2,
        "ddpo: trian: no such command; did you mean train?\n",
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a: b"), 2, "ddpo: a: b\n"),
        (Stopped("go on"), 3, "ddpo: go on\n"),
        (KeyboardInterrupt(), 3, "ddpo: interrupted; "),
        (
            KeyError("x"),
            1,
            "ddpo: internal error: KeyError: 'x'; run again with --debug for the traceback\n",
        ),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(argv: list[str]) -> None:
        assert argv == ["x"]
        raise error

    assert frame.run(main, ["x"]) == code
    assert capsys.readouterr().err.startswith(line)
    assert frame.run(main, ["--debug", "x"]) == code
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    frame.run(main, ["x"])
    assert (capsys.readouterr().err == "") is (code != 1)


def test_a_command_that_ends_well() -> None:
    assert frame.run(lambda argv: None, []) == 0
    assert frame.run(lambda argv: 5, []) == 5


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("x", "x"), ("[1]", "[1]"), ("null", None), ("1e-1", "1e-1")]
)
def test_the_text_of_a_flag_is_what_its_option_takes(folder: Path, text: str, value: Any) -> None:
    """Of several types the one that YAML says, and else the text."""
    (folder / "objectives/either.py").write_text(
        "def either(logp, batch, *, level: int | str | None = 1): return logp.mean()\n"
    )
    options = parse("--objective.name", "either", "--objective.level", text).objective.options
    assert options == {"level": value} and type(options["level"]) is type(value)


@pytest.mark.parametrize("betas", ["[1e-1, 0.2]", "['0.1', 0.2]"])
def test_numbers_that_yaml_takes_for_text(betas: str) -> None:
    """1e-1, without a dot, is text for PyYAML."""
    assert config.load(yaml.safe_load(f"trainer: {{betas: {betas}}}")).trainer.betas == (0.1, 0.2)
    assert config.load(yaml.safe_load("trainer: {lr: 1e-4}")).trainer.lr == 1e-4


def test_what_is_given_from_python_is_checked_at_once() -> None:
    """As far as no name must be looked up; the options of a named thing may stand flat."""
    with pytest.raises(UserError, match=r"^trainer\.lr: must be above 0, got -1$"):
        Config(trainer={"lr": -1})
    with pytest.raises(UserError, match=r"^trainr: no such option; did you mean trainer\?$"):
        Config(trainr={})
    built = Config(objective={"name": "grpo", "clip_range": 2e-3})
    assert built.objective == Objective(name="grpo", options={"clip_range": 2e-3})
    with pytest.raises(
        UserError, match=r"^objective\.clip_rage: no such option of grpo; did you mean"
    ):
        config.load(Config(objective={"name": "grpo", "clip_rage": 2e-3}))


def test_loading_again_changes_nothing(folder: Path) -> None:
    settings = parse()
    assert config.load(settings) == settings and config.load(config.flat(settings)) == settings
    other = config.in_precision(settings, "bf16")
    assert (settings.model.dtype, other.model.dtype) == ("auto", "bf16")
    assert config.changed(settings, other) == ["model.dtype"]

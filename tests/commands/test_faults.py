"""A mistake found before the run costs one line that names it, exit code 2, and writes nothing."""

import shutil
from pathlib import Path

import helpers
import pytest

from ddpo import plugins
from ddpo.__main__ import main
from ddpo.config import Config


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken things to name on a command line."""
    folder = tmp_path_factory.mktemp("inputs")
    texts: dict[str, str | bytes] = {
        "afile": "x",
        "empty.jsonl": "\n",
        "key.jsonl": '{"prompt": "a"}\n{"promt": "b"}\n',
        "json.jsonl": '{"prompt": "a"}\n{"prompt": "b"\n',
        "bytes.txt": b"\xff\xfe",
        "twice.txt": "a\nb\na\n",
        "syntax.py": "def f(:\n",
        "value.py": "value = 3\n",
        "bytes.yaml": b"\xff\xfe",
        "text.yaml": "a: [b",
        "built.py": "class built:\n    def __init__(self, *, device, dtype):\n        [][0]\n",
        "unknown.yaml": "trainer: {lr: 1e-3, momentum: 0.9}\n",
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    model = folder / "model"
    shutil.copytree(helpers.pipeline_folder(), model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    return folder


MISTAKES = {
    "file as run_dir": (["--run_dir", "@/afile"], "run_dir: @/afile is a file; name a folder"),
    "file above run_dir": (
        ["--run_dir", "@/afile/x"],
        "run_dir: @/afile/x cannot be written to (Not a dir",
    ),
    "unwritable run_dir": (
        ["--run_dir", "/proc/ddpo/x"],
        "run_dir: /proc/ddpo/x cannot be written to (",
    ),
    "no prompt": (["--prompts.path", "@/empty.jsonl"], "@/empty.jsonl holds no prompt"),
    "prompt key": (
        ["--prompts.path", "@/key.jsonl"],
        "@/key.jsonl, line 2: no column is called 'prompt'; did you",
    ),
    "prompt JSON": (["--prompts.path", "@/json.jsonl"], "@/json.jsonl, line 2: broken JSON"),
    "prompt bytes": (
        ["--prompts.path", "@/bytes.txt"],
        "@/bytes.txt is not UTF-8 text (byte 0); save it as UTF-8",
    ),
    "prompt twice": (
        ["--prompts.path", "@/twice.txt"],
        "@/twice.txt, line 3: the prompt 'a' stands already at @",
    ),
    "type": (["--trainer.epochs", "two"], "trainer.epochs: expected an int, got 'two'"),
    "range": (
        ["--trainer.reward_timeout_s", "0"],
        "trainer.reward_timeout_s: must be above 0, got 0",
    ),
    "model folder": (
        ["--model.pretrained", "./nowhere"],
        "model.pretrained: './nowhere' is no folder, and as a hub id",
    ),
    "hub id offline": (
        ["--model.pretrained", "nobody/none"],
        "while HF_HUB_OFFLINE is set: unset that, or download",
    ),
    "no pipeline": (
        ["--model.pretrained", "@"],
        "'@' is no folder of a pipeline ([Errno 2] No such file",
    ),
    "torn weights": (
        ["--model.pretrained", "@/model"],
        "'@/model' is no folder of a StableDiffusionPipeline (Unable",
    ),
    "layer": (
        ["--lora.target_modules", "[to_q, to_w]"],
        "lora.target_modules: no layer is called 'to_w'; did you mean",
    ),
    "no layer": (
        ["--lora.target_modules", "[]"],
        "lora.target_modules: [] leaves nothing to train",
    ),
    "groups": (
        ["--trainer.minibatches", "3"],
        "trainer.minibatches: 3 does not divide prompts_per_iteration 4",
    ),
    "group of one": (
        ["--trainer.samples_per_prompt", "1"],
        "trainer.samples_per_prompt: 1 leaves nothing to compare",
    ),
    "plugin folder": (["--plugins", "[nowhere]"], "plugins: nowhere: no such folder"),
    "plugin content": (
        ["--plugins", "[@]"],
        "plugins: @ has none of the folders rewards/, prompts/, objectives/",
    ),
    "reward file": (["--rewards", "[{name: no.py:f}]"], "rewards.0.name: no.py: no such file"),
    "reward syntax": (
        ["--rewards", "[{name: '@/syntax.py:f'}]"],
        "syntax.py cannot be imported: SyntaxError",
    ),
    "reward value": (
        ["--rewards", "[{name: '@/value.py:value'}]"],
        "is 3; it must be a function or a class",
    ),
    "reward module": (
        ["--rewards", "[{name: 'no.such:f'}]"],
        "no.such cannot be imported: ModuleNotFoundError",
    ),
    "reward built": (
        ["--rewards", "[{name: '@/built.py:built'}]"],
        "cannot be built: IndexError: list index out of range (@/built.py, line 3)",
    ),
    "tracker": (
        ["--log.trackers", "[wand]"],
        (
            "log.trackers.0: expected one of jsonl, tensorboard, wandb, got 'wand'; "
            "did you mean wandb?"
        ),
    ),
    "config bytes": (["--config", "@/bytes.yaml"], "@/bytes.yaml is not UTF-8 text"),
    "config text": (["--config", "@/text.yaml"], "@/text.yaml, line 1: not valid YAML"),
    "config key": (["--config", "@/unknown.yaml"], "trainer.momentum: no such option"),
}
"""@ is the folder of broken things."""


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ddpo: ") and "internal" not in line
    return line.removeprefix("ddpo: ")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_leave_nothing(
    mistake: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "")
    before, (argv, words) = sorted(inputs.rglob("*")), MISTAKES[mistake]
    argv = [text.replace("@", str(inputs)) for text in argv]
    assert main(["train", *helpers.smoke(tmp_path / "run"), *argv]) == 2
    assert words.replace("@", str(inputs)) in one_line(capsys)
    assert list(tmp_path.iterdir()) == [] and sorted(inputs.rglob("*")) == before


def test_a_misspelt_key_is_refused_in_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    for section in set(Config.model_fields) - {"plugins", "seed", "run_dir"}:
        place = f"{section}.0.nonsense" if section.endswith("rewards") else f"{section}.nonsense"
        given = ["--eval_rewards", "[{name: jpeg_compressibility}]", f"--{place}", "1"]
        assert main(["train", "--config", "smoke", *given]) == 2
        assert one_line(capsys).startswith(f"{place}: no such option")


@pytest.mark.parametrize("command", [["train", "--resume"], ["grid"], ["sample", "--prompt", "a"]])
def test_a_folder_that_is_no_run(
    command: list[str], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, reason in (
        (inputs, "it has no config.yaml"),
        (tmp_path / "no", "there is no such folder"),
    ):
        assert main([*command, str(folder)]) == 2
        assert one_line(capsys) == f"{folder} is not the folder of a run: {reason}"
    assert list(tmp_path.iterdir()) == []


def test_a_command_without_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        (
            ["sample"],
            "sample: the following arguments are required: run_dir, --prompt; see ddpo sample",
        ),
        (
            ["grid", "x", "--seed", "one"],
            "grid: argument --seed: expected an int, got 'one'; see ddpo",
        ),
        (["train", "--resume"], "--resume: needs the folder of a run, or auto"),
        (["trian"], "trian: no such command; did you mean train?"),
    ):
        assert main(command) == 2
        assert one_line(capsys).startswith(words)

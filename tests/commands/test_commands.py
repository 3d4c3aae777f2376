"""The commands with plain arguments: each option of the real parsers is obeyed or refused."""

import argparse
import importlib
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from option_cases import Flags, world
from PIL import Image

from ddpo import config
from ddpo.__main__ import COMMANDS, main, module
from ddpo.commands import frame, serve
from ddpo.evaluation import page
from ddpo.evaluation.pages import comparison
from ddpo.evaluation.pages import server as watching
from ddpo.runs import export, finished, grid, push
from ddpo.scoring import conformance, server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with world(tmp_path_factory.mktemp("options"), run=True) as root:
        yield root


class Captured(Exception):
    """Thrown in the place of parsing, with the parser."""


def options_of(name: str) -> list[str]:
    """From the command's own parser, without --help."""
    with pytest.MonkeyPatch.context() as patch:

        def capture(parser: argparse.ArgumentParser, *_: Any) -> None:
            raise Captured(parser)

        patch.setattr(frame.Parser, "parse_args", capture)
        with pytest.raises(Captured) as found:
            importlib.import_module(module(name)).main([])
    return [
        each.option_strings[-1] if each.option_strings else each.dest
        for each in found.value.args[0]._actions[1:]
    ]


PLAIN: dict[str, tuple[Flags, dict[str, Flags]]] = {
    "sample": (
        ["run", "--prompt", "a fox"],
        {
            "run_dir": [],
            "--prompt": ["--prompt", "an owl"],
            "--seed": ["--seed", "3"],
            "--count": ["--count", "2"],
            "--checkpoint": ["--checkpoint", "000001"],
            "--lora_scale": ["--lora_scale", "0.5"],
            # what they change in a run that has tastes, tests/tastes shows
            **{key: [] for key in ("--weights", "--user", "--pairs", "--taste_scale")},
            "--out": ["--out", "x.png"],
        },
    ),
    "grid": (
        ["run"],
        {
            "run_dirs": [],
            "--prompts": ["--prompts", "others.txt"],
            "--count": ["--count", "2"],
            "--checkpoint": ["--checkpoint", "best"],
            "--seed": ["--seed", "3"],
            "--lora_scale": ["--lora_scale", "0.5"],
            "--guidance_scale": ["--guidance_scale", "3"],
            "--num_steps": ["--num_steps", "3"],
            **{key: [] for key in ("--weights", "--user", "--pairs")},
            **{key: [] for key in ("--between", "--taste_scale")},
            "--out": ["--out", "x.png"],
        },
    ),
    "report": (["run"], {"run_dir": []}),
    "watch": (
        ["run", "--port", "0"],
        {"run_dir": [], "--port": ["--port", "48918"], "--every": ["--every", "2"]},
    ),
    "compare": (["run"], {"run_dirs": [], "--out": ["--out", "elsewhere"]}),
    "push": (
        ["run", "--to", "me/fox"],
        {"run_dir": [], "--to": ["--to", "me/owl"], "--private": ["--private"]},
    ),
    "export": (
        ["run", "--to", "out", "--format", "kohya"],
        {
            "run_dir": [],
            "--to": ["--to", "elsewhere"],
            "--format": ["--format", "merged"],
            "--checkpoint": ["--checkpoint", "000001"],
        },
    ),
    "score": (
        ["--reward", "own/rewards/mine.py", "a.png"],
        {
            "files": ["b.png"],
            "--reward": ["--reward", "brightness"],
            "--params": ["--params", '{"share": 2}'],
            "--dtype": ["--dtype", "bf16"],
            "--prompt": ["--prompt", "a fox"],
            "--metadata": ["--metadata", '{"a": 1}'],
        },
    ),
    "check": (
        ["reward", "own/rewards/mine.py"],
        {
            "kind": [],
            "name": [],
            "--params": ["--params", '{"share": 2}'],
            "--dtype": ["--dtype", "bf16"],
            "--prompts": ["--prompts", "words.txt"],
        },
    ),
    "serve": (
        ["--reward", "own/rewards/mine.py", "--port", "0"],
        {
            "--reward": ["--reward", "brightness"],
            "--params": ["--params", '{"share": 2}'],
            "--dtype": ["--dtype", "bf16"],
            "--host": ["--host", "0.0.0.0"],
            "--port": ["--port", "48917"],
            "--max-mb": ["--max-mb", "1"],
        },
    ),
    "schema": ([], {}),
}
"""Command -> arguments, and for each option what is added to see a change: argparse takes the
last."""


ELSEWHERE = {"train", "plan", "evaluate", "list", "users"}
"""Commands whose options other tests have."""


@pytest.mark.parametrize("name", sorted({*COMMANDS} - ELSEWHERE))
def test_every_argument_of_a_command_is_in_the_table(name: str, folder: Path) -> None:
    assert options_of(name) == [*PLAIN[name][1]]


@pytest.mark.parametrize("name", PLAIN)
def test_a_command_obeys(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    stub(monkeypatch, seen)
    base, cases = PLAIN[name]

    def observed(flags: Flags) -> tuple[list[Any], str]:
        seen.clear()
        assert main([name, *base, *flags]) == 0
        text = capsys.readouterr().out
        return [*seen], text if "--port" in flags else re.sub(r":\d{5}/? until", "", text)

    plain = observed([])
    assert observed([]) == plain
    for option, flags in cases.items():
        if flags:
            assert observed(flags) != plain, option


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sample", "nowhere", "--prompt", "x"], "nowhere is not the folder of a run"),
        (
            ["sample", "run", "--prompt", "x", "--seed", "-1"],
            "--seed: must be at least 0 and below 2^64",
        ),
        (
            ["sample", "run", "--prompt", "x", "--seed", "9" * 41],
            "--seed: must be at least 0 and below 2^64",
        ),
        (["sample", "run", "--prompt", "x", "--count", "0"], "--count: must be at least 1, got 0"),
        (
            ["sample", "run", "--prompt", "x", "--checkpoint", "7"],
            "no checkpoint 7; there are: 000001",
        ),
        (
            ["sample", "run", "--prompt", "x", "--lora_scale", "1.5"],
            "--lora_scale: must be at least 0 and at most 1, got 1.5",
        ),
        (
            ["grid", "run", "--lora_scale", "half"],
            "--lora_scale: expected a float, got 'half'",
        ),
        (["grid", "nowhere"], "nowhere is not the folder of a run"),
        (
            ["grid", "run", "--num_steps", "2", "--seed", "1", "--seed", "2"],
            "grid: --seed and --num_steps would differ across the columns",
        ),
        (["grid", "run", "--guidance_scale", "-1"], "--guidance_scale: must be at least 0"),
        (["grid", "run", "--checkpoint", "7"], "no checkpoint 7; there are: 000001"),
        (["report", "nowhere"], "nowhere is not the folder of a run"),
        (["watch", "nowhere"], "nowhere is not the folder of a run"),
        (["watch", "run", "--port", "70000"], "--port: must be at least 0 and at most 65535"),
        (["watch", "run", "--every", "0"], "--every: must be above 0"),
        (["grid", "run", "--between", "2"], "--between: lies between two tastes, and 0 are given"),
        (
            ["grid", "run", "--user", "me"],
            "run was trained without model.taste",
        ),
        (["grid", "run", "--seed", "1.5"], "--seed: expected an int, got '1.5'"),
        (
            ["export", "nowhere", "--to", "o", "--format", "kohya"],
            "nowhere is not the folder of a run",
        ),
        (
            ["score", "--reward", "brightness", "--dtype", "bf16", "a.png"],
            "brightness is a function",
        ),
        (["serve", "--reward", "brightness", "--dtype", "fp32"], "brightness is a function"),
        (["check", "prompts", "animals"], "invalid choice: 'prompts'"),
        (["check", "reward", "brightnes"], "did you mean brightness?"),
        (
            ["serve", "--reward", "brightness", "--max-mb", "nan"],
            "--max-mb: must be above 0 and finite",
        ),
        (
            ["score", "--reward", "brightness", "--params", '{"a": 1, "a": 2}', "a.png"],
            "a stands twice",
        ),
        (["list", "rewards", "--seed", "3"], "list: needs one of"),
        (["plan", "--config", "smoke", "--overwrite"], "--overwrite: no such option"),
        (
            ["plan", "--config", "smoke", "--processes", "0"],
            "--processes: needs a number of at least 1",
        ),
        (
            ["train", "--config", "smoke", "--prompts.split", "test"],
            "prompts.split: is of a data set",
        ),
        (
            ["train", "--config", "smoke", "--objective.draws", "2"],
            "objective.draws: ddpo works on",
        ),
        (
            ["train", "--config", "smoke", "--objective.noise_window", "[0.5, 1]"],
            "objective.noise_window: ddpo works on",
        ),
        (
            [
                *("train", "--config", "smoke", "--objective.name", "rwr"),
                *("--objective.noise_window", "[1, 0.5]"),
            ],
            "objective.noise_window: [1.0, 0.5] is no window",
        ),
        (
            ["train", "--config", "smoke", "--objective.name", "rwr", "--objective.drop_last", "1"],
            "objective.drop_last: rwr works on denoising errors",
        ),
        (
            [
                "train",
                "--config",
                "smoke",
                "--prompts.name",
                "animals",
                "--prompts.path",
                "words.txt",
            ],
            "prompts: name and path are given; keep one",
        ),
    ],
)
def test_a_command_refuses(
    argv: Flags, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def stub(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    """In the place of networks, servers and files: what they were asked for is appended to
    `seen`."""
    import uvicorn

    picture = Image.new("RGB", (8, 8))

    class Run:
        policy = SimpleNamespace(weights=lambda name: nullcontext(seen.append(f"weights {name}")))

        def __init__(self, run_dir: str, *_: Any, **__: Any) -> None:
            seen.append(str(config.of_run(run_dir)))

        def remember(self, column: str) -> str:
            seen.append(column)
            return column

        def sample(self, texts: list[str], seeds: list[int], *column: Any) -> list[Image.Image]:
            seen.append((texts, seeds, column))
            return [picture] * len(seeds)

    def note(*given: Any) -> Image.Image:
        of_runs = isinstance(given[0], list) and isinstance(given[0][0], Run)
        seen.append(given[1:] if of_runs or isinstance(given[0], Run) else given)
        return picture

    def findings(case: Any) -> list[Any]:
        seen.append((case.score(*case.inputs([0])).tolist(), case.prompts))
        return []

    app = server.application

    def application(reward: Any, device: str, most_bytes: int) -> Any:
        seen.append((reward.version, most_bytes))
        return app(reward, device, most_bytes)

    monkeypatch.setattr(finished, "Run", Run)
    monkeypatch.setattr(export, "export", note)
    monkeypatch.setattr(grid, "grid", note)
    monkeypatch.setattr(push, "push", note)
    monkeypatch.setattr(conformance, "findings", findings)
    monkeypatch.setattr(Image.Image, "save", lambda self, out: seen.append(str(out)))
    monkeypatch.setattr(serve, "application", application)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    monkeypatch.setattr(page, "write", note)
    monkeypatch.setattr(comparison, "write", note)
    monkeypatch.setattr(watching.Watching, "serve_forever", lambda self: seen.append(self.every_s))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, bound: [each.close() for each in bound])

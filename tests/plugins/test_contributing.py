"""The files that CONTRIBUTING.md shows are complete, and the commands under them work as they
stand."""

import re
import shlex
from pathlib import Path

import helpers
import pytest

from ddpo.__main__ import main
from ddpo.records import metrics

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^`(mine/\S+\.py)`\n\n```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
)
JOINED = TEXT.replace("\\\n", " ")
COMMANDS = [line.strip() for line in JOINED.splitlines() if re.match(r" {4}ddpo .*mine", line)]


def test_every_kind_is_shown() -> None:
    kinds = {Path(file).parent.name for file in FILES}
    assert kinds == {"rewards", "objectives", "models", "samplers", "advantages", "prompts"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPO_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")
    argv = shlex.split(command.partition("   #")[0])[1:]
    if argv[0] == "train":
        small = helpers.smoke(Path("unused"), "--trainer.iterations", "1")
        given = {word for word in argv if word.startswith("--")}
        pairs = zip(small[::2], small[1::2], strict=True)
        argv += [word for pair in pairs if pair[0] not in given for word in pair]
    assert main(argv) == 0
    if argv[0] == "train":
        (row,) = metrics.read(Path(argv[argv.index("--run_dir") + 1]) / "metrics.jsonl")
        assert row["iteration"] == 1 and row["loss"] == row["loss"]

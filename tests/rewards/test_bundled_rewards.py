"""Every reward in rewards/ keeps the contract: the conformance kit, on the models of zoo_*.py."""

import ast
import re
import socket
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from ddpo import plugins, rewards
from ddpo.scoring import conformance

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "support").glob("zoo_*.py"))
ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "emoji_recognition": lambda folder: {},
    "jpeg_compressibility": lambda folder: {},
    "jpeg_incompressibility": lambda folder: {},
}
"""A reward's name -> a function that puts tiny models below a folder and returns the reward's
params."""
for file in FILES:
    ZOO |= import_module(file.stem).ZOO

EXTRAS = {"ocr": {"cv2", "rapidfuzz"}, "_ppocr": {"cv2", "rapidfuzz"}}
"""The files of rewards/ that need an extra, and what they import of it."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback, which `remote` is tested on; HF_HUB_OFFLINE alone would not stop other
    libraries."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def only_loopback(host: object) -> None:
        if str(host) not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a reward asks the network: {host}")

    def guarded(self: socket.socket, address: Any) -> None:
        only_loopback(address[0])
        connect(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        only_loopback(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def imported(file: Path) -> set[str]:
    """The packages that a file imports, at its top or inside a function; its neighbors aside."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "rewards").glob("*.py")), ids=lambda file: file.stem
)
def test_one_environment(file: Path) -> None:
    """What a reward imports is there after `pip install ddpo`, without an extra; only ocr has
    one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {plain(re.split(r"[^\w.-]", each)[0]) for each in project["dependencies"]}
    owners = packages_distributions()
    others = imported(file) - sys.stdlib_module_names - {"ddpo"} - EXTRAS.get(file.stem, set())
    assert {name for name in others if not declared & set(map(plain, owners[name]))} == set()


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_zoo_is_complete() -> None:
    assert sorted(ZOO) == plugins.names("rewards"), "put it into ZOO of a tests/support/zoo_NAME.py"


@pytest.mark.parametrize("name", plugins.names("rewards"))
def test_bundled_rewards_keep_the_contract(name: str, tmp_path: Path) -> None:
    reward = rewards.build(name, params=ZOO[name](tmp_path))
    found = list(conformance.findings(conformance.Case(reward.score)))
    assert [finding for finding in found if not finding.passed] == []
    singles = not rewards.groupwise(reward.score)
    gradient = getattr(reward.score, "differentiable", False)
    made = {finding.check for finding in found}
    assert ("singles" in made, "gradient" in made) == (singles, gradient)
    assert len(made) == len(conformance.CHECKS) - (not singles) - (not gradient) >= 10

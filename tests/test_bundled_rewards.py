"""Every reward in rewards/ keeps the contract: the conformance kit, on the models of tests/zoo_*.py."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ddpo import conformance, plugins, rewards

FILES = sorted(Path(__file__).parent.glob("zoo_*.py"))
ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "emoji_recognition": lambda folder: {},
    "jpeg_compressibility": lambda folder: {},
    "jpeg_incompressibility": lambda folder: {},
}
"""A reward's name -> a function that puts tiny models below a folder and returns the reward's params."""
for file in FILES:
    ZOO |= import_module(file.stem).ZOO


def test_the_zoo_is_complete() -> None:
    assert sorted(ZOO) == plugins.names("rewards"), "a bundled reward belongs into ZOO of a tests/zoo_NAME.py"


@pytest.mark.parametrize("name", plugins.names("rewards"))
def test_bundled_rewards_keep_the_contract(name: str, tmp_path: Path) -> None:
    reward = rewards.build(name, params=ZOO[name](tmp_path))
    found = list(conformance.findings(conformance.Case(reward.score)))
    assert [finding for finding in found if not finding.passed] == []
    singles, gradient = not rewards.groupwise(reward.score), getattr(reward.score, "differentiable", False)
    made = {finding.check for finding in found}
    assert ("singles" in made, "gradient" in made) == (singles, gradient)
    assert len(made) == len(conformance.CHECKS) - (not singles) - (not gradient) >= 10

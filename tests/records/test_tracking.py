"""A run of wandb is of the project that was asked for, and a resume goes on in it."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import helpers
import pytest

from ddpo import finetune
from ddpo.config import checks
from ddpo.errors import UserError
from ddpo.records.tracking import Trackers


class Wandb(ModuleType):
    """Stands in for the package: remembers each `init`, and the rows of each run by its id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = object()  # pyright: ignore[reportAttributeAccessIssue]
        self.inits: list[dict[str, Any]] = []
        self.rows: dict[str, list[int]] = {}
        self.config = self

    def init(self, **given: Any) -> "Wandb":
        self.inits.append(given)
        self.rows.setdefault(given["id"], [])
        return self

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        assert allow_val_change, "a resume may change options"

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows[self.inits[-1]["id"]].append(step)

    def finish(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_a_resume_continues_the_run_of_wandb(wandb: Wandb, tmp_path: Path) -> None:
    settings = helpers.settings(tmp_path / "run", log__trackers=["wandb"], trainer__iterations=1)
    finetune(settings)
    settings.trainer.iterations = 2
    finetune(settings, resume=True)
    first, second = wandb.inits
    assert first == second
    assert first["project"] == "ddpo" and first["name"] == "run" and first["resume"] == "allow"
    assert wandb.rows == {first["id"]: [1, 2]}


def test_an_overwritten_run_and_another_one_are_new_ones(wandb: Wandb, tmp_path: Path) -> None:
    settings = helpers.settings(tmp_path / "run", log__trackers=["wandb"], trainer__iterations=1)
    finetune(settings)
    finetune(settings, overwrite=True)
    Trackers(["wandb"], tmp_path / "other", {}, "mine")
    assert len({each["id"] for each in wandb.inits}) == 3
    assert [each["project"] for each in wandb.inits] == ["ddpo", "ddpo", "mine"]


def test_the_project_is_obeyed(wandb: Wandb, tmp_path: Path) -> None:
    sections = {"log__trackers": ["wandb"], "log__project": "zoo", "trainer__iterations": 1}
    finetune(helpers.settings(tmp_path / "run", **sections))
    assert [each["project"] for each in wandb.inits] == ["zoo"]


@pytest.mark.parametrize(
    ("trackers", "project", "line"),
    [
        (
            ["jsonl"],
            "zoo",
            r"log\.project: 'zoo' is a project of wandb, .*--log.trackers '\[jsonl, wandb\]'",
        ),
        (["tensorboard"], "zoo", r"--log.trackers '\[tensorboard, wandb\]'"),
        (["wandb"], " ", r"log\.project: must be text that is not blank, got ' '"),
    ],
)
def test_a_project_that_nobody_reads_is_refused(
    wandb: Wandb, trackers: list[str], project: str, line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        checks.check(helpers.settings(tmp_path, log__trackers=trackers, log__project=project))

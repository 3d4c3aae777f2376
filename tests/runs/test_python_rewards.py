"""A reward given from Python: `ddpo.Config(rewards=[{"name": my_function}])`, and what a run of it
says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import yaml
from torch import Tensor

import ddpo
from ddpo import config, plugins, rewards
from ddpo.__main__ import main
from ddpo.errors import UserError
from ddpo.plugins import python_objects
from ddpo.runs import folder as run_folder


def light(images: Tensor, prompts: list[str], metadata: list[Any], *, power: float = 1.0) -> Tensor:
    return images.mean((1, 2, 3)) ** power


class Judge:
    """A class as the reward contract has it."""

    groupwise = True

    def __init__(self, *, device: str = "cpu", dtype: Any = None, share: float = 1.0) -> None:
        self.share = share

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
        return self.share * images.mean((1, 2, 3))


def make(power: float) -> Callable[..., Tensor]:
    def closed(images: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
        return images.mean((1, 2, 3)) ** power

    return closed


dark = lambda images, prompts, metadata: -images.mean((1, 2, 3))  # noqa: E731

PICTURES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MEAN = PICTURES.mean((1, 2, 3))
GIVEN: dict[str, tuple[Any, str, str, Tensor]] = {
    "function": (light, "light", "light", MEAN),
    "class": (Judge, "Judge", "Judge", MEAN),
    "instance": (Judge(share=2.0), "Judge()", "Judge", 2 * MEAN),
    "closure": (make(2.0), "make.<locals>.closed", "closed", MEAN**2),
    "lambda": (dark, "<lambda>", "lambda", -MEAN),
    "partial": (partial(light, power=3.0), "light()", "light", MEAN**3),
    "method": (Judge(share=3.0).__call__, "Judge.__call__()", "__call__", 3 * MEAN),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_what_can_be_given(kind: str) -> None:
    """Its text in a configuration, its name in metrics, its values; the text alone is written."""
    thing, text, name, values = GIVEN[kind]
    settings = config.load(ddpo.Config(rewards=[{"name": thing}]))  # type: ignore[list-item]
    (reward,) = settings.rewards
    assert reward.name == f"python:{__name__}:{text}"
    built = rewards.build(reward.name, params=reward.params)
    assert built.name == name
    torch.testing.assert_close(built(PICTURES, ["a"] * 3, [{}] * 3), values)
    assert rewards.groupwise(built.score) == (kind in ("class", "instance"))
    written = yaml.safe_load(config.dump(settings))
    assert written["rewards"][0]["name"] == f"python:{__name__}:{text}"
    assert config.changed(settings, config.load(written)) == []


def test_options_of_what_is_given_are_checked() -> None:
    (reward,) = config.load({"rewards": [{"name": light, "params": {"power": "2"}}]}).rewards
    assert reward.params == {"power": 2.0}
    with pytest.raises(UserError, match=r"rewards\.0\.params\.powr: .*did you mean power"):
        config.load({"rewards": [{"name": light, "params": {"powr": 2}}]})
    with pytest.raises(UserError, match=r"rewards\.0\.name: expected text, got 3"):
        config.load({"rewards": [{"name": 3}]})


def test_two_of_one_name_need_labels(tmp_path: Path) -> None:
    """And each keeps its own object."""
    both = [{"name": make(1.0), "label": "one"}, {"name": make(2.0), "label": "two"}]
    settings = config.load({"rewards": both})
    values = [
        rewards.build(r.name, label=r.label)(PICTURES, ["a"] * 3, [{}] * 3)
        for r in settings.rewards
    ]
    torch.testing.assert_close(values[0] ** 2, values[1])
    bare = helpers.settings(tmp_path / "run", rewards=[{"name": make(1.0)}, {"name": make(2.0)}])
    with pytest.raises(UserError, match=r"rewards\.1\.name: closed is there twice"):
        ddpo.finetune(bare)


def test_what_a_file_does_not_hold_is_not_cached(tmp_path: Path) -> None:
    """Two closures of one function would be told apart by nothing."""
    assert rewards.build(python_objects.Given(light), cache=str(tmp_path)).version != "unknown"
    for thing in (make(2.0), Judge(), partial(light, power=2.0)):
        with pytest.raises(UserError, match="cannot be cached"):
            rewards.build(python_objects.Given(thing), cache=str(tmp_path))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a closure, a module's function judging: one iteration of two."""
    folder = tmp_path_factory.mktemp("python") / "run"
    settings = helpers.settings(
        folder,
        rewards=[{"name": make(2.0)}],
        eval_rewards=[{"name": light}],
        trainer__iterations=1,
        evaluation__num_prompts=1,
        checkpoint__every=1,
    )
    run = ddpo.finetune(settings)
    assert len(run.sample(["a fox"], [0])) == 1
    return folder


def test_the_run_says_where_its_rewards_came_from(begun: Path) -> None:
    spec = f"python:{__name__}:make.<locals>.closed"
    assert yaml.safe_load((begun / "config.yaml").read_text())["rewards"][0]["name"] == spec
    provenance = json.loads((begun / "provenance.json").read_text())
    assert provenance["rewards_from_python"] == {
        "closed": spec,
        "light": f"python:{__name__}:light",
    }
    assert provenance["rewards"].keys() == {"closed", "light"}
    row = json.loads((begun / "metrics.jsonl").read_text().splitlines()[0])
    assert "reward/closed" in row


@pytest.mark.parametrize(
    "command", [["train", "--resume"], ["evaluate"], ["grid"]], ids=["resume", "evaluate", "grid"]
)
def test_without_the_object_it_is_refused_by_name(
    command: list[str], begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    assert main([*command, str(begun)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddpo: ")]
    assert f"closed was given from Python (python:{__name__}:make.<locals>.closed)" in line
    assert "ddpo.finetune(ddpo.Config(..., rewards=[{'name': closed}]), resume=True)" in line
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_what_needs_no_reward_works_without_it(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = begun.parent / "fox.png"
    assert main(["sample", str(begun), "--prompt", "a fox", "--count", "1", "--out", str(out)]) == 0
    assert out.is_file()


def test_from_python_it_goes_on(begun: Path, tmp_path: Path) -> None:
    """Two iterations with a stop between are two iterations; another reward is refused by name."""
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    changes: dict[str, Any] = {
        "eval_rewards": [{"name": light}],
        "trainer__iterations": 2,
        "evaluation__num_prompts": 1,
        "checkpoint__every": 1,
    }
    with pytest.raises(UserError, match=r"^rewards.*: differs from the run"):
        ddpo.finetune(helpers.settings(run, rewards=[{"name": Judge}], **changes), resume=True)
    ddpo.finetune(helpers.settings(run, rewards=[{"name": make(2.0)}], **changes), resume=True)
    straight = tmp_path / "straight"
    ddpo.finetune(helpers.settings(straight, rewards=[{"name": make(2.0)}], **changes))
    rows = [helpers.metrics.read(each / "metrics.jsonl") for each in (run, straight)]
    means = [[row["reward/closed"] for row in each] for each in rows]
    assert means[0] == means[1] and len(means[0]) == 2


NOTEBOOK = """
import sys
sys.path.insert(0, {tests!r})
import helpers, ddpo
from pathlib import Path
def mine(images, prompts, metadata):
    return images.mean((1, 2, 3))
settings = helpers.settings(Path("run"), rewards=[{{"name": mine}}], trainer__iterations=1)
ddpo.finetune(settings)
"""


def test_a_function_of_main_as_a_process(tmp_path: Path) -> None:
    """As in a notebook or a script; afterwards, `ddpo train --resume` in a process of its own
    refuses."""
    (tmp_path / "script.py").write_text(NOTEBOOK.format(tests=str(Path(helpers.__file__).parent)))
    arguments: Any = {
        "env": helpers.one_thread(),
        "capture_output": True,
        "text": True,
        "cwd": tmp_path,
    }
    done = subprocess.run([sys.executable, "script.py"], **arguments)
    assert done.returncode == 0, done.stderr
    assert "name: python:__main__:mine" in (tmp_path / "run" / "config.yaml").read_text()
    done = subprocess.run([sys.executable, "-m", "ddpo", "train", "--resume", "run"], **arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(
        "ddpo: rewards.0.name: mine was given from Python"
    )


def test_a_resume_does_not_import_on_trust() -> None:
    """What stands under the name by now may be another function; given again, it is taken."""
    text = f"python:{__name__}:light"
    for section in ("rewards", "eval_rewards"):
        run_folder.check_given(config.load({section: [{"name": light}]}))
        with pytest.raises(UserError, match=rf"^{section}\.0\.name: light was given from Python"):
            run_folder.check_given(config.load({section: [{"name": text}]}))


def test_an_importable_name_is_found_for_what_only_reads() -> None:
    """`ddpo evaluate` may import it; a name that was never reachable is not looked for."""
    assert python_objects.find(f"python:{__name__}:light") is light
    for name in (
        f"{__name__}:dark()",
        "__main__:light",
        f"{__name__}:nothing",
        "no_such_module:light",
    ):
        assert python_objects.find(f"python:{name}") is None
        with pytest.raises(UserError, match="was given from Python"):
            plugins.load("rewards", f"python:{name}")

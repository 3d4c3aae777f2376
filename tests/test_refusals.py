"""A library that refuses versions, or misses a package, costs one line with a remedy; a defect
stays one."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import diffusers.loaders.peft
import helpers
import pytest
import transformers.integrations.peft

from ddpo.__main__ import main
from ddpo.commands import frame
from ddpo.models._shared import adapters
from ddpo.training.trainer import Trainer

REMEDY = (
    "; install what is asked for, or the versions that ddpo was tested with (its constraints.txt)\n"
)

PICKY = """
import importlib.metadata

def too_old(*arguments):
    raise ValueError(
        "The version of PEFT you are using is not compatible, please use a version >= 9"
    )

def old_driver(*arguments):
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

def backend(*arguments):
    raise ImportError("AutoTokenizer requires the\\nsentencepiece library")

def absent(*arguments):
    import no_such_library

def metadata(*arguments):
    importlib.metadata.version("no-such-library")

def moved(*arguments):
    from transformers import NoSuchName

def wrapped(*arguments):
    try:
        absent()
    except ImportError as error:
        raise RuntimeError("Failed to import picky.models") from error

def defect(*arguments):
    raise ValueError("shapes differ: modified at version 2; expected version 1")
"""


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An installed library that raises what libraries raise."""
    site = tmp_path / "site-packages"
    info = site / "picky-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "picky.py").write_text(PICKY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: picky\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("picky\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(importlib.sys.modules, "picky", raising=False)
    return importlib.import_module("picky")


REFUSALS = {
    "too_old": "The version of PEFT you are using is not compatible, "
    "please use a version >= 9 (says picky 1.2)",
    "old_driver": (
        "The NVIDIA driver on your system is too old (found version 11040). (says picky 1.2)"
    ),
    "backend": "AutoTokenizer requires the sentencepiece library (says picky 1.2)",
    "absent": "No module named 'no_such_library' (says picky 1.2)",
    "metadata": "No package metadata was found for no-such-library",
    "wrapped": "No module named 'no_such_library' (says picky 1.2)",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_the_users_line(
    name: str, picky: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.run(getattr(picky, name), []) == 2
    assert capsys.readouterr().err == f"ddpo: {REFUSALS[name]}{REMEDY}"


def test_a_name_that_a_library_no_longer_has(
    picky: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.run(picky.moved, []) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        "ddpo: cannot import name 'NoSuchName' from 'transformers'"
    ) and told.endswith(REMEDY)


def ours_in_the_words_of_a_library(argv: list[str]) -> None:
    raise ValueError("please use a version >= 9, pip install it")


def ours_that_is_missing(argv: list[str]) -> None:
    importlib.import_module("ddpo.no_such_module")


def test_a_defect_stays_one(picky: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    defects: list[Callable[[list[str]], None]] = [
        picky.defect,
        ours_in_the_words_of_a_library,
        ours_that_is_missing,
    ]
    for defect in defects:
        assert frame.run(defect, []) == 1
        assert "internal error" in capsys.readouterr().err


def test_before_a_run_nothing_is_written_and_in_flight_it_goes_on(
    picky: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = helpers.smoke(tmp_path / "run")
    with monkeypatch.context() as planted:
        planted.setattr(adapters, "inject_adapter_in_model", picky.too_old)
        assert main(["train", *words]) == 2
    assert (
        f"(says picky 1.2){REMEDY}" in capsys.readouterr().err and not (tmp_path / "run").exists()
    )
    monkeypatch.setattr(Trainer, "iterate", picky.wrapped)
    assert main(["train", *words]) == 3
    assert f"once that is mended, --resume {tmp_path / 'run'}" in capsys.readouterr().err


def test_adapters_ask_no_other_library_for_leave(
    picky: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.24.0 refuses every peft that there was on its day."""
    for library in (transformers.integrations.peft, diffusers.loaders.peft):
        monkeypatch.setattr(library, "check_peft_version", lambda **_: picky.too_old())
    policy = helpers.policy(train_text_encoder=True, moved=0.1)
    with policy.weights("base"):
        policy.condition(helpers.as_prompts(["a fox"]))
    policy.save(tmp_path)
    helpers.policy(loras=[str(tmp_path)])

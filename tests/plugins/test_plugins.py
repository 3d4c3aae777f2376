"""Things are found by name, in our folders, a user's, a package, by path; or one line says why
not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddpo import plugins
from ddpo.errors import UserError, nearest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugins from outside; what a test imports or adds is forgotten after it."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        ours = Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(ROOT)
        if name.startswith(("fakelib", "mylib", "ddpo")) and not ours:
            del sys.modules[name]
    for kind in plugins.USER_KINDS:
        package = sys.modules.get(f"ddpo.{kind}")
        if package is not None:
            package.__path__ = [
                folder for folder in package.__path__ if Path(folder).is_relative_to(ROOT)
            ]


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def reward(name: str, value: float, doc: str = "A constant.") -> str:
    body = f'    """{doc}\n\n    More."""\n    return {value}\n'
    return f'"""Of the module."""\n\n\ndef {name}(images, prompts, metadata):\n{body}'


def call(thing: object) -> object:
    assert callable(thing)
    return thing([], [], [])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `fakelib` with an entry point `fakereward`, as pip would leave it."""
    site = tmp_path / "site"
    write(site / "fakelib" / "__init__.py", "")
    write(site / "fakelib" / "scores.py", reward("score", 7.0))
    info = site / "fakelib-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: fakelib\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[ddpo.rewards]\nfakereward = fakelib.scores:score\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def python(code: str, cwd: Path, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_bundled_names() -> None:
    assert {"jpeg_compressibility", "jpeg_incompressibility"} <= set(plugins.names("rewards"))
    assert {"animals", "imagenet_animals"} <= set(plugins.names("prompts"))
    everything = [name for kind in plugins.SUFFIXES for name in plugins.names(kind)]
    assert not [name for name in everything if name.startswith("_")]


def test_a_file_in_a_users_folder(tmp_path: Path) -> None:
    write(tmp_path / "rewards" / "constant_a.py", reward("constant_a", 3.0))
    assert "constant_a" not in plugins.names("rewards")
    plugins.add_folder(tmp_path)
    assert "constant_a" in plugins.names("rewards")
    assert call(plugins.load("rewards", "constant_a")) == 3.0


def test_a_file_added_after_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "rewards" / "constant_b.py", reward("constant_b", 1.0))
    plugins.add_folder(tmp_path)
    plugins.load("rewards", "constant_b")
    looked = (tmp_path / "rewards").stat()
    write(tmp_path / "rewards" / "constant_c.py", reward("constant_c", 2.0))
    # as on a disk with coarse times
    os.utime(tmp_path / "rewards", ns=(looked.st_atime_ns, looked.st_mtime_ns))
    assert call(plugins.load("rewards", "constant_c")) == 2.0


def test_a_users_file_is_importable_as_ours(tmp_path: Path) -> None:
    """`from ddpo.rewards.x import x` works at once, though ddpo.rewards was imported before."""
    import ddpo.rewards  # noqa: F401

    write(tmp_path / "rewards" / "constant_d.py", reward("constant_d", 4.0))
    plugins.add_folder(tmp_path)
    module = __import__("ddpo.rewards.constant_d", fromlist=["constant_d"])
    assert call(module.constant_d) == 4.0


def test_children_inherit_the_folders(tmp_path: Path) -> None:
    for folder, name in (("one", "constant_e"), ("two", "constant_f")):
        write(tmp_path / folder / "rewards" / f"{name}.py", reward(name, 1.0))
        plugins.add_folder(tmp_path / folder)
    found = python(
        "from ddpo import plugins; print(*plugins.names('rewards'))", tmp_path, PYTHONPATH=str(ROOT)
    )
    assert {"constant_e", "constant_f"} <= set(found.split())


def test_our_own_root_as_a_users_folder_doubles_nothing() -> None:
    plugins.add_folder(ROOT)
    plugins.add_folder(ROOT / "tests" / "..")
    assert os.environ[plugins.VARIABLE] == str(ROOT)
    os.environ[plugins.VARIABLE] = str(ROOT / "tests" / "..")
    assert plugins.folders("rewards") == [str(ROOT / "rewards")]
    assert (
        plugins.find("rewards", "jpeg_compressibility")
        == ROOT / "rewards" / "jpeg_compressibility.py"
    )


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugins: .*nowhere: no such folder"):
        plugins.add_folder(tmp_path / "nowhere")
    (tmp_path / "rewards").mkdir()
    with pytest.raises(
        UserError, match=r"none of the folders rewards/.* give the folder that holds them"
    ):
        plugins.add_folder(tmp_path / "rewards")
    assert os.environ[plugins.VARIABLE] == ""


def test_prompts_may_have_four_suffixes(tmp_path: Path) -> None:
    for name in (
        "set_a.txt",
        "set_b.jsonl",
        "set_c.csv",
        "set_d.py",
        "_set_e.txt",
        "set_f.md",
        ".set_g.txt",
    ):
        write(tmp_path / "prompts" / name, "a fox\n")
    plugins.add_folder(tmp_path)
    found = [name for name in plugins.names("prompts") if "set_" in name]
    assert found == ["set_a", "set_b", "set_c", "set_d"]
    assert plugins.load("prompts", "set_c") == tmp_path / "prompts" / "set_c.csv"


def test_objectives_and_models_live_inside_the_package_and_configs_are_only_ours(
    tmp_path: Path,
) -> None:
    write(tmp_path / "configs" / "mine.yaml", "seed: 1\n")
    write(tmp_path / "objectives" / "mine.py", "")
    plugins.add_folder(tmp_path)
    assert plugins.folders("objectives") == [
        str(ROOT / "ddpo" / "objectives"),
        str(tmp_path / "objectives"),
    ]
    assert plugins.folders("models") == [str(ROOT / "ddpo" / "models"), str(tmp_path / "models")]
    assert plugins.folders("configs") == [str(ROOT / "configs")]


def test_in_a_wheel_the_files_are_bundled(tmp_path: Path) -> None:
    """As hatchling lays it out, and run where the user has a rewards/ of their own."""
    site, work = tmp_path / "site", tmp_path / "work"
    write(site / "ddpo" / "bundled" / "rewards" / "ours.py", reward("ours", 1.0))
    write(work / "rewards" / "theirs.py", reward("theirs", 1.0))
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "ddpo" / name, site / "ddpo" / name)
    shutil.copytree(ROOT / "ddpo" / "plugins", site / "ddpo" / "plugins")
    code = "from ddpo import plugins; print(*plugins.names('rewards'))"
    assert python(code, work, PYTHONPATH=str(site)) == "ours"
    assert python(code, work, PYTHONPATH=str(site), DDPO_PLUGINS=".") == "ours theirs"


def test_an_installed_package(installed: Path) -> None:
    assert "fakereward" in plugins.names("rewards")
    assert "fakereward" not in plugins.names("prompts")
    assert ("fakereward", "fakelib.scores:score, installed with fakelib") in plugins.summaries(
        "rewards"
    )
    assert "fakelib" not in sys.modules  # listing imports nothing
    assert call(plugins.load("rewards", "fakereward")) == 7.0


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    mine = write(
        tmp_path / "rewards" / "jpeg_compressibility.py", reward("jpeg_compressibility", 1.0)
    )
    plugins.add_folder(tmp_path)
    with pytest.raises(UserError) as caught:
        plugins.load("rewards", "jpeg_compressibility")
    assert str(mine) in str(caught.value)
    assert str(ROOT / "rewards" / "jpeg_compressibility.py") in str(caught.value)


def test_a_file_and_an_entry_point_of_one_name_are_refused(tmp_path: Path, installed: Path) -> None:
    mine = write(tmp_path / "rewards" / "fakereward.py", reward("fakereward", 1.0))
    plugins.add_folder(tmp_path)
    with pytest.raises(UserError) as caught:
        plugins.load("rewards", "fakereward")
    assert str(mine) in str(caught.value) and "fakelib.scores:score of fakelib" in str(caught.value)


def test_one_prompt_set_in_two_formats_is_refused(tmp_path: Path) -> None:
    for suffix in (".txt", ".csv"):
        write(tmp_path / "prompts" / f"birds{suffix}", "prompt\n")
    plugins.add_folder(tmp_path)
    with pytest.raises(UserError, match=r"birds\.csv and in .*birds\.txt"):
        plugins.load("prompts", "birds")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        plugins.load("rewards", "jpeg_compresibility")
    expected = (
        "rewards: nothing is called 'jpeg_compresibility'; did you mean jpeg_compressibility?"
    )
    assert str(caught.value) == expected


def test_nearest() -> None:
    assert nearest("clip_rage", ["lr", "clip_range", "clip_frac"]) == "; did you mean clip_range?"
    assert nearest("DDPO", ["prdp", "ddpo"]) == "; did you mean ddpo?"
    assert nearest("zzz", ["b", "a", "b"]) == "; known: a, b"
    assert nearest("zzz", []) == "; known: none"


def test_an_attribute_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "mylib" / "scores.py",
        reward("sharp", 5.0) + "\n\nclass Box:\n    sharp = staticmethod(sharp)\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert call(plugins.load("rewards", "mylib.scores:sharp")) == 5.0
    assert call(plugins.load("rewards", "mylib.scores:Box.sharp")) == 5.0
    with pytest.raises(UserError, match=r"mylib\.scores defines no 'shrap'; did you mean sharp\?"):
        plugins.load("rewards", "mylib.scores:shrap")
    with pytest.raises(UserError, match=r"mylib\.nothing cannot be imported: ModuleNotFoundError"):
        plugins.load("rewards", "mylib.nothing:sharp")


def test_a_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        tmp_path / "own.py",
        "from ._help import two\n\n\ndef own():\n    return two\n\n\ndef other():\n    return 9\n",
    )
    write(tmp_path / "_help.py", "two = 2\n")
    load: Callable[[str], object] = lambda spec: plugins.load("rewards", spec)()  # type: ignore[operator]  # noqa: E731
    assert load(f"{file}:own") == 2
    assert load(str(file)) == 2
    assert load(f"{file}:other") == 9
    monkeypatch.chdir(tmp_path)
    assert load("own.py:other") == 9
    with pytest.raises(UserError, match=r"missing\.py: no such file"):
        load("missing.py:own")
    with pytest.raises(UserError, match=r"own\.py defines no 'owm'; did you mean own\?"):
        load("own.py:owm")


def test_two_files_of_one_name_in_two_places_stay_two(tmp_path: Path) -> None:
    files = [
        write(tmp_path / folder / "same.py", reward("same", value))
        for folder, value in (("a", 1.0), ("b", 2.0))
    ]
    assert [call(plugins.load("rewards", str(file))) for file in files] == [1.0, 2.0]


def test_a_broken_plugin_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "rewards" / "breaks.py", "import no_such_library\n")
    write(tmp_path / "rewards" / "empty_one.py", "")
    plugins.add_folder(tmp_path)
    with pytest.raises(
        UserError, match=r"breaks\.py cannot be imported: .*no_such_library"
    ) as caught:
        plugins.load("rewards", "breaks")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(UserError, match=r"empty_one\.py defines no 'empty_one'; known: none"):
        plugins.load("rewards", "empty_one")


def test_summaries_import_nothing(tmp_path: Path) -> None:
    explode = "raise SystemError('imported')\n"
    write(tmp_path / "rewards" / "sum_a.py", reward("sum_a", 1.0, doc="What a does.") + explode)
    write(tmp_path / "rewards" / "sum_b.py", '"""Only the module.\n\nMore."""\n' + explode)
    write(tmp_path / "rewards" / "sum_c.py", 'class sum_c:\n    """A class."""\n' + explode)
    write(tmp_path / "rewards" / "sum_d.py", "x = 1\ndef broken(:\n")
    write(tmp_path / "prompts" / "sum_e.txt", "a fox\n\na cat\n")
    plugins.add_folder(tmp_path)
    lines = dict(plugins.summaries("rewards"))
    assert [lines[f"sum_{letter}"] for letter in "abc"] == [
        "What a does.",
        "Only the module.",
        "A class.",
    ]
    assert lines["sum_d"] == "cannot be read: invalid syntax, line 2"
    assert dict(plugins.summaries("prompts"))["sum_e"] == "2 lines, first: a fox"
    assert "-" not in lines and sorted(lines) == plugins.names("rewards")


def test_every_bundled_thing_has_a_summary() -> None:
    for kind in plugins.SUFFIXES:
        assert not [name for name, line in plugins.summaries(kind) if not line], kind


def test_listing_and_reading_prompts_import_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from ddpo import errors, plugins, prompts
[(plugins.names(kind), plugins.summaries(kind)) for kind in plugins.SUFFIXES]
prompts.load("animals")
print([name for name in ("torch", "numpy", "PIL") if name in sys.modules])"""
    assert python(code, tmp_path, PYTHONPATH=str(ROOT)) == "[]"

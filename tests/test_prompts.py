"""Every form of prompt file is read alike, mistakes name file and line, bundled sets are the
papers'."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest

from ddpo import config, plugins, prompts
from ddpo.__main__ import main
from ddpo.errors import UserError
from ddpo.models.emoji import scenes

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def texts(found: prompts.PromptSet) -> list[str]:
    return [prompt.text for prompt in found]


def refused(match: str, path: Path, template: str | None = None) -> None:
    with pytest.raises(UserError, match=match):
        prompts.load(path=path, template=template)


ROWS = [{"prompt": "a fox", "animal": "fox"}, {"prompt": "a cat, asleep", "animal": "cat"}]
FILES = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.csv": 'prompt,animal\na fox,fox\n"a cat, asleep",cat\n',
    "b.csv": 'animal, prompt\nfox, a fox\ncat, "a cat, asleep"\n',
    "a.py": f"def a():\n    return {ROWS}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_rows_with_metadata(write: Write, name: str) -> None:
    found = prompts.load(path=write(name, FILES[name]))
    assert [(prompt.text, prompt.metadata) for prompt in found] == [
        ("a fox", {"animal": "fox"}),
        ("a cat, asleep", {"animal": "cat"}),
    ]
    assert found.name == name[0]
    assert found.hash == prompts.load(path=write("other.jsonl", FILES["a.jsonl"])).hash


def test_lines_are_stripped_and_empty_ones_skipped(write: Write) -> None:
    assert texts(prompts.load(path=write("a.txt", "\ufeff  a fox \r\n\n\ta cat, asleep\n"))) == [
        "a fox",
        "a cat, asleep",
    ]
    assert texts(prompts.load(path=write("a.jsonl", '\n{"prompt": " a fox "}\n\n'))) == ["a fox"]
    assert texts(
        prompts.load(path=write("a.py", "def a():\n    return [' a fox', 'a cat']\n"))
    ) == [
        "a fox",
        "a cat",
    ]


def test_a_set_is_a_sequence(write: Write) -> None:
    found = prompts.load(path=write("a.txt", "a\nb\nc\n"))
    assert (len(found), found[0].text, found[-1].text) == (3, "a", "c")
    assert isinstance(found[1:], prompts.PromptSet) and texts(found[1:]) == ["b", "c"]
    assert found.index(found[2]) == 2


def test_the_hash_is_of_the_content(write: Write) -> None:
    def hashed(text: str) -> str:
        return prompts.load(path=write("a.jsonl", text)).hash

    first = hashed('{"prompt": "a", "n": 1, "m": 0}\n{"prompt": "b", "n": 2}\n')
    assert first == hashed('{"m": 0, "n": 1, "prompt": " a"}\n{"n": 2, "prompt": "b"}')
    assert first != hashed('{"prompt": "b", "n": 2}\n{"prompt": "a", "n": 1, "m": 0}\n')
    assert first != hashed('{"prompt": "a", "n": 1, "m": 0}\n{"prompt": "b", "n": 3}\n')
    assert first != hashed('{"prompt": "a", "n": 1, "m": 0}\n{"prompt": "B", "n": 2}\n')


def test_a_template(write: Write) -> None:
    file = write("a.jsonl", FILES["a.jsonl"])
    found = prompts.load(path=file, template="A painting of a {animal}")
    assert texts(found) == ["A painting of a fox", "A painting of a cat"]
    assert found[0].metadata == {"animal": "fox"}
    assert texts(prompts.load(path=file, template="{prompt}!"))[1] == "a cat, asleep!"
    refused(
        r"line 1: no column 'animl' for prompts.template; did you mean animal\?", file, "a {animl}"
    )
    refused(r"line 2: the prompt 'a beast' stands already at .*line 1", file, "a beast")
    for broken in ("a {animal", "a {}", "a {0}", "{animal.name}", "{animal:d}"):
        refused(r"prompts.template '.*must read like 'A painting of \{prompt\}'", file, broken)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "a.txt",
            "a fox\na cat\n a fox\n",
            r"a\.txt, line 3: the prompt 'a fox' stands already at .*a\.txt, line 1",
        ),
        ("a.txt", " \n\n", r"a\.txt holds no prompt"),
        ("a.csv", "prompt\n", r"a\.csv holds no prompt"),
        ("a.py", "def a():\n    return []\n", r"a\.py holds no prompt"),
        (
            "a.jsonl",
            '{"prompt": "a fox"}\n{"prompt": "a cat"\n',
            r"a\.jsonl, line 2: broken JSON: .*column",
        ),
        ("a.jsonl", '{"prompt": "a fox"}\n\n"a cat"\n', r"a\.jsonl, line 3: not an object"),
        (
            "a.jsonl",
            '{"promt": "a fox"}\n',
            r"a\.jsonl, line 1: no column is called 'prompt'; did you mean promt\?",
        ),
        ("a.jsonl", '{"prompt": 3}\n', r"a\.jsonl, line 1: the prompt is 3; it must be text"),
        (
            "a.jsonl",
            '{"prompt": " "}\n',
            r"a\.jsonl, line 1: the prompt is ' '; it must be text that is not empty",
        ),
        ("a.csv", "text,animal\na fox,fox\n", r"a\.csv, line 2: no column is called 'prompt'"),
        ("a.csv", "prompt\na fox\na cat, asleep\n", r"a\.csv, line 3: not as many cells"),
        ("a.csv", "prompt,animal\na fox\n", r"a\.csv, line 2: not as many cells"),
        ("a.csv", 'prompt\na cow\n"a fox\na cat\n', r"a\.csv, line 3: broken CSV: unexpected end"),
        (
            "a.py",
            "def a():\n    return ['a fox', 3]\n",
            r"a\.py, item 2: 3 is neither a string nor a dict",
        ),
        (
            "a.py",
            "def a():\n    return [{'prompt': 'a', 'x': {1}}]\n",
            r"a\.py: returned something else than a list",
        ),
        ("a.py", "def b():\n    return ['a fox']\n", r"a\.py defines no 'a'; known: b"),
        ("a.py", "a = ['a fox']\n", r"a\.py: not a function that returns a list"),
        (
            "a.yaml",
            "- a fox\n",
            r"a\.yaml is no prompt file; use one of \.txt, \.jsonl, \.csv, \.py",
        ),
    ],
)
def test_what_is_refused(write: Write, name: str, text: str, match: str) -> None:
    refused(match, write(name, text))


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    refused(r"prompts.path: .*nowhere\.txt: no such file", tmp_path / "nowhere.txt")
    (tmp_path / "a.txt").write_bytes(b"a fox\n\xff\xfe\n")
    refused(r"a\.txt is not UTF-8 text \(byte 6\)", tmp_path / "a.txt")


def test_name_or_path() -> None:
    for given in ({}, {"name": "animals", "path": "a.txt"}):
        with pytest.raises(UserError, match="give a name or a path"):
            prompts.load(**given)
    with pytest.raises(UserError, match=r"'animls'; did you mean animals\?"):
        prompts.load("animls")


def test_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    monkeypatch.setattr(prompts, "__path__", list(prompts.__path__))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "my_birds.txt").write_text("an owl\n")
    (tmp_path / "prompts" / "my_fish.py").write_text(
        "def my_fish():\n    return [{'prompt': 'a cod', 'n': 1}]\n"
    )
    assert texts(prompts.load("my_birds")) == ["an owl"]
    assert prompts.load("my_fish")[0] == prompts.Prompt("a cod", {"n": 1})


def test_animals() -> None:
    animals, heldout = prompts.load("animals"), prompts.load("animals_heldout")
    assert (len(animals), len(heldout)) == (45, 12)
    assert {prompt.metadata["animal"] for prompt in animals} == set(scenes.ANIMALS)
    assert {prompt.metadata["animal"] for prompt in heldout} == set(scenes.HELDOUT_ANIMALS)
    assert {"a fox", "an ant"} <= set(texts(animals)) and {"an owl", "a snail"} <= set(
        texts(heldout)
    )
    paintings = texts(prompts.load("animals", template="A painting of a {animal}"))
    assert paintings[0] == "A painting of a cat"


def test_activities() -> None:
    seen, heldout = prompts.load("activities"), prompts.load("activities_heldout")
    pairs = [
        (prompt.metadata["animal"], prompt.metadata["activity"]) for prompt in [*seen, *heldout]
    ]
    assert set(pairs[len(seen) :]) == scenes.HELDOUT_COMBINATIONS
    assert len(pairs) == 135 and set(pairs) == {
        (a, b) for a in scenes.ANIMALS for b in scenes.ACTIVITIES
    }
    for prompt in [*seen, *heldout]:
        article = "an" if prompt.metadata["animal"] == "ant" else "a"
        assert prompt.text == f"{article} {prompt.metadata['animal']} {prompt.metadata['activity']}"


def test_imagenet_animals() -> None:
    found = texts(prompts.load("imagenet_animals"))
    assert len(found) == 398
    assert [found[0], found[1], found[397]] == [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "puffer, pufferfish, blowfish, globefish",
    ]
    assert found[207] == "golden retriever" and found[291] == "lion, king of beasts, Panthera leo"


def test_counting() -> None:
    found = prompts.load("counting")
    assert len(found) == 22 * 7
    words = dict(enumerate(["two", "three", "four", "five", "six", "seven", "eight"], 2))
    plurals: dict[str, set[str]] = {}
    for prompt in found:
        word, plural = prompt.text.split()
        assert words[prompt.metadata["count"]] == word
        plurals.setdefault(prompt.metadata["animal"], set()).add(plural)
        number, animal = prompt.metadata["questions"]
        assert number == f"How many {plural} are there in this image?" and animal.startswith(
            "What animal"
        )
        assert prompt.metadata["answers"] == [
            [word, str(prompt.metadata["count"])],
            prompt.metadata["animal"],
        ]
    assert len(plurals) == 22 and set(plurals) <= set(scenes.ANIMALS)
    irregular = {"fox": "foxes", "wolf": "wolves", "mouse": "mice", "butterfly": "butterflies"}
    assert plurals == {animal: {irregular.get(animal, f"{animal}s")} for animal in plurals}


ROWS = [
    {"caption": "a fox", "id": 1, "score": 0.5, "good": True, "tags": ["x"], "note": None},
    {"caption": " a fox ", "id": 2, "score": 0.5, "good": True, "tags": ["x"], "note": "repeats"},
    {"caption": None, "id": 3, "score": 0.5, "good": True, "tags": ["x"], "note": "empty"},
    {"caption": "a cat", "id": 4, "score": 0.25, "good": False, "tags": [], "note": "é"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as parquet and as jsonl, each in a folder, and as the prompt file they amount
    to."""
    import datasets

    folder = tmp_path_factory.mktemp("data")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    for name in ("parquet", "lines"):
        (folder / name).mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "parquet" / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(ROWS[3:]).to_parquet(
        folder / "parquet" / "test-00000-of-00001.parquet"
    )
    (folder / "lines" / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    plain = ("id", "score", "good", "note")
    kept = [
        {"prompt": row["caption"], **{key: row[key] for key in plain}} for row in (ROWS[0], ROWS[3])
    ]
    (folder / "same.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return folder


def test_a_data_set_is_the_file_of_its_plain_columns(data: Path) -> None:
    """The first row of each prompt; no lists; the hash of a run's provenance covers all of it."""
    same = prompts.load(path=data / "same.jsonl")
    for name in ("parquet", "lines"):
        found = prompts.load(dataset=(str(data / name), "train", "caption"))
        assert (found.prompts, found.hash, found.name) == (same.prompts, same.hash, name)
        assert dict(found[1].metadata) == {"id": 4, "score": 0.25, "good": False, "note": "é"}
    held_out = prompts.load(
        None, None, "{prompt}, {note}", False, (str(data / "parquet"), "test", "caption")
    )
    assert texts(held_out) == ["a cat, é"] and held_out.hash != same.hash


def test_a_data_set_that_cannot_be(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(data / "parquet")
    for asked, words in (
        (
            (folder, "train", "captoin"),
            r"prompts.column: .* no text called 'captoin'; did you mean caption\?",
        ),
        ((folder, "train", "id"), "no text called 'id'; known: caption, note"),
        (
            (folder, "trian", "caption"),
            r"split trian: cannot be loaded \(ValueError: Unknown split",
        ),
        (
            ("nobody/nothing", "train", "prompt"),
            "nobody/nothing, .*, and HF_HUB_OFFLINE is set.; give a name",
        ),
    ):
        with pytest.raises(UserError, match=words) as caught:
            prompts.load(dataset=asked)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give a name or a path or a dataset"):
        prompts.load("animals", dataset=(folder, "train", "caption"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"datasets is not installed; pip install 'ddpo\[datasets\]'"
    ):
        prompts.load(dataset=(folder, "train", "caption"))


def test_a_run_on_a_data_set(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named on the command line it takes the place of the file's name; the provenance knows its
    rows."""
    run, same = tmp_path / "run", prompts.load(path=data / "same.jsonl")
    flags = ["--prompts.dataset", str(data / "lines"), "--prompts.column", "caption"]
    assert main(["train", *helpers.smoke(run), *flags, "--trainer.iterations", "1"]) == 0
    assert json.loads((run / "provenance.json").read_text())["prompt_set_sha256"] == same.hash
    written = config.load(run / "config.yaml").prompts
    assert (written.name, written.path, written.column) == (None, None, "caption")
    (data / "lines" / "data.jsonl").write_text(json.dumps(ROWS[3]))
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--trainer.iterations", "2"]) == 2
    assert "prompts: no longer those of the run" in capsys.readouterr().err


def test_a_key_tells_prompts_of_one_text_apart(tmp_path: Path) -> None:
    (tmp_path / "taste.jsonl").write_text(
        '{"prompt": "a fox", "key": "a fox/ann"}\n'
        '{"prompt": "a fox", "key": "a fox/bob"}\n'
        '{"prompt": "a cat"}\n'
    )
    found = prompts.load(path=tmp_path / "taste.jsonl")
    assert [prompt.text for prompt in found] == ["a fox", "a fox", "a cat"]
    assert [prompt.key for prompt in found] == ["a fox/ann", "a fox/bob", "a cat"]


@pytest.mark.parametrize("key", ['""', "7", "null", '["a"]'])
def test_a_key_is_text(tmp_path: Path, key: str) -> None:
    (tmp_path / "taste.jsonl").write_text(f'{{"prompt": "a fox", "key": {key}}}\n')
    with pytest.raises(UserError, match=r"line 1: the key is .* must be text that is not empty"):
        prompts.load(path=tmp_path / "taste.jsonl")


def test_two_rows_with_one_key_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taste.jsonl").write_text(
        '{"prompt": "a fox", "key": "x"}\n{"prompt": "a cat", "key": "x"}\n'
    )
    with pytest.raises(UserError, match=r"the key 'x' stands already at .*line 1"):
        prompts.load(path=tmp_path / "taste.jsonl")

"""Prompt sets of the Hub: read from a local stand-in of it, counted, and refused in one line."""

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import close_session

from ddpo import prompts
from ddpo.__main__ import main
from ddpo.errors import UserError

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Files by what of their address follows /datasets/."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> bytes:
        repo, _, rest = self.path.removeprefix("/datasets/").partition("/resolve/")
        content = self.server.files.get(f"{repo}/{rest.partition('/')[2]}", b"")
        self.send_response(200 if content else 404)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self) -> None:
        self.wfile.write(self.do_HEAD())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        close_session()
        yield server.files
        close_session()
        server.shutdown()
        thread.join()


def as_json(count: int) -> bytes:
    return json.dumps([f"a fox, {i}" for i in range(count)]).encode()


def as_table(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


HPD = "ymhao/HPDv2/benchmark"
LISTS = {
    "drawbench": (f"{HPD}/drawbench.json", 200, {}),
    "hpdv2_anime": (f"{HPD}/anime.json", 800, {"style": "anime"}),
    "hpdv2_concept_art": (f"{HPD}/concept-art.json", 800, {"style": "concept-art"}),
    "hpdv2_paintings": (f"{HPD}/paintings.json", 800, {"style": "paintings"}),
    "hpdv2_photo": (f"{HPD}/photo.json", 800, {"style": "photo"}),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_texts(name: str, hub: dict[str, bytes]) -> None:
    file, count, metadata = LISTS[name]
    hub[file] = as_json(count)
    found = prompts.load(name)
    assert [prompt.text for prompt in found] == [f"a fox, {i}" for i in range(count)]
    assert all(dict(prompt.metadata) == metadata for prompt in found)


def test_partiprompts(hub: dict[str, bytes]) -> None:
    """A text in quotes that holds some; one that stands there twice is given once."""
    rows = [f"a fox {i}\tAnimals\tBasic\tsome note" for i in range(1630)]
    text = '"a ""red"" fox"\tAbstract\tStyle & Format\t'
    lines = ["Prompt\tCategory\tChallenge\tNote", text, *rows, rows[3]]
    hub["nateraw/parti-prompts/PartiPrompts.tsv"] = "\n".join(lines).encode()
    found = prompts.load("partiprompts")
    assert len(found) == 1631 and [p.text for p in found][:2] == ['a "red" fox', "a fox 0"]
    assert dict(found[0].metadata) == {"category": "Abstract", "challenge": "Style & Format"}


def test_tables(hub: dict[str, bytes]) -> None:
    file = "data/test_unique-00000-of-00001-73a51cbb6488571d.parquet"
    rows = [{"caption": f"a fox {i}", "user_id": i} for i in range(500)]
    hub[f"yuvalkirstain/pickapic_v1_no_images/{file}"] = as_table(rows)
    found = prompts.load("pickapic_test")
    assert len(found) == 500 and (found[7].text, dict(found[7].metadata)) == ("a fox 7", {})
    questions = [{"question": "Is there a fox?", "proposition_id": 1}]
    rows = [
        {"item_id": f"{i}", "prompt": f"a fox {i}", "questions": questions} for i in range(1065)
    ]
    hub["Jialuo21/DPG-Bench/data/test-00000-of-00001.parquet"] = as_table(rows)
    found = prompts.load("dpg")
    assert len(found) == 1065
    assert dict(found[7].metadata) == {"item_id": "7", "questions": questions}


def test_another_number_of_prompts_is_refused(hub: dict[str, bytes]) -> None:
    hub[f"{HPD}/drawbench.json"] = as_json(199)
    with pytest.raises(UserError, match="HPDv2 has 199 prompts, and 200 were expected"):
        prompts.load("drawbench")


def test_a_file_that_is_not_there(
    hub: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit code 2, before anything is written; a plan goes on without such a set."""
    run = tmp_path / "run"
    flags = ["--config", "smoke", "--prompts.name", "partiprompts", "--run_dir", str(run)]
    assert main(["train", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ddpo: prompts.name: PartiPrompts.tsv of the data set nateraw/parti-pr")
    assert "give prompts.path a copy of the prompts" in line and not run.exists()
    with pytest.raises(prompts.NotHere):
        prompts.load("partiprompts")


def test_offline_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "emoji", "--prompts", "drawbench", "--eval_rewards", "sharpness"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "drawbench.json of the data set ymhao/HPDv2 cannot be had" in line
    assert "HF_HUB_OFFLINE is set: unset it, or" in line


def test_geneval_needs_no_hub() -> None:
    """The numbers of the paper's table 1, and one row of each task."""
    found = prompts.load("geneval")
    tasks = Counter(prompt.metadata["tag"] for prompt in found)
    assert tasks == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    rows = {prompt.text: dict(prompt.metadata) for prompt in found}
    assert rows["a photo of two clocks"] == {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
    }
    assert rows["a photo of a dog right of a teddy bear"]["include"] == [
        {"class": "teddy bear", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
    ]


def test_other_draws_than_genevals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ddpo.prompts.geneval as module

    monkeypatch.setattr(module, "DRAWS", 99)
    with pytest.raises(UserError, match="draws other prompts than GenEval has"):
        prompts.load("geneval")

"""`ddpo push` against a stand-in of the Hub's API: what arrives, once, and what is refused."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session
from test_report import write_evaluation, write_training

from ddpo import config
from ddpo.__main__ import main
from ddpo.runs import push

SECRET = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: their files by path, and the commits' messages."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.objects: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        content = self.body()
        assert self.path == f"/object/{hashlib.sha256(content).hexdigest()}"
        self.server.objects[self.path[8:]] = content
        self.answer({})

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("/revision/")[0]
        self.answer({"id": name, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        content, hub = self.body(), self.server
        if self.headers.get("Authorization") != f"Bearer {SECRET}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            known = name in hub.repos
            hub.repos.setdefault(name, {})
            # said by the one word or the other, depending on the version
            hidden = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.private.setdefault(name, hidden)
            told = {"url": f"{hub.address}/{name}", "id": name}
            if known:
                told["error"] = "You already created this model repo"
            self.answer(told, 409 if known else 200)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "authenticated": True,
                    "actions": {
                        "upload": {"href": f"{hub.address}/object/{o['oid']}", "header": {}}
                    },
                }
                for o in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/preupload/" in self.path:
            kinds = [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                }
                for f in json.loads(content)["files"]
            ]
            self.answer({"files": kinds})
        else:
            self.commit(content)

    def commit(self, content: bytes) -> None:
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        hub = self.server
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
            elif line["key"] == "file":
                hub.repos[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repos[name][value["path"]] = hub.objects[value["oid"]]
        url = f"{hub.address}/{name}/commit/{'1' * 40}"
        self.answer(
            {"commitUrl": url, "commitOid": "1" * 40, "pullRequestUrl": None, "success": True}
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        close_session()
        yield server
        close_session()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "demo"
    write_training(folder)
    write_evaluation(folder)
    settings = config.load(Path(__file__).parents[2] / "configs" / "demo.yaml")
    (folder / "config.yaml").write_text(config.dump(settings))
    (folder / "provenance.json").unlink()
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    results["config"] = config.flat(settings)
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))
    (folder / "lora").mkdir()
    (folder / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"weights" * 99)
    (folder / "checkpoints" / "000040").mkdir(parents=True)
    (folder / "checkpoints" / "000040" / "parameters.safetensors").write_bytes(b"x")
    return folder


def test_lora_card_and_page_arrive_in_one_commit(
    hub: Hub, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_dir), "--to", "me/fox", "--private"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"{hub.address}/me/fox"
    arrived = hub.repos["me/fox"]
    assert hub.private == {"me/fox": True} and hub.commits == ["demo, by ddpo"]
    for name in ("lora/pytorch_lora_weights.safetensors", "README.md", "index.html"):
        assert arrived[name] == (run_dir / name).read_bytes()
    assert not [name for name in arrived if name.startswith("checkpoints")]
    text = arrived["index.html"].decode()
    needed = {part.split('"')[0] for part in text.split('src="')[1:]}
    assert len(needed) > 100 and needed <= arrived.keys()


def test_again_into_the_same_repository(hub: Hub, run_dir: Path) -> None:
    for _ in range(2):
        assert main(["push", str(run_dir), "--to", "me/fox"]) == 0
    assert hub.private == {"me/fox": False} and list(hub.repos) == ["me/fox"]


def test_a_stranger_is_told_to_log_in(
    hub: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert main(["push", str(run_dir), "--to", "me/fox"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the Hub refuses" in line and "hf auth login" in line and hub.repos == {}


def test_a_hub_that_is_not_there(
    hub: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run_dir), "--to", "me/fox"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_offline_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run_dir), "--to", "me/fox"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("a b", "is no name of a repository"), ("me/fox", "has no lora/ yet")],
)
def test_refused_before_anything_is_written(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_training(tmp_path / "run", iterations=2)
    if "lora" not in words:
        (tmp_path / "run" / "lora").mkdir()
    assert main(["push", str(tmp_path / "run"), "--to", name]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "index.html").exists()


def test_hidden_files_stay(run_dir: Path) -> None:
    (run_dir / "evaluation" / ".samples.writing").write_text("x")
    (run_dir / "index.html").touch()
    assert not [name for name in push.files(run_dir) if ".writing" in name]

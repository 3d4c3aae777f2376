"""`ddpo watch` and `ddpo report`: the page of a run in progress, on this machine alone."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from test_report import write_json_lines, write_training

from ddpo.__main__ import main
from ddpo.evaluation.pages.server import Watching, state
from ddpo.records import metrics


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_training(tmp_path / "run", iterations=10)
    return tmp_path / "run"


@pytest.fixture
def watching(run_dir: Path) -> Iterator[Watching]:
    with Watching(run_dir, port=0, every_s=0.2) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Watching, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={"Host": f"{host}:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def test_gives_the_page_and_its_files_and_nothing_else(watching: Watching, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (watching.folder / "lora").mkdir()
    (watching.folder / "lora" / "weights.safetensors").write_text("x")
    before = {path: path.stat().st_mtime_ns for path in watching.folder.rglob("*")}
    status, text = ask(watching, "/")
    assert status == 200 and "10 of 40" in text
    for path in ("/config.yaml", "/samples/000000_0.png?x=1", "/state"):
        assert ask(watching, path)[0] == 200, path
    for path in ("/../secret.json", "/lora/weights.safetensors", "/samples/", "/nothing.png"):
        assert ask(watching, path)[0] == 404, path
    assert ask(watching, "/", host="elsewhere.example")[0] == 403
    assert watching.server_address[0] == "127.0.0.1"
    after = {path: path.stat().st_mtime_ns for path in watching.folder.rglob("*")}
    assert after == before, "watching writes nothing"


def test_state_changes_with_the_run(run_dir: Path) -> None:
    seen = [state(run_dir)]
    assert state(run_dir) == seen[0]
    metrics.write(run_dir / "metrics.jsonl", {"iteration": 11})
    seen.append(state(run_dir))
    (run_dir / "evaluation").mkdir()
    (run_dir / "evaluation" / "results.json").write_text("{}")
    seen.append(state(run_dir))
    (run_dir / "samples" / "000020.png").write_bytes(b"")
    seen.append(state(run_dir))
    assert len({*seen}) == 4


@pytest.mark.browser
def test_the_open_page_follows_the_run(browser: Browser, watching: Watching) -> None:
    page = browser.page(watching.address)
    assert "10 of 40" in page("document.querySelector('.facts').innerText")
    row = {"iteration": 11, "images_seen": 2816, "reward/mean": -2.5}
    metrics.write(watching.folder / "metrics.jsonl", row)
    page.wait("document.querySelector('.facts')?.innerText.includes('11 of 40')")
    assert page.complaints == []
    assert {
        url for url in page.requests if not url.startswith((watching.address, "data:"))
    } == set()
    page.close()


def test_report_writes_the_page_without_a_model(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpo.building.build.policy", lambda *_: pytest.fail("a model is built"))
    assert main(["report", str(run_dir)]) == 0
    assert Path(capsys.readouterr().out.strip()) == run_dir / "index.html"
    assert "10 of 40" in (run_dir / "index.html").read_text()


def test_report_of_an_evaluation_that_is_no_run(tmp_path: Path) -> None:
    """What --out of an evaluation leaves: no config.yaml, no metrics."""
    (tmp_path / "evaluation").mkdir()
    text = '{"columns": ["a", "b"], "sets": {}, "versions": {}, "config": {"prompts": '
    text += '{"name": "animals"}, "rewards": [], "sampler": {}, "model": {"pretrained": "x"}}}'
    (tmp_path / "evaluation" / "results.json").write_text(text)
    write_json_lines(tmp_path / "evaluation" / "samples.jsonl", [])
    assert main(["report", str(tmp_path)]) == 0

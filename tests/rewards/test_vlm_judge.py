"""The judge behind a server: right scores from right answers, and from nothing else any score at
all."""

import base64
import io
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import call, done, saved, smoke
from judge_server import Judge, Reply, choice
from PIL import Image
from torch import Tensor

from ddpo import config, rewards
from ddpo.errors import UserError
from ddpo.images import from_pil, to_pil
from ddpo.records import metrics


@pytest.fixture
def serve() -> Iterator[Callable[..., Judge]]:
    servers: list[Judge] = []

    def start(answer: Callable[[str, int, dict[str, Any]], Reply]) -> Judge:
        servers.append(Judge(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def build(url: str, **params: Any) -> rewards.Reward:
    return rewards.build(
        "vlm_judge", params={"base_url": url, "timeout_s": 20, "backoff_s": 0.01, **params}
    )


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def score(reward: rewards.Reward, *prompts: str) -> list[float]:
    return reward(pictures(len(prompts)), prompts, [{}] * len(prompts)).tolist()


def test_what_is_sent(serve: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture itself, the question, and no token of the Hub's unless it is asked for."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    judge = serve(lambda *_: (200, choice(chances={"Yes": 0.6, "No": 0.4})))
    assert score(build(judge.url, model="some/vlm"), "a fox {x}") == pytest.approx([0.6])
    (sent,) = judge.requests
    assert sent["model"] == "some/vlm" and sent["temperature"] == 0
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)
    image, text = sent["messages"][0]["content"]
    assert text["text"] == "Does this figure show 'a fox {x}'? Please answer yes or no."
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert torch.equal(from_pil([shown]), from_pil(to_pil(pictures(1))))
    assert "hf_secret" not in str(judge.headers)

    score(build(judge.url, api_key_variable="JUDGE_KEY", jpeg_quality=95), "a fox")
    assert judge.headers[-1]["authorization"] == "Bearer sesame"
    url = judge.requests[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert (
        url.startswith("data:image/jpeg;base64,")
        and base64.b64decode(url.split(",")[1])[:2] == b"\xff\xd8"
    )


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ({"Yes": 0.7, "No": 0.2, "Maybe": 0.1}, 0.7 / 0.9),
        ({"No": 0.5, " yes": 0.1, "YES": 0.2, "no": 0.1, " No": 0.05, "Yes": 0.05}, 0.35),
        ({"No": 0.9, "I": 0.09, "The": 0.001}, 0.0),  # yes has at most 0.001
        ({"Yes": 0.999}, 1.0),  # all else has at most 0.001
        ({"No": 0.6}, None),  # the server lists one token: yes may have 0.4
        ({"No": 0.5, "I": 0.3, "The": 0.1}, None),  # yes may have 0.1
        ({"The": 0.6, "A": 0.3, "This": 0.1}, None),
        ({"Yesterday": 0.6, "Not": 0.4}, None),
        ({"Yes": 0.9, "No": 0.8}, None),  # no probabilities
    ],
)
def test_yes_from_log_probabilities(
    serve: Callable[..., Judge], chances: dict[str, float], expected: float | None
) -> None:
    judge = serve(lambda *_: (200, choice("Yes", chances)))
    (found,) = score(build(judge.url), "a fox")
    assert math.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-6)
    assert len(judge.requests) == 1, "the same question would get the same answer"


AXES = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


@pytest.mark.parametrize(
    ("judge", "text", "expected"),
    [
        ("yes_no", "Yes", 1.0),
        ("yes_no", " no.", 0.0),
        ("yes_no", "Yes and no", None),
        ("yes_no", "", None),
        ("yes_no", None, None),
        ("yes_no", "5", None),
        ("rubric", "3", 0.5),
        ("rubric", " 4.5\n", 0.875),
        ("rubric", "**Score: 2/5**", 0.25),
        ("rubric", "5 out of 5.", 1.0),
        ("rubric", "1", 0.0),
        ("rubric", "6", None),
        ("rubric", "0.9", None),
        ("rubric", "-4", None),
        ("rubric", "4/10", None),
        ("rubric", "3 of the 4 cats are there: 2", None),
        ("rubric", "four", None),
        ("rubric", "4-5", None),
        ("rubric", "1,5", None),
        ("rubric", "NaN", None),
        ("rubric", "4e0", None),
        ("unified_reward", AXES.format("2.4036", "3", "5.0"), ((2.4036 + 3 + 5) / 3 - 1) / 4),
        ("unified_reward", AXES.format(2, 3, 5.5), None),
        ("unified_reward", AXES.format(2, 3, "X"), None),
        ("unified_reward", AXES.format(2, 3, "4/10"), None),
        ("unified_reward", AXES.format(2, 3, ""), None),
        ("unified_reward", AXES.format(2, 3, 4) + "\nStyle Score (1-5): 1", None),
    ],
)
def test_numbers_from_text(
    serve: Callable[..., Judge], judge: str, text: str | None, expected: float | None
) -> None:
    server = serve(lambda *_: (200, choice(text)))
    (found,) = score(build(server.url, judge=judge), "a fox")
    assert math.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-6)


def test_the_scale_and_the_question(serve: Callable[..., Judge]) -> None:
    judge = serve(lambda *_: (200, choice("7")))
    assert score(build(judge.url, judge="rubric", low=0, high=10), "a fox") == pytest.approx([0.7])
    assert "from 0 (not at all) to 10 (perfectly)" in next(iter(judge.seen))
    own = build(judge.url, judge="rubric", high=8, question="{prompt}, {low} to {high}?")
    assert score(own, "a fox") == pytest.approx([6 / 7])
    assert judge.seen["a fox, 1 to 8?"] == 1
    cut = serve(lambda *_: (200, choice("7", finish_reason="length")))
    assert math.isnan(*score(build(cut.url, judge="rubric", high=10), "a fox"))


def wrong(question: str, times: int, request: dict[str, Any]) -> Reply:
    """A fault for each prompt; a score would be 0.9."""
    good = choice(chances={"Yes": 0.9, "No": 0.1})
    fault = question.split("'")[1]
    if fault in ("slow", "late"):
        time.sleep(3 if fault == "slow" or times == 1 else 0)
    faults: dict[str, Reply] = {
        "error 500": (500, {"error": "out of memory"}),
        "busy": (503, b"busy"),
        "limit": (429, good),
        "garbage": (200, b"<html>502</html>"),
        "half": (200, json.dumps(good).encode()[:-9]),
        "empty": (200, b""),
        "bytes": (200, b"\xff\xfe\x00"),
        "schema": (200, {"answer": "Yes"}),
        "list": (200, [1]),
        "nothing": (200, None),
        "no choice": (200, {**good, "choices": []}),
        "text": (200, {**good, "choices": "Yes"}),
        "no tokens": (200, choice(logprobs={"content": []})),
        "no list": (200, choice(logprobs={"content": [{"token": "Yes", "logprob": -0.1}]})),
        "strings": (
            200,
            choice(logprobs={"content": [{"top_logprobs": [{"token": "A", "logprob": "0"}]}]}),
        ),
        "error as answer": (200, {"object": "error", "message": "no such model", "code": 404}),
        "wrong key": (401, {"error": "key"}),
        "not found": (404, good),
        "twice": (200, good) if times > 2 else (500, b""),
    }
    return faults.get(fault, (200, good))


FOREVER = (
    "slow",
    "error 500",
    "busy",
    "limit",
    "garbage",
    "half",
    "empty",
    "bytes",
    "schema",
    "list",
    "nothing",
    "no choice",
    "text",
    "no tokens",
    "no list",
    "strings",
    "error as answer",
)
FINAL = ("wrong key", "not found")


def test_no_fault_makes_a_score(
    serve: Callable[..., Judge], caplog: pytest.LogCaptureFixture
) -> None:
    """All at once: each fault costs its own image its value, after all retries, and nobody
    else's."""
    judge = serve(wrong)
    with caplog.at_level(logging.WARNING, "ddpo"):
        found = score(
            build(judge.url, retries=2, timeout_s=1.5),
            *FOREVER,
            *FINAL,
            "late",
            "a fox",
            "",
            "twice",
        )
    lost = len(FOREVER) + len(FINAL)
    assert [math.isnan(value) for value in found] == [True] * lost + [False, False, True, False]
    assert [found[i] for i in (lost, lost + 1, lost + 3)] == pytest.approx([0.9] * 3)
    counts = {question.split("'")[1]: count for question, count in judge.seen.items()}
    wanted = {
        **dict.fromkeys(FOREVER, 3),
        **dict.fromkeys(FINAL, 1),
        "late": 2,
        "a fox": 1,
        "twice": 3,
    }
    assert counts == wanted, "the empty prompt is not asked about"
    assert f"no value for {lost} of {lost + 3} images" in caplog.text


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = (
            f"http://127.0.0.1:{free.getsockname()[1]}/v1"  # bound, but it does not listen: refused
        )
        started = time.perf_counter()
        with caplog.at_level(logging.WARNING, "ddpo"):
            assert all(
                map(math.isnan, score(build(url, retries=3, backoff_s=0.1), "a fox", "a cat"))
            )
    assert "ConnectError" in caplog.text and "2 of 2" in caplog.text
    assert 0.7 <= time.perf_counter() - started < 5, "0.1 + 0.2 + 0.4 s of waiting"


def test_concurrency_and_order(serve: Callable[..., Judge]) -> None:
    """Never more at once than asked for, over two threads too; each image gets its own answer."""

    def answer(question: str, times: int, request: dict[str, Any]) -> Reply:
        number = int(question.split("'")[1])
        time.sleep(0.02 * (number % 4))
        return 200, choice(str(number / 10))

    judge = serve(answer)
    reward = build(judge.url, judge="rubric", low=0, concurrency=3, timeout_s=5)
    found: dict[int, list[float]] = {}

    def work(first: int) -> None:
        found[first] = score(reward, *map(str, range(first, first + 12)))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] + found[12] == pytest.approx([number / 50 for number in range(24)])
    assert judge.busiest == 3


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"base_url": "localhost:8000"}, "'localhost:8000' is no address"),
        ({"api_key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"low": 5.0, "high": 1.0}, "5 is not below high, 1"),
        ({"concurrency": 0}, r"params\.concurrency: must be at least 1, got 0$"),
        ({"retries": -1}, r"params\.retries: must be at least 0, got -1$"),
        ({"timeout_s": 0}, r"params\.timeout_s: must be at least 0.001 and at most 86400, got 0$"),
        ({"timeout_s": math.inf}, r"params\.timeout_s: must be .* finite, got inf$"),
        ({"backoff_s": -1}, r"params\.backoff_s: must be at least 0, got -1$"),
        ({"backoff_s": math.nan}, r"params\.backoff_s: must be at least 0 and finite, got nan$"),
        ({"jpeg_quality": 0}, r"params\.jpeg_quality: must be at least 1 and at most 100, got 0$"),
        (
            {"jpeg_quality": 101},
            r"params\.jpeg_quality: must be at least 1 and at most 100, got 101$",
        ),
    ],
)
def test_mistakes(params: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rewards.build("vlm_judge", params=params_of("vlm_judge", params))


def params_of(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """As a configuration reads them."""
    return config.load({"rewards": [{"name": name, "params": params}]}).rewards[0].params


def test_a_run_with_a_bad_judge(
    serve: Callable[..., Judge], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It survives a judge that fails now and then, stops when it fails altogether, and goes on from
    there."""
    works, each = threading.Event(), 8

    def answer(question: str, times: int, request: dict[str, Any]) -> Reply:
        if len(judge.requests) > each and not works.is_set():
            return 500, b""
        # of the two samples of a prompt, one gets no score
        return 200, choice("4" if times == 1 else "9")

    judge = serve(answer)
    params = f"base_url: '{judge.url}', judge: rubric, retries: 1, backoff_s: 0.01, timeout_s: 5"
    flags = ["--rewards", f"[{{name: vlm_judge, params: {{{params}}}}}]"]
    flags += [
        "--trainer.iterations",
        "2",
        "--checkpoint.every",
        "1",
        "--evaluation.prompts",
        "null",
    ]
    run = tmp_path / "run"
    code, line = call(capsys, *smoke(run, *flags))
    assert code == 3 and f"{each} of {each} images got no value" in line and "--resume" in line, (
        line
    )
    assert len(judge.requests) == each + 2 * each, (
        "each of the second iteration was asked for twice"
    )
    assert done(run) == [1] and saved(run) == ["000001"]

    works.set()
    judge.seen.clear()
    assert call(capsys, "--resume", str(run)) == (0, "")
    rows = metrics.read(run / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert row["reward/missing"] == each / 2 and row["reward/vlm_judge"] == pytest.approx(0.75)

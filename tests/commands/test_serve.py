"""`ddpo serve` and the reward `remote`: the same scores as in process, and never a wrong one."""

import base64
import http.client
import io
import json
import logging
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from zoo_serve import serving

from ddpo import config, rewards
from ddpo.commands import frame, serve
from ddpo.errors import UserError
from ddpo.rewards import Reward
from ddpo.scoring import conformance
from ddpo.scoring import server as server_module

EVERY = range(6)


def bytes_of(count: int, size: tuple[int, int] = (24, 40), seed: int = 0) -> Tensor:
    """Noise whose values are multiples of 1/255, so that PNG loses nothing."""
    noise = torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(seed))
    return noise.float() / 255


def picky(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Depends on every pixel's place, on the prompt and on the metadata; says nothing of
    "nothing"."""
    weights = torch.linspace(-1, 1, images[0].numel()).view(images.shape[1:])
    values = (images * weights).sum((1, 2, 3)) + torch.tensor(
        [float(row.get("n", 0)) for row in metadata]
    )
    quiet = torch.tensor([text == "nothing" for text in prompts])
    loud = torch.tensor([text == "much" for text in prompts])
    return (
        (values + torch.tensor([len(text) for text in prompts]))
        .masked_fill(quiet, torch.nan)
        .masked_fill(loud, torch.inf)
    )


class Slow:
    """Notes how many threads were in it at once."""

    def __init__(self) -> None:
        self.inside, self.most = 0, 0

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.02)
        self.inside -= 1
        return picky(images, prompts, metadata)


def moody(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
    if prompts[0] == "raise":
        raise ZeroDivisionError("of \ud800\nno use")
    if prompts[0] == "exit":
        raise SystemExit("bye")
    return picky(images, prompts, metadata) if prompts[0] != "one" else images.mean()


def client(url: str, **options: Any) -> Reward:
    return rewards.build("remote", 1.0, {"url": url, "retries": 0, **options})


def ask(url: str, body: Any, path: str = "/score", method: str = "POST") -> tuple[int, Any]:
    """The status and the answer to a body, which is JSON unless it is bytes."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def png(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> str:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def bomb(side: int) -> str:
    """A PNG of some hundred bytes that says it is this large."""
    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(packed)).decode()


def request(**changes: Any) -> dict[str, Any]:
    found = {"images": [png()] * 2, "prompts": ["a", "b"], "metadata": [{}, {}], **changes}
    return {key: value for key, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Reward("moody", 1.0, moody, "v1"), most_bytes=100_000) as found:
        yield found


def test_remote_is_in_process() -> None:
    """Scores to the last bit, whatever the requests' sizes, with text that JSON escapes; NaN stays
    NaN."""
    prompts = [
        "a fox",
        'a "quoted" \\ one',
        "nothing",
        "ein Vögelchen 🐦",
        "much",
        "line\nbreak",
        "x",
    ]
    metadata = [{"n": 0.1 * i, "word": '"}]', "list": [1, None]} for i in range(7)]
    images = bytes_of(7)
    expected = picky(images, prompts, metadata)
    expected[4] = torch.nan  # JSON has no infinity; it was no value before
    with serving(Reward("picky", 1.0, picky, "v1")) as url:
        for size in (1, 3, 7, 99):
            found = client(url, batch_size=size)(images, prompts, metadata)
            assert found.view(torch.int32).tolist() == expected.view(torch.int32).tolist()
        # any other value goes to the nearest of 256
        found = client(url)(images + 0.4 / 255, prompts, metadata)
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)
        assert client(url)(torch.zeros(0, 3, 8, 8), [], []).shape == (0,)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64)])
def test_our_png_files_are_read_by_pillow(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(import_module("ddpo.rewards._png").png(pixels))) as picture:
        assert picture.mode == "RGB" and np.array_equal(np.array(picture), pixels)


def test_health(url: str) -> None:
    status, found = ask(url, b"", "/health", "GET")
    assert status == 200
    assert (found["reward"], found["version"], found["status"]) == ("moody", "v1", "ok")


def test_the_version_names_the_source_and_the_server(url: str) -> None:
    """So that a run's provenance and a cache's keys tell two served rewards apart."""
    with serving(Reward("moody", 1.0, moody, "v2")) as other:
        one, two = (client(each).version for each in (url, other))
    assert one.endswith("-v1") and two.endswith("-v2") and one[:-1] == two[:-1]


@pytest.mark.parametrize(
    ("option", "value", "range_"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", -1, "at least 1"),
        ("retries", -1, "at least 0"),
        ("timeout_s", 0, "at least 0.001 and at most 86400"),
        ("timeout_s", float("nan"), "at least 0.001 and at most 86400 and finite"),
        ("timeout_s", float("inf"), "at least 0.001 and at most 86400 and finite"),
    ],
)
def test_options_out_of_range(option: str, value: float, range_: str) -> None:
    """Before any server is asked."""
    with pytest.raises(
        UserError, match=rf"^rewards\.0\.params\.{option}: must be {range_}, got {value}$"
    ):
        config.load({"rewards": [{"name": "remote", "params": {option: value}}]})


def test_a_reward_that_compares_gets_its_group_whole() -> None:
    def share(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
        return images.mean((1, 2, 3)) / images.mean()

    share.groupwise = True  # pyright: ignore[reportFunctionMemberAccess]
    images = bytes_of(6)
    with serving(Reward("share", 1.0, share, "v1")) as url:
        reward = client(url, batch_size=2)
        assert rewards.groupwise(reward.score)
        assert reward(images, ["a"] * 6, [{}] * 6).equal(share(images, [], []))
        with pytest.raises(
            UserError, match="a value depends on the other images, so that it cannot be cached"
        ):
            rewards.build("remote", 1.0, {"url": url}, cache="nowhere")


def test_a_group_that_does_not_go_into_a_request_is_refused(scripted: Any) -> None:
    """Cut in two, its images would be compared with other ones than those of their group."""
    url, kind = scripted(
        (200, {"scores": [1.0] * 8, "version": "v1"}), health={**HEALTH, "groupwise": True}
    )
    reward = client(url)
    assert reward(bytes_of(8), ["a"] * 8, [{}] * 8).tolist() == [1.0] * 8 and kind.asked == 1
    with pytest.raises(
        UserError, match=f"^remote: 16 images in a group, {url} takes 8 a request; lower"
    ):
        reward(bytes_of(16), ["a"] * 16, [{}] * 16)
    assert kind.asked == 1


DAMAGED = base64.b64encode(base64.b64decode(png(size=(40, 40)))[:60]).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0 not a PNG").decode()
WRONG: list[tuple[Any, int, str]] = [
    (b"", 400, "not JSON"),
    (b"\x80\x04}", 400, "not JSON"),  # a pickle
    (b"[" * 90_000, 400, "not JSON"),
    (b'{"images": ["', 400, "not JSON"),
    ([1], 422, "not a JSON object"),
    (request(imgs=[]), 422, "imgs: no such key; did you mean images?"),
    (request(metadata=None), 422, "metadata: needs a list of objects"),
    (request(images="x"), 422, "images: needs a list of PNG files in base64"),
    (request(images=[1, 2]), 422, "images: needs a list of PNG files in base64"),
    (request(prompts=["a", None]), 422, "prompts: needs a list of texts"),
    (request(prompts=["a"]), 422, "prompts: 1 for 2 images"),
    (request(metadata=[{}, {}, {}]), 422, "metadata: 3 for 2 images"),
    (request(images=[], prompts=[], metadata=[]), 422, "images: 0; send 1 to 256"),
    (
        request(images=[""] * 257, prompts=["a"] * 257, metadata=[{}] * 257),
        422,
        "images: 257; send 1 to 256",
    ),
    (request(images=[png(), "%%%"]), 422, "images.1: not a PNG file in base64"),
    (request(images=[png(), png() + "é"]), 422, "images.1: not a PNG file in base64"),
    (request(images=[JPEG, JPEG]), 422, "images.0: not a PNG file in base64"),
    (request(images=[DAMAGED, DAMAGED]), 422, "images.0: "),
    (request(images=[png("RGBA"), png()]), 422, "images.0: of mode RGBA; send RGB"),
    (request(images=[png("I;16"), png()]), 422, "images.0: of mode I;16; send RGB"),
    (
        request(images=[png(), png(size=(8, 9))]),
        422,
        "images.1: (8, 9), the first (8, 8); send one size",
    ),
    (request(images=[bomb(150)] * 2), 413, "images: over 100,000 bytes unpacked"),
    (
        request(images=[bomb(20_000)] * 2),
        422,
        "images.0: not a PNG file in base64 (DecompressionBomb",
    ),
    (request(prompts=["a" * 100_000, "b"]), 413, "over 100,000 bytes; send fewer images"),
    (request(prompts=["raise", "b"]), 500, "reward moody raised ZeroDivisionError: of"),
    (request(prompts=["exit", "b"]), 500, "bye"),
    (request(prompts=["one", "b"]), 500, "reward moody returned shape () for 2 images"),
]


@pytest.mark.parametrize(
    ("body", "status", "line"), WRONG, ids=[f"{w[1]}-{w[2][:30]}" for w in WRONG]
)
def test_a_wrong_request_gets_one_line_and_leaves_it_serving(
    body: Any, status: int, line: str, url: str
) -> None:
    code, found = ask(url, body)
    assert code == status and line in found["detail"] and "\n" not in found["detail"]
    code, found = ask(url, request())
    assert code == 200 and found["scores"] == [1.0, 1.0]


def test_an_endless_body_is_refused_before_it_is_read(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its header says, and as soon as it is known where there is none; nothing waits for
    the rest."""
    monkeypatch.setattr(server_module, "LINGER_S", 0.1)
    host, port = url.removeprefix("http://").split(":")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for header, sent in (
        (b"Content-Length: 99000000000", b"{"),
        (b"Transfer-Encoding: chunked", 3 * chunk),
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n" + sent)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    # and one that breaks off
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n{")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(url, request())[0] == 200
    assert ask(url, request(), "/pickle")[0] == 404


def test_two_clients_at_once() -> None:
    """Each gets its own scores, and the reward never sees two threads."""
    reward = Slow()
    with serving(Reward("slow", 1.0, reward, "v1")) as url, ThreadPoolExecutor(2) as pool:
        two = [client(url, batch_size=2), client(url, batch_size=1)]

        def score(i: int) -> bool:
            images, texts = bytes_of(4, seed=i), [f"{i}", "a", "bb", "ccc"]
            return two[i % 2](images, texts, [{}] * 4).equal(picky(images, texts, [{}] * 4))

        assert all(pool.map(score, range(8)))
    assert reward.most == 1


HEALTH = {"reward": "toy", "version": "v1", "status": "ok", "max_images": 8}


class Script(BaseHTTPRequestHandler):
    """Answers /score with the next of a list, and whatever its end is from then on."""

    health: Any = HEALTH
    answers: list[tuple[int, Any] | Callable[[BaseHTTPRequestHandler], None]]
    asked = 0

    def do_GET(self) -> None:
        self.say(200, self.health)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = type(self)
        answer = kind.answers[min(kind.asked, len(kind.answers) - 1)]
        kind.asked += 1
        if callable(answer):
            answer(self)
        else:
            self.say(*answer)

    def say(self, status: int, body: Any) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [1.0, 2.0], "version": "v1"}')
    handler.connection.shutdown(socket.SHUT_RDWR)


def too_late(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.5)


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[str, type[Script]]]]:
    servers: list[ThreadingHTTPServer] = []

    def build(*answers: Any, **attributes: Any) -> tuple[str, type[Script]]:
        kind = type("Scripted", (Script,), {"answers": list(answers), **attributes})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), kind))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", kind

    yield build
    for server in servers:
        server.shutdown()
        server.server_close()


GOOD = (200, {"scores": [1.5, None], "version": "v1"})


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("ddpo.rewards._http.time", type("clock", (), {"sleep": pauses.append}))
    return pauses


def named(trouble: Any) -> str:
    """The same in every process."""
    return getattr(trouble, "__name__", str(trouble))


@pytest.mark.parametrize(
    "trouble", [(500, {}), (503, b"<html>"), (429, {}), hang_up, cut_short, too_late], ids=named
)
def test_trouble_that_passes(trouble: Any, scripted: Any, no_pause: list[float]) -> None:
    """Two tries fail, the third is the answer."""
    url, kind = scripted(trouble, trouble, GOOD)
    found = client(url, retries=2, timeout_s=0.2)(bytes_of(2), ["a", "b"], [{}, {}])
    assert found[0] == 1.5 and found[1].isnan() and kind.asked == 3
    assert [pause for pause in no_pause if pause] == [0.5, 1.0]


@pytest.mark.parametrize("trouble", [(500, {}), hang_up, cut_short, too_late], ids=named)
def test_trouble_that_stays(
    trouble: Any, scripted: Any, no_pause: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """No value, after all tries, and a line about it."""
    url, kind = scripted(trouble)
    with caplog.at_level(logging.WARNING):
        found = client(url, retries=2, timeout_s=0.2)(bytes_of(2), ["a", "b"], [{}, {}])
    assert found.isnan().tolist() == [True, True] and kind.asked == 3
    assert re.fullmatch(r"remote: http.*: no value after 3 tries \(.+\)", caplog.messages[-1])


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            (422, {"detail": "images.0: of mode L"}),
            "refused the request: 422 .*images.0: of mode L",
        ),
        ((404, b"<html>\nno\n</html>"), "refused the request: 404 <html> no </html>"),
        ((302, b""), "refused the request: 302"),
        ((200, b"<html>"), "does not answer as `ddpo serve`"),
        ((200, b"\xff\xfe"), "does not answer as `ddpo serve`"),
        ((200, [1.0, 2.0]), "does not answer as `ddpo serve`"),
        ((200, {"version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0], "version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0, 2.0, 3.0], "version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0, "2.0"], "version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0, True], "version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0, [2.0]], "version": "v1"}), "does not answer as `ddpo serve`"),
        ((200, {"scores": [1.0, 2.0], "version": "v2"}), "has version v2, was v1"),
    ],
)
def test_a_wrong_answer_is_never_a_score(answer: Any, line: str, scripted: Any) -> None:
    """One that a repetition would not mend: an error at once, for the run to stop with its state
    saved."""
    url, kind = scripted(answer)
    with pytest.raises(UserError, match=line) as caught:
        client(url, retries=3)(bytes_of(2), ["a", "b"], [{}, {}])
    assert kind.asked == 1 and "\n" not in str(caught.value)


def test_numbers_that_are_none_are_no_value(scripted: Any) -> None:
    url, _ = scripted((200, b'{"scores": [NaN, 1e999], "version": "v1"}'))
    assert client(url)(bytes_of(2), ["a", "b"], [{}, {}]).isfinite().tolist() == [False, False]


@pytest.mark.parametrize(
    "health", [b"hello", {}, {"version": 3, "max_images": 8}, {"version": "v1"}], ids=str
)
def test_what_is_no_server_of_ours_is_refused_when_built(health: Any, scripted: Any) -> None:
    with pytest.raises(UserError, match="does not answer as `ddpo serve`"):
        client(scripted(health=health)[0])


def test_addresses_that_are_none(no_pause: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(UserError, match=r"does not answer \(.*refused.*\); start `ddpo serve`"):
        client(f"http://127.0.0.1:{free}", retries=1)
    for bad in ("127.0.0.1:8000", "file:///etc/passwd", "", "http://", "http://[::1"):
        with pytest.raises(
            UserError, match=r"remote\.url: .* is not an address as http://127\.0\.0\.1:8000"
        ):
            client(bad)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--reward", "jpeg_compresibility"], "did you mean jpeg_compressibility?"),
        (
            ["--reward", "jpeg_compressibility", "--params", '{"qualty": 3}'],
            "did you mean quality?",
        ),
        (["--reward", "jpeg_compressibility", "--params", "{"], "is not JSON"),
        (["--reward", "jpeg_compressibility", "--port", "99999"], "--port 99999: "),
        (["--reward", "jpeg_compressibility", "--host", "999.1.1.1"], "--host 999.1.1.1 "),
        ([], "--reward"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.run(serve.main, words) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.splitlines()) == 1


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert frame.run(serve.main, ["--reward", "jpeg_compressibility"]) == 2
    assert "it comes with `pip install 'ddpo[server]'`" in capsys.readouterr().err


def test_the_command_serves_and_stops() -> None:
    """From its first line to SIGTERM; a second server on the port is refused."""
    words = [
        sys.executable,
        "-m",
        "ddpo",
        "serve",
        "--reward",
        "jpeg_compressibility",
        "--port",
        "0",
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=helpers.one_thread(), **pipes) as process:
        try:
            line = process.stdout.readline()
            shown = (
                r"serving jpeg_compressibility, version \w+, "
                r"on http://127.0.0.1:(\d+) until Ctrl\+C\n"
            )
            found = re.fullmatch(shown, line)
            assert found, line
            case = conformance.Case(client(f"http://127.0.0.1:{found[1]}").score)
            here = conformance.Case(rewards.build("jpeg_compressibility").score)
            assert case.values(EVERY).equal(here.values(EVERY))
            with pytest.raises(UserError, match=f"--port {found[1]}: .*take another"):
                serve.main(["--reward", "jpeg_compressibility", "--port", found[1]])
            process.terminate()
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (0, "", "")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_only_loopback_goes_without_a_warning(
    host: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl+C ends it without a word."""
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    serve.main(["--reward", "jpeg_compressibility", "--port", "0", "--host", host])
    assert ["is not loopback" in line for line in caplog.messages] == [True] * warned


def test_the_default_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[socket.socket] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: bound.extend(sockets))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    serve.main(["--reward", "jpeg_compressibility", "--port", "0"])
    assert bound[0].getsockname()[0] == "127.0.0.1"
    bound[0].close()

"""For tests: an OpenAI-compatible server on this machine that answers, or fails, as it is told."""

import json
import math
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""An HTTP status, and an object (sent as JSON) or bytes (sent as they are)."""


class Judge(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions with
    `answer(question, how many times it came, request)`."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, int, dict[str, Any]], Reply]) -> None:
        self.answer, self.seen = answer, Counter[str]()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.busy, self.busiest, self.lock = 0, 0, threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no fault here."""


class Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        judge = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = request["messages"][0]["content"][1]["text"]
        with judge.lock:
            judge.seen[question] += 1
            judge.requests.append(request)
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            judge.busy += 1
            judge.busiest = max(judge.busiest, judge.busy)
        try:
            status, body = judge.answer(question, judge.seen[question], request)
        finally:
            with judge.lock:
                judge.busy -= 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def choice(
    text: Any = "Yes", chances: dict[str, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """What an OpenAI-compatible server sends: `text`, and the first token's likeliest
    alternatives."""
    answer: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    if chances is not None:
        listed = [
            {"token": token, "logprob": math.log(p), "bytes": None} for token, p in chances.items()
        ]
        answer["logprobs"] = {
            "content": [{"token": text, "logprob": listed[0]["logprob"], "top_logprobs": listed}]
        }
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": {},
        "choices": [answer],
    }
    answer.update(changes)
    return body

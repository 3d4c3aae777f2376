"""A server of one run's page on the loopback address, renewed as the folder changes.

The page is made anew for each request, and nothing is written.
"""

import hashlib
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ddpo.evaluation import page

HOST = "127.0.0.1"

SUFFIXES = (".png", ".webp", ".jpg", ".fasta", ".json", ".jsonl", ".yaml", ".html", ".csv")
"""Files of a run that a page shows or links; weights are not given away."""

RENEW = """
<script>
// The page asks whether the folder has changed, and is loaded again where it stands.
{{
  const known = '{state}';
  setInterval(async () => {{
    if (document.hidden || document.querySelector('dialog[open]')) return;
    const answer = await fetch('state', {{ cache: 'no-store' }}).catch(() => null);
    if (answer && answer.ok && await answer.text() !== known) location.reload();
  }}, {every_ms});
}}
</script>
"""


class Watching(ThreadingHTTPServer):
    """The server; `address` is where a browser finds it."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, every_s: float) -> None:
        """Raises OSError where the port is taken."""
        self.folder, self.every_s = folder, every_s
        super().__init__((HOST, port), partial(_Handler, directory=str(folder)))

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


class _Handler(SimpleHTTPRequestHandler):
    """`/` is the page, `/state` what tells that it is another one by now, the rest files."""

    server: Watching  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        if not self._asked_here():
            self.send_error(HTTPStatus.FORBIDDEN, "ask for 127.0.0.1 or localhost")
        elif place in ("/", "/index.html"):
            try:
                self._say(self._page(), "text/html; charset=utf-8")
            except (FileNotFoundError, ValueError):  # a file is just being replaced
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "being written; load it again")
        elif place == "/state":
            self._say(state(self.server.folder), "text/plain")
        elif place.endswith(SUFFIXES):
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a line for every picture helps nobody."""

    def _asked_here(self) -> bool:
        """Whether the browser meant this machine; other names that lead here are a trick."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return host in (HOST, "localhost")

    def _page(self) -> str:
        known = state(self.server.folder)  # before the page: what changes meanwhile is seen again
        live = RENEW.format(state=known, every_ms=round(1000 * self.server.every_s))
        return page.html(self.server.folder, live)

    def _say(self, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


def state(folder: Path) -> str:
    """A word that is another one once the folder has something new for the page."""
    evaluation, samples = folder / "evaluation", folder / "samples"
    logs = [folder / "metrics.jsonl", folder / "evaluations.jsonl"]
    files = [*logs, evaluation / "results.json", evaluation / "samples.jsonl"]
    found = []
    for path in [*files, samples]:
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, about.st_mtime_ns, about.st_size))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

"""Servers of one reward, which take requests in turn."""

import logging
from collections.abc import Sequence
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from ddpo.rewards import UserError

from ._http import ask

log = logging.getLogger("ddpo")

STRANGER = "remote: {} does not answer as `ddpo serve` of this version does"


class Servers:
    """`ddpo serve` of one reward at several addresses.

    A server that does not answer is left out as long as another one does.

    health  what they say of themselves: the reward's version, how many images a request may have

    Raises UserError for what is no address, for an address that stands twice, where none answers,
    and where their rewards differ.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float, retries: int) -> None:
        self.urls, self.timeout_s, self.retries = (
            [_address(url) for url in urls],
            timeout_s,
            retries,
        )
        if not urls or len(set(self.urls)) < len(urls):
            raise UserError(f"remote.url: {list(urls)} names no server, or one twice")
        self._lock, self._turn, self._silent = Lock(), 0, set[str]()
        found = {url: health for url in self.urls if (health := self._health(url))}
        if len({health["version"] for health in found.values()}) > 1:
            told = ", ".join(f"{health['version']} at {url}" for url, health in found.items())
            raise UserError(f"remote.url: the servers have different rewards ({told})")
        least = min(health["max_images"] for health in found.values())
        self.health: dict[str, Any] = {**next(iter(found.values())), "max_images": least}

    def __len__(self) -> int:
        return len(self.urls)

    def __str__(self) -> str:
        return ", ".join(self.urls)

    def ask(self, path: str, body: bytes) -> tuple[str, dict[str, Any]]:
        """A server, and what it answers.

        Raises ConnectionError, in one line, where none answers; from then on all are asked again.
        """
        tried, reason = set[str](), ""
        while (url := self._next(tried)) is not None:
            try:
                return url, ask(f"{url}{path}", body, self.timeout_s, self.retries) or {}
            except ConnectionError as error:
                tried.add(url)
                reason = f"{url}: no value after {self.retries + 1} tries ({error})"
                self._leave_out(url, reason)
        with self._lock:
            self._silent.clear()
        raise ConnectionError(reason or f"{self}: no value, none of them answers")

    def _next(self, tried: set[str]) -> str | None:
        """The one whose turn it is, of those that answer and have not been tried."""
        with self._lock:
            left = [url for url in self.urls if url not in self._silent | tried]
            self._turn += 1
            return left[self._turn % len(left)] if left else None

    def _leave_out(self, url: str, reason: str) -> None:
        with self._lock:
            known = url in self._silent
            self._silent.add(url)
            others = len(self._silent) < len(self.urls)
        if others and not known:
            log.warning("remote: %s; it is left out", reason)

    def _health(self, url: str) -> dict[str, Any] | None:
        """What a server says of itself; None where it is silent and another may answer."""
        try:
            health = ask(f"{url}/health", None, self.timeout_s, self.retries) or {}
        except ConnectionError as error:
            self._leave_out(url, f"{url} does not answer ({error})")
            if len(self._silent) == len(self.urls):
                raise UserError(
                    f"remote: {self} does not answer ({error}); start `ddpo serve` there"
                ) from error
            return None
        if not isinstance(health.get("version"), str) or not isinstance(
            health.get("max_images"), int
        ):
            raise UserError(STRANGER.format(url))
        return health


def _address(url: str) -> str:
    try:
        known = urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname
    except ValueError:
        known = False
    if not known:
        raise UserError(f"remote.url: {url!r} is not an address as http://127.0.0.1:8000")
    return url.rstrip("/")

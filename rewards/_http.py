"""JSON from a server that may be slow, down or another than was thought."""

import json
import time
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.request import HTTPErrorProcessor, Request, build_opener

from ddpo.rewards import UserError


def final(status: int) -> bool:
    """Whether this status blames the request: made again, it would be refused again."""
    return status < 500 and status not in (408, 425, 429)


class EveryStatus(HTTPErrorProcessor):
    """Gives every answer back, where urllib raises or follows."""

    http_response = https_response = lambda self, request, response: response


OPENER = build_opener(EveryStatus)


def ask(url: str, body: bytes | None, timeout_s: float, retries: int) -> dict[str, Any] | None:
    """The object that the server answers with; None where it answers with anything else.

    Asks again after 0.5, 1, 2, ... seconds where it is not reached, silent for `timeout_s`, breaks
    off or reports an error of its own. Raises ConnectionError, with the last reason, after all
    retries, and UserError where it refuses the request.
    """
    request, reason = Request(url, body, {"Content-Type": "application/json"}), ""
    for attempt in range(retries + 1):
        time.sleep(2**attempt / 4 if attempt else 0)
        try:
            with OPENER.open(request, timeout=timeout_s) as response:
                status, said = response.status, response.read()
        except (OSError, HTTPException) as error:
            reason = f"{error}" or type(error).__name__
            continue
        if status == 200:
            with suppress(ValueError, RecursionError):
                found = json.loads(said)
                return found if isinstance(found, dict) else None
            return None
        reason = " ".join(f"{status} {said[:500].decode(errors='replace')}".split())
        if final(status):
            raise UserError(f"{url} refused the request: {reason}")
    raise ConnectionError(reason)

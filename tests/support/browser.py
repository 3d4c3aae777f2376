"""Headless Chromium, driven over a pipe by its DevTools protocol: no package, no port.

`Browser.page` opens a page and keeps what it asked for, what it said on the console and its errors.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WAIT_S = 60
"""Seconds for an answer: on a machine that others use, too, a start takes long."""


def find() -> str | None:
    """The program, or that which DDPO_CHROMIUM names; None where there is none."""
    return next(
        filter(None, map(shutil.which, [os.environ.get("DDPO_CHROMIUM", ""), *NAMES])), None
    )


class Browser:
    """One process; `close` ends it."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
        inbox, self._out = os.pipe()
        self._in, outbox = os.pipe()
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",  # tests run as root, and open only pages that they have made
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--user-data-dir={self.profile.name}",
        ]
        # the protocol wants the descriptors 3 and 4
        line = f'exec "$0" "$@" 3<&{inbox} 4>&{outbox}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, program, *flags, "about:blank"],
            pass_fds=(inbox, outbox),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inbox)
        os.close(outbox)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)
        os.close(self._in)
        os.close(self._out)
        self.profile.cleanup()

    def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The protocol's answer to a command. Raises RuntimeError for a refusal."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + WAIT_S
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {WAIT_S} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def page(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """A page, loaded to its end, in a window of that size."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send("Page.navigate", url=url)
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def __call__(self, expression: str) -> Any:
        """The value of an expression. Raises RuntimeError where it throws."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true. Raises TimeoutError."""
        until = time.monotonic() + WAIT_S / 4
        while not self(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def key(self, key: str) -> None:
        """Press and release a key: "f", "Escape", "ArrowRight", "Tab"."""
        codes = {"Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Enter": 13}
        code = codes.get(key, ord(key[0].upper()))
        text = key if len(key) == 1 else {"Enter": "\r"}.get(key, "")
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **down, **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def point(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Move the pointer to a place in an element, which is scrolled into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        self(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        # what has come into view may still move things
        self("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = self(
            f"(box => [box.x, box.y, box.width, box.height])({element}.getBoundingClientRect())"
        )
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        about = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **about)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **about)

    def _events(self, *methods: str) -> list[dict[str, Any]]:
        self("0")  # what came before is there now
        own = [e for e in self.browser.events if e.get("sessionId") == self.session]
        return [e["params"] for e in own if e["method"] in methods]

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for, itself among them."""
        sent = self._events("Network.requestWillBeSent")
        return [event["request"]["url"] for event in sent]

    @property
    def complaints(self) -> list[str]:
        """What stands on the console, errors that nobody caught, and requests that failed.

        Not those that the page itself gave up, for another picture in the same place.
        """
        said = self._events("Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown")
        failed = [
            each for each in self._events("Network.loadingFailed") if not each.get("canceled")
        ]
        return [json.dumps(event) for event in [*said, *failed]]

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the page from top to bottom."""
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            answer = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        else:
            answer = self.send("Page.captureScreenshot")
        file.write_bytes(base64.b64decode(answer["data"]))

    def print(self, file: Path) -> None:
        """A PDF, as a printer gets it."""
        answer = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        file.write_bytes(base64.b64decode(answer["data"]))

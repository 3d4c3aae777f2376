"""One thread a worker, no network, and the shapes annotated in the formulas are checked at every
call."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from browser import Browser, find

from ddpo.plugins import VARIABLE

FORMULAS = [
    "ddpo.samplers",
    "ddpo.advantages",
    "ddpo.training.credit",
    "ddpo.training.selection",
    "ddpo.objectives",
    "ddpo.images",
]

torch.set_num_threads(1)
jaxtyping.install_import_hook(FORMULAS, "beartype.beartype")


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """What a test names in `plugins` is found by its child processes, and by no other test."""
    before = os.environ.get(VARIABLE)
    yield
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before


NO_BROWSER = "no Chromium here (apt install chromium, or name one in DDPO_CHROMIUM)"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium.

    Without one the test is left out, unless DDPO_BROWSER=required, as .ci/run says where it could
    install one.
    """
    program = find()
    if program is None and os.environ.get("DDPO_BROWSER") == "required":
        pytest.fail(NO_BROWSER)
    if program is None:
        pytest.skip(NO_BROWSER)
    running = Browser(program)
    yield running
    running.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that were left out for want of a browser are told, not only counted."""
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(NO_BROWSER in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"left out {count} tests of pages: {NO_BROWSER}", yellow=True)

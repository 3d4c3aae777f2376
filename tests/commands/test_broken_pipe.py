"""`ddpo ... | head`: a reader that goes away ends a command quietly."""

import os
import subprocess
import sys

import pytest

from ddpo.commands import frame


@pytest.mark.parametrize("words", [["list", "metrics"], ["--help"]])
def test_ends_quietly(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ddpo", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (frame.BROKEN_PIPE, "")


def test_another_broken_pipe_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One to a server, say, while our own output is read."""

    def broken(argv: list[str]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert frame.run(broken, []) == 1
    assert "BrokenPipeError" in capsys.readouterr().err

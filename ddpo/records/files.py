"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a path to write a file or a folder to; at the end that takes the place of `target`.

    After an error or a kill, what stood at `target` still stands. What an error leaves is removed;
    what a kill leaves, under a name as .000020.writing, the next `whole` of the same target
    removes. Raises OSError, on a full disk too, whatever library wrote.
    """
    aside = target.with_name(f".{target.stem}.writing{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(aside)
    try:
        yield aside
        for path in [aside, *aside.rglob("*"), target.parent]:
            _sync(path)
        if target.is_dir():
            shutil.rmtree(target)  # a folder cannot be renamed onto another
        os.replace(aside, target)
        _sync(target.parent)
    except BaseException as error:
        remove(aside)
        if isinstance(error, SafetensorError):
            raise OSError(f"{target}: {error}") from error
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """On disk, so that no power cut makes a renamed file empty."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

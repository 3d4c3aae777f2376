"""A cached value is the reward's own for that image, prompt, options, version; what failed is not
kept."""

import math
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo import rewards
from ddpo.errors import UserError
from ddpo.records.cache import Cache
from ddpo.rewards import Reward

SOURCE = """
from ._weights import SCALE
asked = []
def scaled(images, prompts, metadata, *, power: float = 1.0):
    asked.append(len(images))
    values = SCALE * images.mean((1, 2, 3)) ** power + len(prompts[0]) + metadata[0].get("more", 0)
    values[images.amax((1, 2, 3)) == 0] = float("nan")
    return values
def compares(images, prompts, metadata):
    return images.mean((1, 2, 3)) - images.mean()
compares.groupwise = True
def prefers(first, second, prompts, metadata):
    return first.new_full((len(first),), 0.5)
prefers.pairwise = True
"""
IMAGES = torch.linspace(0.1, 0.9, 3 * 12).view(3, 3, 2, 2)


def write(folder: Path, scale: int = 2, source: str = SOURCE) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(source)
    (folder / "_weights.py").write_text(f"SCALE = {scale}\n")
    return f"{folder / 'mine.py'}:scaled"


def built(spec: str, cache: Path | None, **more: Any) -> Reward:
    return rewards.build(spec, cache=None if cache is None else str(cache), **more)


def asked(spec: str) -> list[int]:
    """The images of each call since the last look."""
    calls = rewards.plugins.load("rewards", spec.replace("scaled", "asked"))
    assert isinstance(calls, list)
    found = list(calls)
    calls.clear()
    return found


def scored(
    reward: Reward, images: Tensor = IMAGES, prompt: str = "a fox", **metadata: Any
) -> list[float]:
    rows: list[Mapping[str, Any]] = [metadata] * len(images)
    return reward(images, [prompt] * len(images), rows).tolist()


def test_only_what_is_new_is_computed(tmp_path: Path) -> None:
    spec = write(tmp_path / "a")
    kept, plain = built(spec, tmp_path / "kept"), built(spec, None)
    expected = scored(plain)
    assert scored(kept, IMAGES[:2]) == expected[:2] and asked(spec) == [3, 2]
    assert scored(kept) == expected and asked(spec) == [1]
    assert scored(kept, IMAGES.flip(0)) == expected[::-1] and asked(spec) == []
    again = built(spec, tmp_path / "kept")
    assert scored(again) == expected and asked(spec) == []
    nudged = IMAGES + 1e-4  # the same bytes
    assert scored(again, nudged) == expected and asked(spec) == []


def test_whatever_a_value_depends_on_is_in_its_key(tmp_path: Path) -> None:
    """Each of these is asked of the reward, and once only."""
    spec, kept = write(tmp_path / "a"), tmp_path / "kept"
    changed_helper, changed_file = (
        write(tmp_path / "b", scale=3),
        write(tmp_path / "c", source=SOURCE + "#\n"),
    )
    same = write(tmp_path / "d")
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (spec, {}, {}),
        (spec, {"params": {"power": 2.0}}, {}),
        (spec, {"dtype": torch.bfloat16}, {}),
        (spec, {}, {"prompt": "two foxes"}),
        (spec, {}, {"more": 1}),
        (spec, {}, {"images": IMAGES + 1 / 255}),
        (spec, {}, {"images": IMAGES.view(3, 3, 1, 4)}),  # the same bytes
        (changed_helper, {}, {}),
        (changed_file, {}, {}),
    ]
    for where, how, what in cases:
        for calls in ([3], []):
            assert scored(built(where, kept, **how), **what) == scored(
                built(where, None, **how), **what
            )
            assert asked(where) == [*calls, 3], (where, how, what)
    assert scored(built(same, kept)) == scored(built(spec, None)) and asked(same) == []
    versions = [built(each, None).version for each in (spec, same, changed_helper, changed_file)]
    assert versions[0] == versions[1] and len(set(versions)) == 3


def test_a_helper_that_is_imported_later_is_in_the_version(tmp_path: Path) -> None:
    """As that of `ocr`: inside the function, so that no module of it is there when the reward is
    built."""
    late = SOURCE.replace("from ._weights import SCALE\n", "").replace(
        "    asked.append", "    from ._weights import SCALE\n    asked.append"
    )
    specs = [write(tmp_path / name, scale, late) for name, scale in (("a", 2), ("b", 3), ("c", 2))]
    first = [built(spec, None).version for spec in specs]
    assert first[0] != first[1] and first[0] == first[2] != "unknown"
    scored(built(specs[0], None))
    assert built(specs[0], None).version == first[0]


def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    spec = write(tmp_path / "a")
    images = IMAGES.clone()
    images[1] = 0
    for calls in ([3], [1]):
        values = scored(built(spec, tmp_path / "kept"), images)
        assert [math.isnan(value) for value in values] == [False, True, False] and asked(
            spec
        ) == calls


def put(folder: str, first: int) -> None:
    for i in range(first, first + 20):
        Cache(folder).put({i.to_bytes(4, "big"): i / 8, b"shared": 1.0})


def test_threads_and_processes_share_it(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=put, args=(str(tmp_path), first))
        for first in (0, 20)
    ]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda first: put(str(tmp_path), first), (40, 60, 80, 100)))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    keys = [i.to_bytes(4, "big") for i in range(120)]
    assert Cache(str(tmp_path)).get([*keys, b"nothing"]) == {
        key: i / 8 for i, key in enumerate(keys)
    }


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    spec = write(tmp_path / "a")
    for name in ("compares", "prefers"):
        with pytest.raises(
            UserError, match="depends on the other images, so that it cannot be cached; leave"
        ):
            built(spec.replace("scaled", name), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    reward = built(spec, tmp_path / "kept")
    file = tmp_path / "kept" / "rewards.sqlite"
    file.write_bytes(b"no data base" * 1000)
    words = (
        r"the cache .*rewards\.sqlite cannot be used \(file is not a database\); delete that file"
    )
    for use in (lambda: scored(reward), lambda: built(spec, tmp_path / "kept")):
        with pytest.raises(UserError, match=words):
            use()
    file.unlink()
    assert scored(built(spec, tmp_path / "kept")) == scored(built(spec, None))
    with pytest.raises(
        UserError, match=r"cannot be used \(\[Errno \d+\] (File exists|Not a directory)"
    ):
        built(spec, tmp_path / "a" / "mine.py")

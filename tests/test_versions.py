"""The versions that we name: constraints.txt holds the whole tested set, and pyproject.toml allows
it."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in LINES)
}
LEFT_OUT = re.compile("pip|setuptools|(cuda|nvidia)-.*|triton")
"""As the file says at its head."""


def ours() -> list[Requirement]:
    return [
        Requirement(line)
        for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    ]


def test_the_tested_versions_are_allowed() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in LINES), (
        "one version each, of no local build"
    )
    assert len(PINS) == len(LINES)
    wrong = [
        str(each) for each in ours() if PINS[canonicalize_name(each.name)] not in each.specifier
    ]
    assert not wrong


def test_every_direct_requirement_has_a_lower_bound() -> None:
    """That of a library that is imported; the development tools are the tested ones, or the
    newest."""
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    assert not [
        str(each) for each in wanted if not any(part.operator == ">=" for part in each.specifier)
    ]


def test_what_the_tested_set_requires_is_pinned_too() -> None:
    """Asked of the installed packages that are of the tested version: with LATEST=1 not all are."""
    seen: set[tuple[str, str]] = set()
    todo, missing = [(each, "") for each in ours()], []
    while todo:
        requirement, who = todo.pop()
        name = canonicalize_name(requirement.name)
        if LEFT_OUT.fullmatch(name):
            continue
        if name not in PINS:
            missing.append(f"{name} for {who}")
            continue
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                installed = distribution(name)
            except PackageNotFoundError:
                continue
            if installed.version != PINS[name]:
                continue
            needs = [Requirement(line) for line in installed.requires or ()]
            todo += [
                (n, name) for n in needs if not n.marker or n.marker.evaluate({"extra": extra})
            ]
    assert not missing
    assert len(seen) > 50, "something was looked at"

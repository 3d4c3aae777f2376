"""The shape of the project: who may import whom, and how long things may get."""

import ast
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    ["errors", "files", "ranges", "python_objects"],
    [
        "transitions", "advantages", "stats", "images", "plugins", "metrics", "ranks", "memory", "cache",
        "yaml_text", "launcher",
    ],
    ["objectives", "trajectory", "rewards", "prompts", "grid"],
    ["models"],
    ["rollout", "scoring", "checkpoint"],
    ["terms", "offline", "evaluation", "report", "conformance"],
    ["update"],
    ["trainer"],
    ["parsing"],
    ["config", "tracking"],
    ["build", "runs", "card", "limits"],
    ["finetuning", "judging", "planning", "export"],
    ["command"],
    ["single_reward"],
    [
        "train", "plan", "evaluate", "sample", "compare", "score", "serve", "export_run", "check",
        "catalogue", "__main__",
    ],
]  # fmt: skip
"""From the ground up. A part imports from floors below its own and from inside itself, never sideways."""

HEIGHT = {part: height for height, floor in enumerate(FLOORS) for part in floor}
MAY_PRINT = {*FLOORS[-1], "command"}

PLUGINS = {
    "rewards": {"ddpo.rewards", "ddpo.images"},
    "prompts": {"ddpo.prompts"},
    "emoji": {"ddpo.emoji"},
}
"""The folders at the top whose files are modules of ddpo, and the modules that these may import."""

OURS = sorted((ROOT / "ddpo").rglob("*.py"))
THEIRS = sorted(file for kind in PLUGINS for file in (ROOT / kind).glob("*.py"))


def name_of(file: Path) -> str:
    """ddpo/objectives/prdp.py -> ddpo.objectives.prdp, rewards/jpeg.py -> ddpo.rewards.jpeg."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "ddpo" else ("ddpo", *parts)).removesuffix(".__init__")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(file: Path) -> set[str]:
    """Every module or attribute of ddpo that the file imports, at its top or inside a function."""
    package = name_of(file) if file.stem == "__init__" else name_of(file).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("ddpo.")}


def module_of(name: str, modules: set[str]) -> str | None:
    """The module that the imported name is, or is an attribute of."""
    return name if name in modules else next((m for m in [name.rpartition(".")[0]] if m in modules), None)


@pytest.mark.parametrize("file", OURS, ids=name_of)
def test_imports_go_down(file: Path) -> None:
    part = part_of(name_of(file))
    if part == "__init__":
        return
    assert part in HEIGHT, f"ddpo/{part} stands on no floor: list it in FLOORS"
    others = {part_of(name) for name in imports(file)} - {part}
    upward = sorted(other for other in others if HEIGHT[other] >= HEIGHT[part])
    assert not upward, f"{name_of(file)} imports {upward} from its own floor or from above"


@pytest.mark.parametrize("file", THEIRS, ids=name_of)
def test_plugins_see_only_their_contract(file: Path) -> None:
    allowed = PLUGINS[file.parent.name]
    beyond = {name for name in imports(file) if not any(f"{name}.".startswith(f"{m}.") for m in allowed)}
    assert not beyond, f"{file.relative_to(ROOT)} imports {beyond}; it may import {allowed}"


def test_no_import_cycle() -> None:
    modules = {name_of(file) for file in OURS}
    graph = {
        name_of(file): {module_of(name, modules) for name in imports(file)} - {None, name_of(file)}
        for file in OURS
        if name_of(file) != "ddpo"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_only_commands_print() -> None:
    talkers = {
        name_of(file)
        for file in [*OURS, *THEIRS]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    silent = {name for name in talkers if part_of(name) not in MAY_PRINT and not name.endswith(".pretrain")}
    assert not silent, f"{silent} print; only commands and pretraining may"


def lengths(file: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield f"{name_of(file)}.{node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("file", [*OURS, *THEIRS], ids=name_of)
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, f"{file} is over 400 lines"
    long = {name: length for name, length in lengths(file) if length > 60}
    assert not long, f"over 60 lines: {long}"


OBJECTIVES = [file for file in (ROOT / "ddpo/objectives").glob("*.py") if file.stem != "__init__"]


@pytest.mark.parametrize("file", sorted(OBJECTIVES), ids=name_of)
def test_an_objective_is_a_formula(file: Path) -> None:
    """Short, and of torch alone: nothing of networks, files or flags."""
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    nodes = list(ast.walk(ast.parse(source)))
    modules = {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    beyond = {m for m in modules if m != "ddpo.objectives" and m.split(".")[0] not in {"torch", "jaxtyping"}}
    assert not beyond, f"{file.name} imports {beyond}"


def test_most_files_are_short() -> None:
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in OURS]
    assert statistics.median(lines) < 150

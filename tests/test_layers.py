"""The shape of the project: who may import whom, and how long things may get."""

import ast
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    ("doors", {"__main__": "the command `ddpo`", "train": "", "evaluate": "what launchers start"}),
    ("commands", {"commands": "one file, one command; `frame` is what they share"}),
    ("a run", {"runs": "its life: session, folder, and what is made of it later"}),
    ("before a run", {"planning": "what a run will cost, counted before it starts"}),
    ("from names", {"building": "a configuration to the objects it names"}),
    (
        "the loop",
        {"training": "trainer, updates, what losses are functions of; knows no files and flags"},
    ),
    ("what came of it", {"evaluation": "matched images, statistics, the page and the card"}),
    ("settings", {"config": "sections, reading, checks across sections"}),
    ("for whom", {"tastes": "what a user's taste is, as numbers"}),
    ("in and out", {"rollout": "prompts to trajectories", "scoring": "images to rewards"}),
    ("models", {"models": "one file, one family of models"}),
    (
        "formulas",
        {
            "objectives": "one file, one loss",
            "advantages": "rewards to advantages",
            "samplers": "steps of a sampler and their densities",
        },
    ),
    ("users' contracts", {"rewards": "", "prompts": "what the files of users may import"}),
    ("media", {"media": "what a model makes: how it is shown, guarded, written and read"}),
    (
        "samples",
        {
            "images": "conversions and guards; users' files may import it, too",
            "sequences": "the same of sequences, and FASTA",
        },
    ),
    (
        "ground",
        {
            "records": "files that are whole, or not there",
            "parallel": "several processes as one",
            "plugins": "things that have a name, their options and ranges",
        },
    ),
    ("errors", {"errors": "the mistakes of users, in one line"}),
]
"""From the top down: a part imports from floors below its own and from inside itself, never
sideways."""

HEIGHT = {part: -depth for depth, (_, parts) in enumerate(FLOORS) for part in parts}
MAY_PRINT = {"__main__", "train", "evaluate", "commands"}

PLUGINS = {
    "rewards": {
        "ddpo.rewards",
        "ddpo.images",
        "ddpo.sequences",
        "ddpo.models.dna",
        "ddpo.plugins.ranges",
    },
    "prompts": {"ddpo.prompts"},
}
"""The folders at the top whose files are modules of ddpo, and the modules that these may import."""

OURS = sorted((ROOT / "ddpo").rglob("*.py"))
THEIRS = sorted(file for kind in PLUGINS for file in (ROOT / kind).glob("*.py"))


def table() -> str:
    """The floors as CONTRIBUTING.md shows them: `python tests/test_layers.py` prints them anew."""
    lines = ["| floor | part of `ddpo/` | what it is |", "| --- | --- | --- |"]
    lines += [
        f"| {title} | {part} | {words} |"
        for title, parts in FLOORS
        for part, words in parts.items()
    ]
    return "\n".join(lines) + "\n"


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
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("ddpo.")}


def module_of(name: str, modules: set[str]) -> str | None:
    """The module that the imported name is, or is an attribute of."""
    return (
        name
        if name in modules
        else next((m for m in [name.rpartition(".")[0]] if m in modules), None)
    )


@pytest.mark.parametrize("file", OURS, ids=name_of)
def test_imports_go_down(file: Path) -> None:
    part = part_of(name_of(file))
    if part == "__init__":
        return
    assert part in HEIGHT, f"ddpo/{part} stands on no floor: list it in FLOORS"
    others = {part_of(name) for name in imports(file)} - {part}
    upward = sorted(other for other in others if HEIGHT[other] >= HEIGHT[part])
    assert not upward, f"{name_of(file)} imports {upward} from its own floor or from above"


def test_the_table_in_contributing_is_the_list() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert table() in shown, "put what `python tests/test_layers.py` prints into CONTRIBUTING.md"


def test_every_part_stands_on_a_floor_and_on_the_map() -> None:
    parts = {part_of(name_of(file)) for file in OURS} - {"__init__"}
    assert parts == set(HEIGHT)
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    absent = {part for part in parts if f"{part}/" not in shown and f"{part}.py" not in shown}
    assert not absent, f"the map in README.md lacks {absent}"


def test_no_folder_is_crowded() -> None:
    """At the top only the doors, the contracts of users and errors."""
    folders = {folder: len(list(folder.glob("*.py"))) for folder in {file.parent for file in OURS}}
    assert folders.pop(ROOT / "ddpo") <= 12
    assert not {folder: count for folder, count in folders.items() if count > 14}


@pytest.mark.parametrize("file", THEIRS, ids=name_of)
def test_plugins_see_only_their_contract(file: Path) -> None:
    allowed = PLUGINS[file.parent.name]
    beyond = {
        name for name in imports(file) if not any(f"{name}.".startswith(f"{m}.") for m in allowed)
    }
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
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    silent = {
        name
        for name in talkers
        if part_of(name) not in MAY_PRINT and not name.endswith(".pretrain")
    }
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


OBJECTIVES = list((ROOT / "ddpo/objectives").glob("[a-z]*.py"))


@pytest.mark.parametrize("file", sorted(OBJECTIVES), ids=name_of)
def test_an_objective_is_a_formula(file: Path) -> None:
    """Short, and of torch alone: nothing of networks, files or flags."""
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    nodes = list(ast.walk(ast.parse(source)))
    modules = {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    beyond = {
        m
        for m in modules
        if m != "ddpo.objectives" and m.split(".")[0] not in {"torch", "jaxtyping"}
    }
    assert not beyond, f"{file.name} imports {beyond}"


def test_most_files_are_short() -> None:
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in OURS]
    assert statistics.median(lines) < 150


if __name__ == "__main__":
    print(table())

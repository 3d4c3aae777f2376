"""Find a reward, a prompt set, an objective, a sampler or another plugin by name.

One file is one thing, and its name is the file's: `rewards/jpeg.py` holds the function `jpeg`,
importable as `ddpo.rewards.jpeg` because the module `ddpo/rewards.py` sets its `__path__` to
`folders("rewards")`. A user's folder holds folders of such files (rewards/ prompts/ objectives/ and
so on, each optional); an installed package adds names with entry points of the group `ddpo.rewards`
and so on. Nothing here imports torch.
"""

import ast
import importlib
import os
import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from ddpo.errors import UserError, nearest, refusal
from ddpo.plugins import python_objects

PROMPT_SUFFIXES = (".txt", ".jsonl", ".csv", ".py")
"""What a prompt file may be; `ddpo.prompts` reads them."""

USER_KINDS = ("rewards", "prompts", "objectives", "models", "samplers", "advantages", "tastes")
SUFFIXES = {
    **dict.fromkeys(USER_KINDS, (".py",)),
    "prompts": PROMPT_SUFFIXES,
    "configs": (".yaml",),
}
"""Each kind of thing that has a name, and the files that hold it."""

VARIABLE = "DDPO_PLUGINS"
HERE = Path(__file__).parents[1]


def folders(kind: str) -> list[str]:
    """The folders that hold files of this kind, without repetition: ours first, then the users'."""
    if kind in ("objectives", "models", "samplers", "advantages", "tastes"):
        ours = HERE / kind
    else:
        bundled = HERE / "bundled" / kind  # in a wheel; in a checkout they stand beside ddpo/
        ours = bundled if bundled.is_dir() else HERE.parent / kind
    users = os.environ.get(VARIABLE, "").split(os.pathsep) if kind in USER_KINDS else []
    places = [ours, *(Path(folder, kind) for folder in users if folder)]
    return list(dict.fromkeys(str(folder.resolve()) for folder in places))


def add_folder(folder: str | Path) -> None:
    """Find names in this folder of a user's too, here and (by DDPO_PLUGINS) in child processes.

    Raises UserError when there is no such folder, or it has none of the folders of USER_KINDS.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"plugins: {folder}: no such folder")
    if not any((path / kind).is_dir() for kind in USER_KINDS):
        wanted = f"{', '.join(f'{kind}/' for kind in USER_KINDS)}; give the folder that holds them"
        raise UserError(f"plugins: {folder} has none of the folders {wanted}")
    known = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    if str(path) not in known:
        os.environ[VARIABLE] = os.pathsep.join([*known, str(path)])
    for kind in USER_KINDS:
        if package := sys.modules.get(f"ddpo.{kind}"):
            _extend(package, kind)


def names(kind: str) -> list[str]:
    """The names of this kind, sorted: entry points, and files not beginning with an underscore."""
    return sorted({*(file.stem for file in _files(kind)), *(point.name for point in _points(kind))})


def summaries(kind: str) -> list[tuple[str, str]]:
    """Each name with one line about it: the first docstring line, read without importing anything.

    For a .py file it is the docstring of the function or class of that name, else the module's; for
    a configuration its first comment; for a prompt file the number of lines and the first; for an
    entry point where it points to.
    """
    lines = [(file.stem, _summary(file)) for file in _files(kind)]
    lines += [
        (point.name, f"{point.value}, installed with {_owner(point)}") for point in _points(kind)
    ]
    return sorted(lines)


def find(kind: str, name: str) -> Path | EntryPoint:
    """The file or the entry point of that name.

    Raises UserError when nothing has the name (with the nearest that is known), or when two places
    claim it.
    """
    files = [file for file in _files(kind) if file.stem == name]
    points = [point for point in _points(kind) if point.name == name]
    if len(files) + len(points) > 1:
        places = [*map(str, files), *(f"{point.value} of {_owner(point)}" for point in points)]
        raise UserError(
            f"{kind}: {name} is defined twice, in {' and in '.join(places)}; rename one"
        )
    if not files and not points:
        raise UserError(f"{kind}: nothing is called {name!r}{nearest(name, names(kind))}")
    return [*files, *points][0]


def load(kind: str, spec: str) -> object:
    """What `spec` names: a file, an entry point, `package.module:name` or `path/file.py:name`.

    `path/file.py` alone means the attribute of the file's name. A name whose file is not Python
    (prompts, configs) gives the file's Path; one that stands for an object given from Python gives
    that. Raises UserError when it is not found or cannot be imported.
    """
    if spec.startswith(python_objects.MARK):
        value = python_objects.find(spec)
        if value is None:
            raise UserError(f"{kind}: {python_objects.absent(spec)}")
        return value
    if spec.endswith(".py"):
        spec = f"{spec}:{Path(spec).stem}"
    place, _, attribute = spec.rpartition(":")
    if place.endswith(".py"):
        return _attribute(_module_of_file(kind, Path(place).expanduser()), attribute, place)
    if place:
        return _attribute(place, attribute, place)
    value = find(kind, spec)
    if isinstance(value, EntryPoint):
        return _attribute(value.module, value.attr or spec, f"{value.value} of {_owner(value)}")
    if value.suffix != ".py":
        return value
    _extend(importlib.import_module(f"ddpo.{kind}"), kind)
    return _attribute(f"ddpo.{kind}.{spec}", spec, str(value))


def text_of(file: Path) -> str:
    """The text of a file that a user wrote. Raises UserError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def _files(kind: str) -> list[Path]:
    every = [file for folder in folders(kind) for file in sorted(Path(folder).glob("[!_.]*"))]
    return [file for file in every if file.suffix in SUFFIXES[kind]]


def _points(kind: str) -> list[EntryPoint]:
    return list(_installed(kind, tuple(sys.path)))


@cache
def _installed(kind: str, path: tuple[str, ...]) -> EntryPoints:
    """Those of the packages on this search path; to read them takes 30 ms."""
    return entry_points(group=f"ddpo.{kind}")


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown package"


def _extend(package: ModuleType, kind: str) -> None:
    """Append the folders that `package` does not search yet."""
    package.__path__ = list(dict.fromkeys([*package.__path__, *folders(kind)]))


def _module_of_file(kind: str, file: Path) -> str:
    """A file's import name: its folder becomes a package, so that `from ._x import y` works."""
    if not file.is_file():
        raise UserError(f"{kind}: {file}: no such file")
    folder = str(file.resolve().parent)
    package = f"ddpo_file_{sha256(folder.encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [folder]
    return f"{package}.{file.stem}"


def _attribute(module_name: str, attribute: str, place: str) -> object:
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # a plugin may raise anything; the user gets one line, and --debug the traceback
        message = f"{type(error).__name__}: {refusal(error) or error}"
        raise UserError(f"{place} cannot be imported: {message}") from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        own = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", "") == module_name
        ]
        raise UserError(f"{place} defines no {attribute!r}{nearest(attribute, own)}") from None


def _summary(file: Path) -> str:
    text = text_of(file)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if file.suffix == ".yaml":
        return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
    if file.suffix != ".py":
        return f"{len(lines)} lines, first: {lines[0]}" if lines else "empty"
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return f"cannot be read: {error.msg}, line {error.lineno}"
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    own = [node for node in defined if node.name == file.stem]
    documented = [doc for doc in map(ast.get_docstring, [*own, tree]) if doc]
    return documented[0].splitlines()[0] if documented else ""

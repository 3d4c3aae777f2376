"""What a prompt set is, and where its file is found: `animals` is prompts/animals.jsonl.

A prompt file is .txt (one prompt per line), .jsonl or .csv (`prompt`, and all else as metadata), or
.py (a function of the file's name that returns a list of strings or of such rows). The metadata
goes to the rewards beside the prompt; in a .csv every value is text. A data set of the Hub, or a
folder of its files, is read by the package datasets.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from ddpo import plugins
from ddpo.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Generator, Tensor

# a module with __path__ is a package: prompts/x.py is ddpo.prompts.x
__path__ = plugins.folders("prompts")


@dataclass(frozen=True)
class Prompt:
    """One prompt: the words for the model, and what else is known of it, for the rewards.

    key      what tells prompts apart, and what statistics are kept by: the text, unless another is
             given (as for one caption that is rendered to the taste of two users)
    taste    (K, D) numbers of whom it is rendered for, for a model with layers for them; None: for
             nobody
    weights  of the rewards for this prompt, by their names, times the configuration's; None: 1 each
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    taste: "Tensor | None" = field(default=None, compare=False, repr=False)
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", self.text)


@dataclass(frozen=True)
class Share:
    """A set within a mixture: how often it is drawn, relative to the others, and its prompts.

    numbers  of its prompts in the mixture, in the set's own order
    """

    name: str
    weight: float
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts in a fixed order; a slice of a set is a set.

    whole   how many prompts the set has of which this is a slice; 0: it is the set itself
    shares  the sets that it is a mixture of, in their order; (): it is none
    """

    name: str
    prompts: tuple[Prompt, ...]
    whole: int = field(default=0, kw_only=True)
    shares: tuple[Share, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        return (
            PromptSet(self.name, self.prompts[index], whole=self.whole or len(self))
            if isinstance(index, slice)
            else self.prompts[index]
        )

    def drawn(self, index: int, noise: "Generator") -> Prompt:
        """The prompt as an iteration gets it.

        A set may add what differs from one iteration to the next, drawn from `noise`.
        """
        return self[index]

    @property
    def hash(self) -> str:
        """sha256 of the texts and the metadata in their order, whatever the set's name and format.

        A key is in the metadata where it is not the text. Of a mixture the weights count too, and
        which prompts are of which set.
        """
        content: list[Any] = [[prompt.text, dict(prompt.metadata)] for prompt in self.prompts]
        content += [[share.weight, share.numbers] for share in self.shares]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


PLAIN = ("string", "large_string", "bool", "int", "uint", "float")
"""Beginnings of the types of columns that become metadata; pictures, lists and times do not."""

Row = tuple[str, dict[str, Any]]
"""A place for messages (`mine.jsonl, line 7`) and the columns found there, `prompt` among them."""


class NotHere(UserError):
    """The data set is not on this machine, nor can it be had from here."""


def load(
    name: str | None = None,
    path: str | Path | None = None,
    template: str | None = None,
    repeats: bool = False,
    dataset: tuple[str, str, str] | None = None,
) -> PromptSet:
    """The prompt set at `path`, or of that name (a file, an entry point, `module:function`).

    `dataset` is a data set's name or folder, its split and its column. `template` is a str.format
    template over `prompt` and the metadata: "A painting of a {animal}". Raises UserError, naming
    file and line, for an unknown name, a missing or broken file, an empty set, a column that the
    template asks for and a row lacks, and two prompts that have the same key (the column `key`,
    else the text), unless `repeats`.
    """
    sources = [source for source in (name, path, dataset and dataset[0]) if source is not None]
    if len(sources) != 1:
        raise UserError(f"prompts: give a name or a path or a dataset, one of them; got {sources}")
    if dataset:
        rows, title = _of_dataset(*dataset), Path(dataset[0]).name
    elif path is not None:
        rows, title = _of_file(Path(path).expanduser()), Path(path).stem
    else:
        rows, title = _of_name(str(name)), str(name)
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for place, columns in rows:
        text = _text(columns, template, place)
        metadata = {name: value for name, value in columns.items() if name != "prompt"}
        prompt = Prompt(text, metadata, _key(columns, place))
        if prompt.key in places and not repeats:
            what = "the key" if "key" in columns else "the prompt"
            twice = f"{what} {prompt.key!r} stands already at {places[prompt.key]}"
            raise UserError(
                f"{place}: {twice}; every prompt must differ, or have a column key that does"
            )
        places[prompt.key] = place
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"prompts: {sources[0]} holds no prompt; it needs at least one")
    return PromptSet(title, tuple(prompts))


def mixed(sets: Sequence[tuple[PromptSet, float]]) -> PromptSet:
    """Sets with their weights as one: `a+b`.

    Prompt k of a set stands at (k + 1/2) / weight, so that a slice from the beginning has of each
    by its weight. A prompt that several sets hold, with the same metadata, stands in it once.
    Raises UserError where two sets hold different prompts of one key.
    """
    found: dict[str, tuple[int, Prompt, str]] = {}
    numbers: list[list[int]] = [[] for _ in sets]
    places = [
        ((k + 0.5) / weight, own, k)
        for own, (each, weight) in enumerate(sets)
        for k in range(len(each))
    ]
    for _, own, k in sorted(places):
        each = sets[own][0]
        prompt = each.prompts[k]
        number, known, name = found.setdefault(prompt.key, (len(found), prompt, each.name))
        if known != prompt:
            raise UserError(
                f"prompts.sets: {prompt.key!r} stands in {name} and, with other metadata, in "
                f"{each.name}; give one of the two a column key, or leave one set out"
            )
        numbers[own].append(number)
    prompts = tuple(prompt for _, prompt, _ in found.values())
    shares = tuple(
        Share(each.name, weight, tuple(own))
        for (each, weight), own in zip(sets, numbers, strict=True)
    )
    return PromptSet("+".join(share.name for share in shares), prompts, shares=shares)


def turn(position: int, weights: Sequence[float]) -> tuple[int, int]:
    """Whose turn it is in an endless series of sets that come by weight, evenly spread.

    Returns the set's number, and how often it came before. It is a function of the position alone:
    the first set has its share of the first n positions, rounded; the others share what is left.
    """
    exact = [Fraction(weight) for weight in weights]
    for number, weight in enumerate(exact[:-1]):
        share = weight / sum(exact[number:])
        before, after = (floor(share * n + Fraction(1, 2)) for n in (position, position + 1))
        if after > before:
            return number, before
        position -= before
    return len(weights) - 1, position


def named_or_file(source: str, template: str | None = None, repeats: bool = False) -> PromptSet:
    """A set by its name, or, where that has the ending of a prompt file, a file by its path.

    `repeats` as in `load`.
    """
    if Path(source).suffix in plugins.PROMPT_SUFFIXES:
        return load(path=source, template=template, repeats=repeats)
    return load(source, template=template, repeats=repeats)


def _of_name(name: str) -> Iterable[Row]:
    source = plugins.load("prompts", name)
    return _of_file(source) if isinstance(source, Path) else _called(source, name)


def _of_file(file: Path) -> Iterable[Row]:
    if file.suffix not in plugins.PROMPT_SUFFIXES:
        known = ", ".join(plugins.PROMPT_SUFFIXES)
        raise UserError(f"prompts.path: {file} is no prompt file; use one of {known}")
    if not file.is_file():
        raise UserError(f"prompts.path: {file}: no such file")
    if file.suffix == ".py":
        return _called(plugins.load("prompts", str(file)), str(file))
    reader = {".txt": _of_txt, ".jsonl": _of_jsonl, ".csv": _of_csv}[file.suffix]
    return reader(plugins.text_of(file), str(file))


def _of_dataset(name: str, split: str, column: str) -> Iterator[Row]:
    """The first row of each prompt; a data set repeats prompts, has gaps, and cannot be edited."""
    try:
        import datasets
    except ImportError as error:
        raise NotHere(
            "prompts.dataset: datasets is not installed; pip install 'ddpo[datasets]'"
        ) from error
    try:
        dataset_split = datasets.load_dataset(str(Path(name).expanduser()), split=split)
    # a dozen kinds: no network, no such name, split or folder, a broken file
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        message += ", and HF_HUB_OFFLINE is set" * bool(os.environ.get("HF_HUB_OFFLINE"))
        remedy = (
            "give a name of the Hub or a folder of parquet or jsonl files, and one of its splits"
        )
        place = f"prompts.dataset: {name}, split {split}"
        raise NotHere(f"{place}: cannot be loaded ({message}); {remedy}") from error
    kinds = {
        key: str(getattr(kind, "dtype", "")) for key, kind in dict(dataset_split.features).items()
    }
    texts = [key for key, kind in kinds.items() if kind.endswith("string")]
    if column not in texts:
        raise UserError(
            f"prompts.column: {name} has no text called {column!r}{nearest(column, texts)}"
        )
    seen: set[str] = set()
    plain = [key for key, kind in kinds.items() if kind.startswith(PLAIN)]
    for number, row in enumerate(map(dict, dataset_split.select_columns(plain))):
        text = (row.pop(column) or "").strip()
        if text and text not in seen:
            yield f"{name}, row {number}", {**row, "prompt": text}
        seen.add(text)


def _of_txt(text: str, file: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", {"prompt": line}


def _of_jsonl(text: str, file: str) -> Iterator[Row]:
    for place, columns in _of_txt(text, file):
        try:
            row = json.loads(columns["prompt"])
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: broken JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(row, dict):
            example = '{"prompt": "a fox", "animal": "fox"}'
            raise UserError(f"{place}: not an object; a line reads like {example}")
        yield place, row


def _of_csv(text: str, file: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        for row in reader:
            place = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                wrong = "not as many cells as the first line has columns"
                raise UserError(f"{place}: {wrong}; quote a cell with a comma")
            yield place, dict(row)
    except csv.Error as error:  # an unclosed quote, which else would swallow the rest of the file
        raise UserError(f"{file}, line {reader.line_num + 1}: broken CSV: {error}") from error


def _called(function: object, file: str) -> Iterator[Row]:
    """The rows that a prompt function returns.

    They must be what JSON can hold, for runs record them.
    """
    if not callable(function):
        raise UserError(f"prompts: {file}: not a function that returns a list of prompts")
    returned = cast(Callable[[], list[str | dict[str, Any]]], function)()
    try:
        rows = json.loads(json.dumps(list(returned)))
    except TypeError as error:
        wrong = "returned something else than a list of strings or dicts"
        raise UserError(f"prompts: {file}: {wrong}: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str | dict):
            raise UserError(
                f"{file}, item {number}: {row!r} is neither a string nor a dict with a prompt"
            )
        yield f"{file}, item {number}", {"prompt": row} if isinstance(row, str) else row


def _key(columns: Mapping[str, Any], place: str) -> str:
    """The column `key` of a row; "" without one."""
    key = columns.get("key", "")
    if "key" in columns and (not isinstance(key, str) or not key.strip()):
        raise UserError(f"{place}: the key is {key!r}; it must be text that is not empty")
    return key


def _text(columns: Mapping[str, Any], template: str | None, place: str) -> str:
    """The stripped prompt of a row, through the template if there is one."""
    if "prompt" not in columns:
        raise UserError(f"{place}: no column is called 'prompt'{nearest('prompt', columns)}")
    prompt = columns["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place}: the prompt is {prompt!r}; it must be text that is not empty")
    if template is None:
        return prompt.strip()
    try:
        return template.format(**{**columns, "prompt": prompt.strip()}).strip()
    except KeyError as error:
        name = str(error.args[0])
        raise UserError(
            f"{place}: no column {name!r} for prompts.template{nearest(name, columns)}"
        ) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        example = "A painting of {prompt}"
        raise UserError(
            f"prompts.template {template!r}: {error}; it must read like {example!r}"
        ) from error

"""Reads a dataclass of sections from YAML and dotted flags, and says in one line what is wrong.

The root is a dataclass whose fields are sections (dataclasses), lists of sections and plain values. A section
may be open: besides its own fields it takes the keyword-only parameters of the thing its `name` names, flat
beside them if it has a field `options`, below `params` if it has a field of that name. On the way a
configuration is a nested dict of YAML values, lists of sections numbered: `{"rewards": {"0": {"name":
"jpeg"}}}`, so that every value has a dotted name. jsonargparse checks types and prints --help.
"""

import copy
import inspect
import logging
import re
from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace

from ddpo.config import yaml_text
from ddpo.errors import UserError, nearest
from ddpo.plugins import text_of
from ddpo.plugins.ranges import ranges

Find = Callable[[str, str], Callable[..., object] | None]
"""(section, name) -> the function or class of that name; None where only another process knows it; UserError
where there is none."""

OPEN = {"options": "", "params": "params."}
"""The fields that hold open options, and where these stand in YAML."""

PLAIN = {int, float, bool, NoneType}
"""A value of exactly one of these types needs no reading where its option has that type."""

CONTEXT = ("device", "dtype", "lora", "train_text_encoder")
"""Keyword-only parameters that the caller fills in from elsewhere; they are no options."""

log = logging.getLogger(__name__)


class Option(NamedTuple):
    """One value: its type, the value in force or the default (MISSING if it must be given), its help text."""

    hint: Any
    value: Any
    words: str


Options = dict[str, Option]


class Group(NamedTuple):
    """What can be set in one section, under a title; names are relative to the section's place."""

    place: str
    title: str
    about: str
    options: Options


def arguments(
    root: type, argv: Sequence[str], flags: Sequence[str] = ()
) -> tuple[str | None, dict[str, str], bool]:
    """The command line taken apart: the value of --config, dotted name -> text, whether help is wanted.

    Raises UserError for anything but `--config X` and `--name[.name] X`; `flags` only helps the suggestions.
    """
    known = ["config", *get_type_hints(root), *(flag.lstrip("-").split()[0] for flag in flags)]
    texts: dict[str, str] = {}
    queue = [word for word in argv if word not in ("-h", "--help")]
    wants_help = len(queue) < len(argv)
    while queue:
        word = queue.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        head = key.split(".")[0]
        if not word.startswith("--"):
            raise UserError(f"{word}: an argument without a name; write --config FILE or --section.key value")
        if head not in known:
            raise UserError(f"--{key}: no such option{nearest(head, known)}")
        if not equals and (not queue or queue[0].startswith("--")):
            raise UserError(f"--{key}: needs a value")
        texts[key] = text if equals else queue.pop(0)
    return texts.pop("config", None), texts, wants_help


def read(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError with the line of what is no YAML."""
    return _mapping(str(file), yaml_text.read(str(file), text_of(file)) or {})


def normal(root: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy with the lists of sections numbered."""
    copied = copy.deepcopy(dict(values))
    return copied | {name: _numbered(name, copied[name]) for name in _lists(root) & copied.keys()}


def change(root: type, values: dict[str, Any], texts: Mapping[str, str]) -> None:
    """Puts the command line's texts into `values`: whole sections first, then names, then everything else.

    Where that gives a section another name, the old one's options are dropped, with a log line.
    """
    for key in sorted(texts, key=lambda key: (key.count("."), not key.endswith(".name"))):
        *path, last = key.split(".")
        whole = key in _sections(root) or last == "params"
        text = None if texts[key] == "null" else texts[key]
        value = yaml_text.read(f"--{key}", texts[key]) if whole else text
        inner: Any = values
        for part in path:
            inner[part] = {} if inner.get(part) is None else inner[part]
            inner = inner[part]
            if not isinstance(inner, dict):
                raise UserError(f"{key}: no such option")
        if path and last == "name":
            _drop_options(key, _sections(root).get(path[0]), inner, value)
        inner[last] = _numbered(key, value) if key in _lists(root) else value


def resolve(root: type, values: Mapping[str, Any], find: Find) -> tuple[Any, list[Group]]:
    """An instance of `root`, types checked, every default filled in; and all that can be set in it.

    Raises UserError with the place and the remedy.
    """
    hints = get_type_hints(root)
    _refuse_unknown("", values, hints)
    own = _filled("", _own(root), values)
    made, groups = _values(own), [Group("", "", "", own)]
    for name, cls in _sections(root).items():
        given, is_list = values.get(name, {}), name in _lists(root)
        if given is None and NoneType in get_args(hints[name]):  # null switches an optional section off
            made[name] = None
            continue
        given = _mapping(name, given)
        places = {f"{name}.{i}": inner for i, inner in given.items()} if is_list else {name: given}
        sections = [_section(place, cls, _mapping(place, inner), find) for place, inner in places.items()]
        made[name] = [section for section, _ in sections] if is_list else sections[0][0]
        groups += [group for _, group in sections]
    return root(**made), groups


def print_help(groups: Sequence[Group], usage: str) -> None:
    """All options of `resolve`, those of the named things too; the values in force stand as the defaults."""
    parser = ArgumentParser(usage=usage)
    for place, title, about, options in groups:
        group = parser.add_argument_group(title or None, about or None)
        for key, (hint, value, words) in options.items():
            flag, text = "--" + f"{place}.{key}".lstrip("."), words.replace("%", "%%")
            limits = dict.fromkeys(limit.words for limit in ranges(hint))
            text = "; ".join([text.rstrip("."), *limits]) if limits else text
            action: Any = group.add_argument(flag, type=_plain(hint), default=value, help=text)
            action.option_strings = [flag]  # jsonargparse's --key+ for lists is not among our ways
    parser.print_help()


def within(name: str, places: Sequence[str]) -> bool:
    """Whether a dotted name is one of the places or stands in one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def only(groups: Sequence[Group], places: Sequence[str]) -> list[Group]:
    """What of `groups` stands in one of the places."""
    found = []
    for group in groups:
        dotted = {f"{group.place}.{key}".lstrip("."): key for key in group.options}
        kept = {key: group.options[key] for name, key in dotted.items() if within(name, places)}
        found += [group._replace(options=kept)] if kept else []
    return found


def flat(value: Any) -> Any:
    """A configuration as nested dicts and lists of plain values, in the shape of its YAML file."""
    if is_dataclass(value) and not callable(value):
        own = {f.name: flat(getattr(value, f.name)) for f in fields(value) if f.name != "options"}
        return own | flat(getattr(value, "options", {}))
    if isinstance(value, Mapping):
        return {key: flat(inner) for key, inner in value.items()}
    return [flat(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@cache
def _sections(root: type) -> dict[str, type]:
    """Field name -> dataclass, for `Section`, `Section | None` and `list[Section]`."""
    hints = {name: (hint, *get_args(hint)) for name, hint in get_type_hints(root).items()}
    return {name: hint for name in hints for hint in hints[name] if hasattr(hint, "__dataclass_fields__")}


@cache
def _lists(root: type) -> set[str]:
    return {name for name in _sections(root) if get_origin(get_type_hints(root)[name]) is list}


def _holder(cls: type) -> str:
    """The field that holds open options; "" where there is none."""
    return next((f.name for f in fields(cls) if f.name in OPEN), "")


@cache
def _own(cls: type) -> Options:
    """The plain fields of a dataclass; their help texts are the strings under them."""
    words = {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(cls).params}
    hints, left_out = get_type_hints(cls, include_extras=True), {*OPEN, *_sections(cls)}
    return {
        f.name: Option(hints[f.name], f.default, words.get(f.name, ""))
        if f.default_factory is MISSING
        else Option(hints[f.name], f.default_factory(), words.get(f.name, ""))
        for f in fields(cls)
        if f.name not in left_out
    }


def _open(thing: Callable[..., object]) -> Options:
    """The keyword-only parameters; help texts are the docstring's sentences with the name in backticks."""
    paragraphs = (" ".join(text.split()) for text in (inspect.getdoc(thing) or "").split("\n\n"))
    sentences = [sentence for text in paragraphs for sentence in re.split(r"(?<=\.) (?=[A-Z`])", text)]
    return {
        p.name: Option(
            Any if p.annotation is p.empty else p.annotation,
            MISSING if p.default is p.empty else p.default,
            " ".join(sentence for sentence in sentences if f"`{p.name}`" in sentence) or "no description",
        )
        for p in inspect.signature(thing, eval_str=True).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT
    }


def _section(place: str, cls: type, given: Mapping[str, Any], find: Find) -> tuple[object, Group]:
    """The section's instance and what can be set in it; its name, if it is open, is looked up for that."""
    own, holder = _own(cls), _holder(cls)
    if not holder:
        _refuse_unknown(place, given, own)
        own = _filled(place, own, given)
        return cls(**_values(own)), Group(place, place, inspect.getdoc(cls) or "", own)
    name = given.get("name", own["name"].value)
    if not isinstance(name, str):
        raise UserError(f"{place}.name: {'missing' if name is MISSING else f'expected text, got {name!r}'}")
    try:
        thing = find(place.split(".")[0], name)
    except UserError as error:
        raise UserError(f"{place}.name: {error}") from error
    if thing is None:  # its options were checked where it is known
        _refuse_unknown(place, given, [*own, holder])
        own = _filled(place, own, given)
        options = dict(_mapping(f"{place}.{holder}", given.get(holder) or {}))
        return cls(**_values(own), **{holder: options}), Group(place, f"{place}: {name}", "", own)
    if not callable(thing):
        raise UserError(f"{place}.name: {name} is {thing!r:.40}; it must be a function or a class")
    try:
        further, inner, prefix = _open(thing), given, OPEN[holder]
    except (NameError, TypeError, ValueError) as error:  # an annotation that means nothing, a function in C
        raise UserError(f"{place}.name: the parameters of {name} cannot be read ({error})") from error
    if prefix:
        _refuse_unknown(place, given, [*own, holder])
        inner = _mapping(f"{place}.{holder}", given.get(holder) or {})
        known = list(further)
    else:
        further = {key: option for key, option in further.items() if key not in own}
        known = [*own, *further]
    where = f"{place}.{prefix}".rstrip(".")
    _refuse_unknown(where, inner, known, f" of {name}")
    own, further = _filled(place, own, given), _filled(where, further, inner)
    made = cls(**_values(own), **{holder: _values(further)})
    about = (inspect.getdoc(thing) or "").partition("\n")[0]
    options = own | {prefix + key: option for key, option in further.items()}
    return made, Group(place, f"{place}: {name}", about, options)


def _filled(place: str, options: Options, given: Mapping[str, Any]) -> Options:
    """With the value in force in the place of the default."""
    return {
        key: option._replace(value=_checked(f"{place}.{key}".lstrip("."), option, given.get(key, MISSING)))
        for key, option in options.items()
    }


def _values(options: Options) -> dict[str, Any]:
    return {key: option.value for key, option in options.items()}


def _checked(place: str, option: Option, given: Any) -> Any:
    """What is given, made of the right type; the default where nothing is."""
    hint = _plain(option.hint)
    words = _words(hint)
    if given is MISSING and option.value is MISSING:
        raise UserError(f"{place}: needs a value, {words}")
    if given is MISSING:
        return copy.deepcopy(option.value)
    if isinstance(given, str) and hint in (str, str | None):
        return given  # text is text: jsonargparse would make None of 'null'
    if given is None and not {NoneType, Any} & {hint, *get_args(hint)}:
        raise UserError(f"{place}: expected {words}, got null")
    if isinstance(given, str):
        with suppress(yaml.YAMLError):
            yaml_text.refuse_twice(place, given)
    try:
        ready = type(given) in PLAIN & {hint, *get_args(hint)} and get_origin(hint) in (None, UnionType)
        value = given if ready else _reader(hint).parse_object(Namespace(value=given)).value
    except ArgumentError as error:
        raise UserError(f"{place}: expected {words}, got {given!r}") from error
    _refuse_outside(place, option.hint, value)
    return value


@cache
def _reader(hint: Any) -> ArgumentParser:
    """jsonargparse for one value of this type; it takes long to make."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _refuse_outside(place: str, hint: Any, value: Any) -> None:
    """A number out of the range that its type is annotated with; in a tuple each has its own."""
    inside = next((each for each in (hint, *get_args(hint)) if get_origin(each) is tuple), None)
    if inside and value is not None:
        for i, (inner, each) in enumerate(zip(get_args(inside), value, strict=True)):
            _refuse_outside(f"{place}.{i}", inner, each)
    elif isinstance(value, (int, float)):
        for limit in ranges(hint):
            if not limit.holds(value):
                raise UserError(f"{place}: must be {limit.words}, got {value!r}")


def _plain(hint: Any) -> Any:
    """A type without the ranges in it."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[0]
    if not any(ranges(hint)):
        return hint
    inner = tuple(map(_plain, get_args(hint)))
    return tuple[inner] if get_origin(hint) is tuple else reduce(or_, inner)


def _words(hint: Any) -> str:
    """A type as the user thinks of it."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if NoneType in get_args(hint):
        return " or ".join([*(_words(inner) for inner in get_args(hint) if inner is not NoneType), "null"])
    if get_origin(hint) in (list, tuple):
        inner = [_words(inner).removeprefix("a ").removeprefix("an ") for inner in get_args(hint)]
        return f"a list of {inner[0]}, as [a, b]" if get_origin(hint) is list else f"[{', '.join(inner)}]"
    return {float: "a float", int: "an int", bool: "true or false", str: "text"}.get(hint, str(hint))


def _refuse_unknown(place: str, given: Mapping[str, Any], known: Collection[str], owner: str = "") -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{place}.{key}: no such option{owner}{nearest(str(key), known)}".lstrip("."))


def _drop_options(key: str, cls: type | None, section: dict[str, Any], name: Any) -> None:
    if cls is None or not _holder(cls) or section.get("name", getattr(cls, "name", None)) == name:
        return
    dropped = [other for other in section if other not in _own(cls)]
    for other in dropped:
        del section[other]
    if dropped:
        log.warning("%s is now %s: the configuration's %s left out", key, name, ", ".join(dropped))


def _numbered(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (list, NoneType)):
        raise UserError(f"{name}: expected a list, as [{{name: ...}}], got {value!r}")
    return {str(i): inner for i, inner in enumerate(value or [])}


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected options, as {{key: value}}, got {value!r}")
    return value

"""The command line: `--config FILE`, and dotted flags that change what the file says."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ddpo.config import yaml_text
from ddpo.config.parts import Part, is_named, nested
from ddpo.config.sections import REWARDS, Config
from ddpo.errors import UserError, nearest

WHOLE = Config.model_fields.keys() - {"seed", "run_dir"} | {
    f"{name}.{inner}"
    for name, info in Config.model_fields.items()
    if (section := nested(info.annotation))
    for inner, field in section.model_fields.items()
    if nested(field.annotation)
}
"""The sections and lists, and the sections within these, whose text is YAML."""

log = logging.getLogger(__name__)


def arguments(
    argv: Sequence[str], flags: Sequence[str] = ()
) -> tuple[str | None, dict[str, str], bool]:
    """The command line taken apart: the value of --config, dotted name -> text, --help or not.

    Raises UserError for anything but `--config X` and `--name[.name] X`; `flags` only helps the
    suggestions.
    """
    known = ["config", *Config.model_fields, *(flag.lstrip("-").split()[0] for flag in flags)]
    texts: dict[str, str] = {}
    queue = [word for word in argv if word not in ("-h", "--help")]
    wants_help = len(queue) < len(argv)
    while queue:
        word = queue.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        head = key.split(".")[0]
        if not word.startswith("--"):
            raise UserError(
                f"{word}: an argument without a name; write --config FILE or --section.key value"
            )
        if head not in known:
            raise UserError(f"--{key}: no such option{nearest(head, known)}")
        if not equals and (not queue or queue[0].startswith("--")):
            raise UserError(f"--{key}: needs a value")
        texts[key] = text if equals else queue.pop(0)
    return texts.pop("config", None), texts, wants_help


def change(values: dict[str, Any], texts: Mapping[str, str]) -> None:
    """Puts the command line's texts into `values`: whole sections first, then names, then all else.

    Where that gives a section another name, the old one's options are dropped, with a log line.
    """
    for key in sorted(texts, key=lambda key: (key.count("."), not key.endswith(".name"))):
        *path, last = key.split(".")
        inner: Any = values
        for part in path:
            place = _place(key, inner, part)
            if isinstance(inner, dict) and inner.get(place) is None:
                inner[place] = [] if place in REWARDS else {}
            inner = inner[place]
        place = _place(key, inner, last)
        whole = key in WHOLE or last == "params" or isinstance(place, int)
        text = None if texts[key] == "null" else texts[key]
        value = yaml_text.read(f"--{key}", texts[key]) if whole else text
        if path and last == "name":
            _drop_options(key, inner, value)
        inner[place] = value


def _place(key: str, outer: Any, part: str) -> str | int:
    """Where in a section or a list this part of the key stands.

    The next entry of a list is added.
    """
    if isinstance(outer, dict):
        return part
    if not isinstance(outer, list):
        raise UserError(f"{key}: no such option")
    if not part.isdecimal() or int(part) > len(outer):
        raise UserError(f"{key}: no such entry; the next of the list is {len(outer)}")
    if int(part) == len(outer):
        outer.append({})
    return int(part)


def _drop_options(key: str, section: dict[str, Any], name: Any) -> None:
    model: type[Part] | None = Config
    for part in key.split(".")[:-1]:
        if model is not None and not part.isdecimal():
            field = model.model_fields.get(part)
            model = nested(field.annotation) if field else None
    if not is_named(model) or section.get("name", model.model_fields["name"].default) == name:
        return
    kept = model.model_fields.keys() - {"params"}
    dropped = [other for other in section if other not in kept]
    for other in dropped:
        del section[other]
    if dropped:
        log.warning("%s is now %s: the configuration's %s left out", key, name, ", ".join(dropped))


def within(name: str, places: Sequence[str]) -> bool:
    """Whether a dotted name is one of the places or stands in one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)

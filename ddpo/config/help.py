"""All that can be set in a configuration, by dotted name, and --help of it."""

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ddpo.config.words import THING, Node, bounds, section_of, type_words


class Option(NamedTuple):
    """A value in force, and its node of the JSON Schema.

    With it go the section's title and what the section is about.
    """

    value: Any
    node: Node
    type: str
    limits: str
    title: str = ""
    about: str = ""


def options(schema: Node, values: Mapping[str, Any]) -> dict[str, Option]:
    """What can be set in these values, which have this schema."""
    return dict(_options(schema, schema, values, ("", "", "")))


def _options(
    schema: Node, node: Node, value: Any, heading: tuple[str, str, str]
) -> Iterator[tuple[str, Option]]:
    """The options in one node.

    `heading` is the node's place, the title and the text of the section around it.
    """
    place, title, about = heading
    section, entries = section_of(schema, node), node.get("prefixItems", ())
    if section and value is not None:
        if place and not place.endswith(".params"):
            named = THING in section or "params" in value
            title = f"{place}: {value['name']}" if named else place
            about = section.get("description", "")
        for key, inner in section["properties"].items():
            below = (f"{place}.{key}".lstrip("."), title, about)
            yield from _options(schema, inner, value[key], below)
    elif value and any(section_of(schema, entry) for entry in entries):
        for i, entry in enumerate(entries):
            yield from _options(schema, entry, value[i], (f"{place}.{i}", "", ""))
    elif not (section and value is not None) and node.get("maxItems") != 0:
        words = type_words(schema, node), bounds(schema, node)
        yield place, Option(value, node, *words, title, about)


def print_help(options: Mapping[str, Option], usage: str) -> None:
    """All options with their meaning, range and type; the values in force stand as the defaults."""
    parser = argparse.ArgumentParser(usage=usage)
    groups: dict[str, Any] = {"": parser.add_argument_group()}
    for name, option in options.items():
        if option.title not in groups:
            groups[option.title] = parser.add_argument_group(option.title, option.about or None)
        choices = option.node.get("enum")
        text = option.node.get("description", "no description").rstrip()
        text = f"{text.rstrip('.')}; {option.limits}" if option.limits else text
        shown = (
            option.value if isinstance(option.value, str) else json.dumps(option.value, default=str)
        )
        groups[option.title].add_argument(
            f"--{name}",
            metavar=f"{{{','.join(map(str, choices))}}}" if choices else "VALUE",
            help=f"{text} ({option.type}, default: {shown})".replace("%", "%%"),
        )
    parser.print_help()

"""All that can be set in a configuration, section by section, as --help prints it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ddpo.config.words import Node, bounds, section_of, type_words


class Option(NamedTuple):
    """One value: its node of the JSON Schema, the value in force, its type and its range in words."""

    node: Node
    value: Any
    type: str
    limits: str


class Group(NamedTuple):
    """What can be set in one section, under a title; names are relative to the section's place."""

    place: str
    title: str
    about: str
    options: dict[str, Option]


def groups(schema: Node, values: Mapping[str, Any]) -> list[Group]:
    """All that can be set in these values of a model, section by section."""
    found = [Group("", "", "", {})]
    for name, node in schema["properties"].items():
        places = {name: (node, values[name])}
        if "prefixItems" in node or node.get("maxItems") == 0:
            entries = zip(node.get("prefixItems", ()), values[name], strict=True)
            places = {f"{name}.{i}": entry for i, entry in enumerate(entries)}
        for place, (inner, value) in places.items():
            section = section_of(schema, inner)
            if section is None:
                found[0].options[place] = _option(schema, inner, value)
            elif value is not None:
                found.append(_group(schema, place, section, value))
    return found


def _group(schema: Node, place: str, node: Node, values: Mapping[str, Any]) -> Group:
    options: dict[str, Option] = {}
    for key, inner in node["properties"].items():
        if section := section_of(schema, inner):
            further = section["properties"].items()
            options |= {f"{key}.{name}": _option(schema, each, values[key][name]) for name, each in further}
        else:
            options[key] = _option(schema, inner, values[key])
    named = "thing" in node or "params" in node["properties"]
    title = f"{place}: {values['name']}" if named else place
    return Group(place, title, node.get("description", ""), options)


def _option(schema: Node, node: Node, value: Any) -> Option:
    return Option(node, value, type_words(schema, node), bounds(schema, node))


def print_help(groups: Sequence[Group], usage: str) -> None:
    """All options with their meaning, range and type; the values in force stand as the defaults."""
    parser = argparse.ArgumentParser(usage=usage)
    for place, title, about, options in groups:
        if not options:
            continue
        group = parser.add_argument_group(title or None, about or None)
        for key, (node, value, kind, limits) in options.items():
            choices = node.get("enum")
            text = node.get("description", "no description").rstrip()
            text = f"{text.rstrip('.')}; {limits}" if limits else text
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            words = f"{text} ({kind}, default: {shown})".replace("%", "%%")
            metavar = f"{{{','.join(map(str, choices))}}}" if choices else "VALUE"
            flag = "--" + f"{place}.{key}".lstrip(".")
            group.add_argument(flag, metavar=metavar.replace("%", "%%"), help=words)
    parser.print_help()

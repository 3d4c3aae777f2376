"""What pydantic finds wrong, in one line with place, value and remedy.

Its words come from the JSON Schema of the model, whose nodes say the type and the range of a value.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from ddpo.errors import nearest

Node = Mapping[str, Any]

THING = "$comment"
"""The key under which the schema of options says whose they are."""

UNKNOWN = ("extra_forbidden", "invalid_key")
TYPES = {
    "number": "a float",
    "integer": "an int",
    "boolean": "true or false",
    "string": "text",
    "object": "options, as {key: value}",
}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
OUTSIDE = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "string_pattern_mismatch",
)
"""The errors of pydantic for a value of the right type that is out of its range."""


class _Schema(GenerateJsonSchema):
    """Without titles, and with `anything` for what JSON has no type for."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as there

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Its JSON Schema (draft 2020-12)."""
    return model.model_json_schema(schema_generator=_Schema)


def line(error: ValidationError, schema: Node) -> str:
    """The first thing that is wrong with what has this schema.

    An unknown option comes before all others.
    """
    first = min(error.errors(), key=lambda each: each["type"] not in UNKNOWN)
    path, nodes = list[str](), [schema]
    for part in first["loc"]:
        inner = _inside(schema, nodes[-1], part)
        if inner is None:  # an unknown option, or what pydantic calls a part of a union
            break
        path.append(str(part))
        nodes.append(inner)
    kind, last = first["type"], str(first["loc"][-1]) if first["loc"] else ""
    if kind in UNKNOWN:
        section = section_of(schema, nodes[-1]) or {}
        owner = f" of {section[THING]}" if THING in section else ""
        said = f"no such option{owner}{nearest(last, section.get('properties', ()))}"
        return f"{'.'.join([*path, last])}: {said}"
    if kind == "missing" and last.isdecimal():  # an element of a pair: the pair is wrong
        kind = "too_short"
        del path[-1], nodes[-1]
    place, said = ".".join(path), _complaint(schema, nodes[-1], kind, first)
    return place + said if said.startswith(",") else f"{place}: {said}".removeprefix(": ")


def _complaint(schema: Node, node: Node, kind: str, error: Mapping[str, Any]) -> str:
    value, kind_words, limits = error["input"], type_words(schema, node), bounds(schema, node)
    shown = "null" if value is None else repr(value)
    if kind == "value_error":  # a UserError of ours
        return str(error["ctx"]["error"])
    if kind == "missing":
        return f"needs a value, {kind_words}"
    if kind in OUTSIDE:
        return f"must be {limits}, got {shown if kind == 'string_pattern_mismatch' else value}"
    if kind == "finite_number" and "int" not in kind_words:
        return f"must be {' and '.join(filter(None, [limits, 'finite']))}, got {shown}"
    choices = [str(name) for option in unions(schema, node) for name in option.get("enum", ())]
    close = nearest(value, choices) if isinstance(value, str) else ""
    meant = close if close.startswith("; did you mean") else ""
    return f"expected {kind_words}, got {shown}{meant}"


def unions(schema: Node, node: Node) -> Iterator[Node]:
    """What a node may be, one after the other, with the references followed."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for branch in node.get("anyOf", ()):
        yield from unions(schema, branch)
    if "anyOf" not in node:
        yield node


def _inside(schema: Node, node: Node, part: str | int) -> Node | None:
    for branch in unions(schema, node):
        if isinstance(part, str) and part in branch.get("properties", {}):
            return branch["properties"][part]
        if isinstance(part, int) and branch.get("type") == "array":
            first = branch.get("prefixItems", [])
            return first[part] if part < len(first) else branch.get("items", {})
    return None


def section_of(schema: Node, node: Node) -> Node | None:
    """The node with options below it that a node is, or may be."""
    return next((branch for branch in unions(schema, node) if "properties" in branch), None)


def type_words(schema: Node, node: Node) -> str:
    """A type as the user thinks of it."""
    return " or ".join(
        dict.fromkeys(_type_words(schema, branch) for branch in unions(schema, node))
    )


def _type_words(schema: Node, node: Node) -> str:
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(map(str, node.get("enum", [node.get("const")])))
    kind = node.get("type", "any value")
    if kind == "array" and "prefixItems" not in node:
        inner = type_words(schema, node.get("items", {}))
        return (
            "a list, as [{name: ...}]" if "{" in inner else f"a list of {_bare(inner)}, as [a, b]"
        )
    if kind == "array":
        return f"[{', '.join(_bare(type_words(schema, each)) for each in node['prefixItems'])}]"
    if isinstance(node.get("additionalProperties"), dict):
        return (
            f"a mapping to {_bare(type_words(schema, node['additionalProperties']))}, as {{a: b}}"
        )
    return TYPES.get(kind, str(kind))


def _bare(words: str) -> str:
    return words.removeprefix("a ").removeprefix("an ")


def bounds(schema: Node, node: Node) -> str:
    """The range of a value, or those of a pair's; empty where there is none."""
    found: list[str] = []
    for each in unions(schema, node):
        limits = [f"{word} {_number(each[key])}" for key, word in BOUNDS.items() if key in each]
        found += [" and ".join(limits)] if limits else []
        found += ["text that is not blank"] if "pattern" in each else []
        found += [
            words for inner in each.get("prefixItems", ()) if (words := bounds(schema, inner))
        ]
    return "; ".join(dict.fromkeys(found))


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if value == 2**power > 2**31 else f"{value:g}"

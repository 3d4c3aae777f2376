"""YAML without a key that stands twice in a mapping, of which YAML itself would take the last."""

from collections.abc import Mapping
from typing import Any

import yaml

from ddpo.errors import UserError
from ddpo.plugins.python_objects import Given


class _Dumper(yaml.SafeDumper):
    """Writes the text of an object given from Python as any other text."""


_Dumper.add_representer(Given, lambda dumper, text: dumper.represent_str(str(text)))


def write(values: Mapping[str, Any]) -> str:
    """The YAML of plain values, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


def read(place: str, text: str) -> Any:
    """What the text says. Raises UserError with the line of what is no YAML or stands twice."""
    try:
        refuse_twice(place, text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise UserError(f"{place}{line}: not valid YAML ({reason})") from error


def refuse_twice(place: str, text: str) -> None:
    """Raises UserError for a key that stands twice in a mapping, yaml.YAMLError for no YAML."""
    top = place.removeprefix("--") if place.startswith("--") else ""
    queue, seen = [(top, yaml.compose(text, Loader=yaml.SafeLoader))], set[int]()
    while queue:
        path, node = queue.pop(0)
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            queue += [(f"{path}.{i}".lstrip("."), inner) for i, inner in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, inner in node.value:
                name, line = f"{path}.{key.value}".lstrip("."), key.start_mark.line + 1
                same = (key.tag, str(key.value))
                if same in lines:
                    twice = f"{name} stands twice, first in line {lines[same]}; keep one"
                    raise UserError(f"{place}, line {line}: {twice}")
                lines[same] = line
                queue.append((name, inner))

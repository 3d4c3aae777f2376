"""The JSON Schema of a configuration file: editors complete it and underline what is wrong."""

import logging
from typing import Any

from pydantic_core import PydanticUndefined

from ddpo.config import named, words
from ddpo.config.parts import Named
from ddpo.config.sections import Config
from ddpo.errors import UserError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ELSEWHERE = r"[:/\\]|\.py$"
"""A name that says where to look: package.module:attribute, path/file.py."""

log = logging.getLogger("ddpo")


def document() -> dict[str, Any]:
    """What a file may say, with the options of every named thing that is found on this machine.

    A section with a `name` has, under `allOf`, the options for each of its names; those of a thing
    that is named by its place are not known, and none is refused.
    """
    schema = words.schema_of(Config)
    for section in named.KINDS:
        if section != "eval_rewards":  # of the same model as rewards
            _fit(schema, section, named.section_of(section))
    prompts = schema["properties"]["prompts"]
    several = schema["$defs"]["Prompts"]["properties"]["sets"]["anyOf"][0]
    schema["properties"]["prompts"] = {"anyOf": [prompts, several]}  # a list is short for `sets`
    about = "What can be set in a run of ddpo"
    return {"$schema": DIALECT, **schema, "title": "ddpo configuration", "description": about}


def _fit(schema: dict[str, Any], section: str, model: type[Named]) -> None:
    """Says in the section's node what can be named and, for each name, which options there are."""
    node, known = schema["$defs"][model.__name__], named.names(section)
    own, default = node["properties"], model.model_fields["name"].default
    automatic = [] if default in (*known, PydanticUndefined) else [default]
    is_flat = own.pop("options", None) is not None
    own["name"].pop("type")
    own["name"]["anyOf"] = [
        {"enum": [*automatic, *known]},
        {"type": "string", "pattern": ELSEWHERE},
    ]
    if is_flat:
        del node["additionalProperties"]  # said for each name below
    node["allOf"] = []
    for name in known:
        try:
            fitted = words.schema_of(named.fitted(model, section, {"name": name}))
        except UserError as error:
            log.warning("%s; its options are left open", error)
            continue
        schema["$defs"] |= fitted.pop("$defs", {})
        if is_flat:
            then = {**fitted, "properties": {**fitted["properties"], **dict.fromkeys(own, True)}}
        else:
            params = fitted["properties"]["params"]
            needed = schema["$defs"][f"{name}_params"].get("required")
            then = {"properties": {"params": params}, "required": ["params"] if needed else []}
        condition = {"properties": {"name": {"const": name}}}
        needed = [] if name == default else ["name"]
        node["allOf"].append({"if": {**condition, "required": needed}, "then": then})

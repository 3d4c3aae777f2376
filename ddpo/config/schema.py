"""The JSON Schema of a configuration file, by which editors complete it and underline what is wrong."""

import logging
from typing import Any, cast

from ddpo.config import named, words
from ddpo.config.sections import REWARDS, Config, Named, is_named
from ddpo.errors import UserError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ELSEWHERE = r"[:/\\]|\.py$"
"""A name that says where to look: package.module:attribute, path/file.py."""

log = logging.getLogger("ddpo")


def document() -> dict[str, Any]:
    """What a file may say, with the options of every named thing that is found on this machine.

    A section with a `name` has, under `allOf`, the options for each of its names; those of a thing that is
    named by its place are not known, and none is refused.
    """
    schema = words.schema_of(Config)
    for section, info in Config.model_fields.items():
        if section not in REWARDS[1:] and (model := _model(info.annotation)):
            _fit(schema, section, model)
    about = "What can be set in a run of ddpo"
    return {"$schema": DIALECT, **schema, "title": "ddpo configuration", "description": about}


def _model(hint: Any) -> type[Named] | None:
    (inner,) = getattr(hint, "__args__", (hint,))[:1]
    return cast(type[Named], inner) if is_named(inner) else None


def _fit(schema: dict[str, Any], section: str, model: type[Named]) -> None:
    """Says in the section's node what can be named and, for each name, which options there are."""
    node, known = schema["$defs"][model.__name__], named.names(section)
    own, default = node["properties"], model.model_fields["name"].default
    is_flat = own.pop("options", None) is not None
    about = {key: own["name"][key] for key in ("default", "description") if key in own["name"]}
    own["name"] = {"anyOf": [{"enum": known}, {"type": "string", "pattern": ELSEWHERE}], **about}
    if is_flat:
        del node["additionalProperties"]  # said for each name below
    node["allOf"] = []
    for name in known:
        try:
            fitted = words.schema_of(named.fitted(model, section, {"name": name}))
        except UserError as error:
            log.warning("%s; its options are left open", error)
            continue
        schema["$defs"] |= fitted.get("$defs", {})
        options = {key: each for key, each in fitted["properties"].items() if key not in own}
        required = [key for key in fitted.get("required", ()) if key in options]
        then: dict[str, Any] = {"properties": {**dict.fromkeys(own, True), **options}}
        if is_flat:
            then["additionalProperties"] = False
        else:
            params = fitted["properties"]["params"]
            then["properties"] = {"params": params}
            required = ["params"] if schema["$defs"][f"{name}_params"].get("required") else []
        then |= {"required": required} if required else {}
        condition: dict[str, Any] = {"properties": {"name": {"const": name}}}
        condition |= {} if name == default else {"required": ["name"]}
        node["allOf"].append({"if": condition, "then": then})

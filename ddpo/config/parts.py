"""What sections of a configuration are made of: options read from YAML and flags."""

from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ddpo.config import yaml_text

NUMBERS = {bool, int, float}
WRITTEN = {*NUMBERS, list, tuple, dict, Any}
"""What the text of a flag may stand for, as YAML says; an option of another class gets the text."""


class Part(BaseModel):
    """Options read from YAML and flags: none unknown, true is no int and 2.0 neither."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[str(info.field_name)].annotation
        classes, leaves = _classes(hint), _classes(hint, inside=True)
        if isinstance(value, str) and classes & WRITTEN:
            with suppress(yaml.YAMLError):
                yaml_text.refuse_twice("", value)
                read = yaml.safe_load(value)
                fits = str not in classes or type(read) in classes
                value = read if fits and read is not None else value
        for inner in value if isinstance(value, list | tuple) else [value]:
            exact = type(inner) in leaves or (type(inner) is int and float in leaves)
            if type(inner) in NUMBERS and leaves & NUMBERS and not exact:
                raise PydanticCustomError("exact_type", "of another type")
        return value


def _classes(hint: Any, inside: bool = False) -> set[Any]:
    """The classes that a type is a union of; `inside`: those of its elements in place of a list."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {type(value) for value in args}
    if origin is Annotated:
        return _classes(args[0], inside)
    if origin and not inside and origin not in (Union, UnionType):
        return {origin}
    return set().union(*(_classes(inner, inside) for inner in args)) if args else {hint}


class Named(Part):
    """A section whose `name` names a thing, and which takes the options of that."""

    name: str


def is_named(hint: Any) -> TypeGuard[type[Named]]:
    """Whether a type is such a section."""
    return isinstance(hint, type) and issubclass(hint, Named)


def nested(hint: Any) -> type[Part] | None:
    """The section that a type is, or may be, or is a list of."""
    hints = (hint, *get_args(hint))
    return next((h for h in hints if isinstance(h, type) and issubclass(h, Part)), None)


class Open(Named):
    """One that has these options flat beside its own, as in `{name: ddpo, clip_range: 1e-4}`."""

    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        others = {key: value for key, value in values.items() if key not in own}
        return own | {"options": {**own.get("options", {}), **others}}

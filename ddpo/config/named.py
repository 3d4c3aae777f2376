"""What a section names, and models of the section's own options with those of the thing.

The options of a thing are the keyword-only parameters of its signature, with their annotations, and
the sentences of its docstring that name them in backticks.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast, get_args, get_origin

from pydantic import Field, create_model
from pydantic.errors import PydanticUserError

from ddpo import plugins
from ddpo.config import words
from ddpo.config.parts import Named, Part, is_named, nested
from ddpo.config.sections import REWARDS, Config, Model
from ddpo.errors import UserError
from ddpo.plugins import python_objects

KINDS = {
    "model": "models",
    "sampler": "samplers",
    "rewards": "rewards",
    "eval_rewards": "rewards",
    "objective": "objectives",
    "advantage": "advantages",
    "taste": "tastes",
}
"""Section -> the kind of what it names."""

CONTEXT = ("device", "dtype", "lora", "train_text_encoder")
"""Keyword-only parameters that the caller fills in from elsewhere; they are no options."""

MADE = {"use_attribute_docstrings": False}
"""Models that are made here have no source in which pydantic could look for descriptions."""

Thing = Callable[..., object]
Fields = dict[str, Any]


def model(values: Mapping[str, Any]) -> type[Part]:
    """`Config` for these values: each section that names a thing takes the options of that thing.

    Raises UserError for a name that is not found, with its place.
    """
    fields: Fields = {}
    for name, info in Config.model_fields.items():
        hint: Any = info.annotation
        element: Any = get_args(hint)[0] if get_origin(hint) is list else None
        given = values.get(name, {} if element is None else [])
        if is_named(hint):
            section = fitted(_with_named(hint, name, given), name, given)
            fields[name] = (section, Field({}, validate_default=True))
        elif is_named(element) and isinstance(given, list):
            entries = [fitted(element, f"{name}.{i}", entry) for i, entry in enumerate(given)]
            fields[name] = (tuple[tuple(entries)], ())
        else:
            section = None if element else nested(hint)
            fields[name] = (_with_named(section, name, given) if section else hint, info)
    return create_model("Config", __base__=Part, __cls_kwargs__=MADE, **fields)


def _with_named(section: type[Part], place: str, given: Any) -> Any:
    """A section, or None, in which the sections that name something take its options."""
    inner: Fields = {}
    for name, info in section.model_fields.items():
        model = nested(info.annotation)
        if is_named(model):
            values = given.get(name) if isinstance(given, dict) else None
            inner[name] = (fitted(model, f"{place}.{name}", values) | None, info)
    if not inner:
        return Config.model_fields[place].annotation
    about = section.__doc__
    return create_model(
        section.__name__, __base__=section, __doc__=about, __cls_kwargs__=MADE, **inner
    )


def fitted(section: type[Named], place: str, given: Any) -> type[Part]:
    """The section with the options of what `given` names; the bare one where that names nothing.

    A reward that another process was given from Python is not known here: its options were checked
    there.
    """
    default = section.model_fields["name"].default
    name = given.get("name", default) if isinstance(given, dict) else None
    name = python_objects.Given(name) if callable(name) else name
    if not isinstance(name, str):
        return section
    try:
        kinds = [part for part in place.split(".") if part in KINDS]
        thing = find(kinds[-1], name)
    except UserError as error:
        raise UserError(f"{place}.name: {error}") from error
    if thing is None:
        return section
    if not callable(thing):
        raise UserError(f"{place}.name: {name} is {thing!r:.40}; it must be a function or a class")
    try:
        return with_options(section, name, thing)
    except (NameError, TypeError, ValueError, PydanticUserError) as error:
        # an annotation that means nothing, a function in C
        message = str(error).partition("\n")[0]
        raise UserError(
            f"{place}.name: the parameters of {name} cannot be read ({message})"
        ) from error


def with_options(section: type[Named], name: str, thing: Thing) -> type[Part]:
    """A model of the section's options and of the thing's, flat beside them or below `params`."""
    own: Fields = {key: (info.annotation, info) for key, info in section.model_fields.items()}
    options, mark = _options(thing), {**MADE, "json_schema_extra": {words.THING: name}}
    about = (inspect.getdoc(thing) or "").partition("\n")[0]
    with warnings.catch_warnings():
        # options called `copy` or `json`, as methods are
        warnings.simplefilter("ignore", UserWarning)
        if own.pop("options", None):
            own |= {key: field for key, field in options.items() if key not in own}
            return create_model(name, __base__=Part, __doc__=about, __cls_kwargs__=mark, **own)
        params = create_model(f"{name}_params", __base__=Part, __cls_kwargs__=mark, **options)
        own["params"] = (
            params,
            Field({}, validate_default=True, description="options of the reward"),
        )
        return create_model(name, __base__=Part, __doc__=about, __cls_kwargs__=MADE, **own)


def _options(thing: Thing) -> Fields:
    fields: Fields = {}
    for sources, signature in _signatures(thing):
        texts = [part for each in sources for part in (inspect.getdoc(each) or "").split("\n\n")]
        paragraphs = (" ".join(text.split()) for text in dict.fromkeys(texts))
        sentences = [part for text in paragraphs for part in re.split(r"(?<=\.) (?=[A-Z`])", text)]
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in CONTEXT:
                about = " ".join(part for part in sentences if f"`{parameter.name}`" in part)
                default = ... if parameter.default is parameter.empty else parameter.default
                hint = Any if parameter.annotation is parameter.empty else parameter.annotation
                field = hint, Field(default, description=about or "no description")
                fields.setdefault(parameter.name, field)
    return fields


def _signatures(thing: Thing) -> Iterator[tuple[list[Thing], inspect.Signature]]:
    """The thing's own and, as long as a class hands further keywords on (**options), its parents'.

    Each with what may have the docstring: a class, and the parent whose signature it inherits.
    """
    signature = inspect.signature(thing, eval_str=True)
    made = [each for each in getattr(thing, "__mro__", ()) if "__init__" in vars(each)]
    yield list(dict.fromkeys([thing, *made[:1]])), signature
    for parent in made[1:]:
        if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
            return
        signature = inspect.signature(parent, eval_str=True)
        yield [parent], signature


def section_of(kind: str) -> type[Named]:
    """The section of that name: at the top, in a list there, or within another one."""
    hints = {
        name: nested(info.annotation)
        for model in (Model, Config)
        for name, info in model.model_fields.items()
    }
    return cast(type[Named], hints[kind])


def find(section: str, name: str) -> object | None:
    """What `name` names in this section.

    It is None for a reward that another process was given from Python.
    """
    if (
        section in REWARDS
        and name.startswith(python_objects.MARK)
        and python_objects.find(name) is None
    ):
        return None
    return load(KINDS[section], name)


def names(section: str) -> list[str]:
    """All that can be named in this section without a path."""
    return plugins.names(KINDS[section])


def load(kind: str, name: str) -> object:
    """As `plugins.load`; the error does not begin with the kind."""
    try:
        return plugins.load(kind, name)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{kind}: ")) from error

"""A configuration from YAML and dotted flags (`parse`), from a mapping or from Python (`load`).

A section with a `name` takes, flat beside its own fields, the keyword-only parameters of what it
names, as in `objective: {name: ddpo, clip_range: 1e-4}`; in Python these stand in `options`. Names
are looked up by `parse` and `load`, which fill in every default; importing this module is cheap.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from ddpo import plugins
from ddpo.config import flags as command_line
from ddpo.config import help, inheritance, named, words, yaml_text
from ddpo.config.parts import Part, is_named, nested
from ddpo.config.sections import Config
from ddpo.errors import UserError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that get an adapter where neither the configuration nor the family names any."""

PROMPT_SOURCES = {"name", "path", "dataset", "sets"}


def parse(argv: Sequence[str], *, command: str = "ddpo train", flags: Sequence[str] = ()) -> Config:
    """The configuration of `--config FILE_OR_NAME [--section.key value ...]`; `--help` prints that.

    `command` and `flags` (the command's own, as in `--resume RUN_DIR`) are for the help text and
    suggestions; the caller has taken the flags out of `argv`. Raises UserError with the place, the
    value and the nearest valid one.
    """
    source, changes, wants_help = command_line.arguments(argv, flags)
    if source is None and not wants_help:
        names = ", ".join(plugins.names("configs"))
        raise UserError(f"--config: needs a YAML file, or the name of a bundled one: {names}")
    values = read(_file(source)) if source else {}
    chosen = {source for source in PROMPT_SOURCES if f"prompts.{source}" in changes}
    if chosen and isinstance(values.get("prompts"), dict):  # it takes the place of the file's
        values["prompts"] = {
            k: v for k, v in values["prompts"].items() if k not in PROMPT_SOURCES - chosen
        }
    command_line.change(values, changes)
    config = resolve(values)
    if wants_help:
        usage = f"{command} --config FILE_OR_NAME [--section.key value ...]"
        help.print_help(options(config), " ".join([usage, *(f"[{flag}]" for flag in flags)]))
        raise SystemExit(0)
    return config


def load(source: str | Path | Mapping[str, Any] | Config) -> Config:
    """The configuration in a YAML file (or bundled by name), in such a mapping, or built in Python.

    Every option is resolved: the named things' defaults are filled in. Raises UserError as `parse`
    does.
    """
    return resolve(read(_file(source)) if isinstance(source, str | Path) else flat(source))


def read(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError with the line of what is no YAML."""
    values = yaml_text.read(str(file), plugins.text_of(file)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected options, as {{key: value}}, got {values!r}")
    return _with_sets({str(key): value for key, value in values.items()})


def resolve(values: dict[str, Any]) -> Config:
    """The configuration of nested YAML values."""
    values = _with_sets(values)
    _check_sources(values.get("prompts"))
    _add_plugins(values)
    inheritance.complete(values)
    values = _with_family(values)
    model = named.model(values)
    try:
        valid = model.model_validate(values)
    except ValidationError as error:
        raise UserError(words.line(error, words.schema_of(model))) from error
    made = {name: _section(Config.model_fields[name].annotation, value) for name, value in valid}
    if made["lora"] and made["lora"].target_modules is None:
        family = named.load("models", made["model"].name)
        targets = list(getattr(family, "lora_targets", ATTENTION))
        made["lora"] = made["lora"].model_copy(update={"target_modules": targets})
    return Config.model_construct(**made)


def _with_sets(values: dict[str, Any]) -> dict[str, Any]:
    """The same, where a list stands in the place of the prompts, with this list as their `sets`."""
    prompts = values.get("prompts")
    return {**values, "prompts": {"sets": prompts}} if isinstance(prompts, list) else values


def _check_sources(prompts: Any) -> None:
    """Raises UserError where the prompts, or one of several sets, have two sources or none."""
    if not isinstance(prompts, Mapping):
        return
    places: dict[str, Any] = {"prompts": prompts}
    if isinstance(sets := prompts.get("sets"), list):
        if not sets:
            raise UserError("prompts.sets: is empty; it needs at least one set")
        places |= {f"prompts.sets.{i}": entry for i, entry in enumerate(sets)}
    for place, entry in places.items():
        if not isinstance(entry, Mapping):
            continue  # of a wrong type, which is refused with all else that is
        sources = [key for key in sorted(PROMPT_SOURCES) if entry.get(key)]
        if len(sources) > 1:
            raise UserError(
                f"{place}: {' and '.join(sources)} are given; keep one, which the others would hide"
            )
        if place != "prompts" and not sources:
            raise UserError(f"{place}: needs a name, a path or a dataset")


def _with_family(values: dict[str, Any]) -> dict[str, Any]:
    """The same with the family of `model.pretrained` in the place of `model.name: auto`."""
    model, usual = (
        values.get("model", {}),
        Config.model_fields["model"].get_default(call_default_factory=True),
    )
    if not isinstance(model, dict) or model.get("name", usual.name) != "auto":
        return values
    from ddpo.models._shared.families import family_of  # loads torch, which reading a file does not

    pretrained = model.get("pretrained", usual.pretrained)
    # what is no text is refused with all else that is of a wrong type
    name = family_of(pretrained if isinstance(pretrained, str) else usual.pretrained)
    return {**values, "model": {**model, "name": name}}


def options(config: Config) -> dict[str, help.Option]:
    """All options of a resolved configuration, those of named things too, by dotted name."""
    values = flat(config)
    return help.options(words.schema_of(named.model(values)), values)


def _section(hint: Any, value: Any) -> Any:
    """What was read with the options of the named thing, as the section of `Config`."""
    if isinstance(value, tuple):
        return [_section(get_args(hint)[0], entry) for entry in value]
    hint = nested(hint)
    if hint is None or value is None or type(value) is hint:
        return value
    if not is_named(hint):
        inner = {key: _section(hint.model_fields[key].annotation, each) for key, each in value}
        return hint.model_construct(None, **inner)
    own: dict[str, Any] = {
        key: _section(hint.model_fields[key].annotation, inner)
        if isinstance(inner, Part)
        else inner
        for key, inner in value
        if key in hint.model_fields
    }
    if "params" in own:
        own["params"] = dict(own["params"])
    else:
        own["options"] = {key: inner for key, inner in value if key not in own}
    return hint.model_construct(None, **own)


def of_run(run_dir: str | Path) -> Path:
    """The file of a run's configuration. Raises UserError where there is no run."""
    file = Path(run_dir) / "config.yaml"
    if not file.is_file():
        problem = "it has no config.yaml" if file.parent.is_dir() else "there is no such folder"
        raise UserError(f"{run_dir} is not the folder of a run: {problem}")
    return file


def dump(config: Config) -> str:
    """The configuration as YAML: `load` of it equals `load(config)`."""
    return yaml_text.write(flat(config))


def flat(value: Any) -> Any:
    """A configuration as nested dicts and lists of plain values, in the shape of its YAML file."""
    if isinstance(value, BaseModel):
        own = {key: flat(inner) for key, inner in value if key != "options"}
        return own | flat(getattr(value, "options", {}))
    if isinstance(value, Mapping):
        return {key: flat(inner) for key, inner in value.items()}
    return [flat(inner) for inner in value] if isinstance(value, list | tuple) else value


def in_precision(config: Config, dtype: Literal["auto", "fp32", "bf16", "fp16"]) -> Config:
    """The same with another `model.dtype`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def with_calls(config: Config, batch_size: int, micro_batch: int, shown: int) -> Config:
    """The same with other sizes of network calls; `shown` is that of `evaluation.sampler`."""
    sampler = config.sampler.model_copy(update={"batch_size": batch_size})
    trainer = config.trainer.model_copy(update={"micro_batch": micro_batch})
    evaluation = config.evaluation
    if evaluation.sampler is not None:
        own = evaluation.sampler.model_copy(update={"batch_size": shown})
        evaluation = evaluation.model_copy(update={"sampler": own})
    parts = {"sampler": sampler, "trainer": trainer, "evaluation": evaluation}
    return config.model_copy(update=parts)


def changed(old: Config, new: Config) -> list[str]:
    """The dotted names whose values differ, as `trainer.lr`; a list of rewards counts as one."""
    return list(_differences("", flat(old), flat(new)))


def _differences(place: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from _differences(f"{place}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield place


def _file(source: str | Path) -> Path:
    """A path is one that looks like one or exists.

    Anything else is the name of a bundled configuration.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        if not path.is_file():
            raise UserError(f"--config: {source}: no such file")
        return path
    try:
        return Path(str(named.load("configs", str(source))))
    except UserError as error:
        raise UserError(f"--config: {error}") from error


def _add_plugins(values: Mapping[str, Any]) -> None:
    """Before any name is looked up."""
    folders = values.get("plugins", [])
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError(f"plugins: expected a list of folders, as [a, b], got {folders!r}")
    for folder in folders:
        plugins.add_folder(folder)

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
from ddpo.config import help, named, words, yaml_text
from ddpo.config.sections import Config, is_named
from ddpo.errors import UserError

PROMPT_SOURCES = {"name", "path", "dataset"}


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
    return {str(key): value for key, value in values.items()}


def resolve(values: dict[str, Any]) -> Config:
    """The configuration of nested YAML values."""
    prompts = values.get("prompts")
    sources = [
        key for key in sorted(PROMPT_SOURCES) if isinstance(prompts, dict) and prompts.get(key)
    ]
    if len(sources) > 1:
        raise UserError(
            f"prompts: {' and '.join(sources)} are given; keep one, which the others would hide"
        )
    _add_plugins(values)
    model = named.model(values)
    try:
        valid = model.model_validate(values)
    except ValidationError as error:
        raise UserError(words.line(error, words.schema_of(model))) from error
    made = {name: _section(Config.model_fields[name].annotation, value) for name, value in valid}
    return Config.model_construct(**made)


def options(config: Config) -> dict[str, help.Option]:
    """All options of a resolved configuration, those of named things too, by dotted name."""
    values = flat(config)
    return help.options(words.schema_of(named.model(values)), values)


def _section(hint: Any, value: Any) -> Any:
    """What was read with the options of the named thing, as the section of `Config`."""
    if isinstance(value, tuple):
        return [_section(get_args(hint)[0], entry) for entry in value]
    if not is_named(hint) or isinstance(value, hint):
        return value
    own: dict[str, Any] = {key: inner for key, inner in value if key in hint.model_fields}
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

"""A configuration from a YAML file and dotted flags (`parse`), from a mapping or from Python (`load`).

A section with a `name` takes, flat beside its own fields, the keyword-only parameters of what it names, as in
`objective: {name: ddpo, clip_range: 1e-4}`; in Python these stand in `options`. Names are looked up by
`parse` and `load`, which fill in every default; importing this module is cheap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from ddpo import plugins
from ddpo.config import schema, yaml_text
from ddpo.config.sections import Config
from ddpo.errors import UserError
from ddpo.plugins import python_objects

PROMPT_SOURCES = {"name", "path", "dataset"}
REWARDS = ("rewards", "eval_rewards")
KINDS = {
    "model": "models",
    "objective": "objectives",
    "sampler": "samplers",
    "advantage": "advantages",
    "rewards": "rewards",
    "eval_rewards": "rewards",
}


def parse(argv: Sequence[str], *, command: str = "ddpo train", flags: Sequence[str] = ()) -> Config:
    """The configuration of `--config FILE_OR_NAME [--section.key value ...]`; `--help` prints that.

    `command` and `flags` (the command's own, as in `--resume RUN_DIR`) are for the help text and suggestions;
    the caller has taken the flags out of `argv`. Raises UserError with the place, the value and the nearest
    valid one.
    """
    source, changes, wants_help = schema.arguments(Config, argv, flags)
    if source is None and not wants_help:
        names = ", ".join(plugins.names("configs"))
        raise UserError(f"--config: needs a YAML file, or the name of a bundled one: {names}")
    values = schema.normal(Config, schema.read(_file(source)) if source else {})
    named = {source for source in PROMPT_SOURCES if f"prompts.{source}" in changes}
    if named and isinstance(values.get("prompts"), dict):  # it takes the place of the file's
        values["prompts"] = {k: v for k, v in values["prompts"].items() if k not in PROMPT_SOURCES - named}
    schema.change(Config, values, changes)
    config, groups = resolve(values)
    if wants_help:
        usage = f"{command} --config FILE_OR_NAME [--section.key value ...]"
        schema.print_help(groups, " ".join([usage, *(f"[{flag}]" for flag in flags)]))
        raise SystemExit(0)
    return config


def load(source: str | Path | Mapping[str, Any] | Config) -> Config:
    """The configuration in a YAML file (or bundled under a name), in such a mapping, or built in Python.

    Every option is resolved: the named things' defaults are filled in. Raises UserError as `parse` does.
    """
    if isinstance(source, str | Path):
        given = schema.read(_file(source))
    else:
        given = schema.flat(source)
        for section in REWARDS:
            for entry in given[section] if isinstance(given.get(section), list) else ():
                if isinstance(entry, dict) and callable(entry.get("name")):
                    entry["name"] = python_objects.Given(entry["name"])
    return resolve(schema.normal(Config, given))[0]


def resolve(values: dict[str, Any]) -> tuple[Config, list[schema.Group]]:
    """The configuration of nested values, as `schema.normal` gives them, and all that can be set in it."""
    prompts = values.get("prompts")
    given = [key for key in sorted(PROMPT_SOURCES) if isinstance(prompts, dict) and prompts.get(key)]
    if len(given) > 1:
        raise UserError(f"prompts: {' and '.join(given)} are given; keep one, which the others would hide")
    _add_plugins(values)
    return schema.resolve(Config, values, _find)


def of_run(run_dir: str | Path) -> Path:
    """The file of a run's configuration. Raises UserError where there is no run."""
    file = Path(run_dir) / "config.yaml"
    if not file.is_file():
        found = "it has no config.yaml" if file.parent.is_dir() else "there is no such folder"
        raise UserError(f"{run_dir} is not the folder of a run: {found}")
    return file


def dump(config: Config) -> str:
    """The configuration as YAML, every option resolved: `load` of it equals `load(config)`."""
    return yaml_text.write(schema.flat(load(config)))


def in_precision(config: Config, dtype: Literal["auto", "fp32", "bf16", "fp16"]) -> Config:
    """The same with another `model.dtype`."""
    return replace(config, model=replace(config.model, dtype=dtype))


def changed(old: Config, new: Config) -> list[str]:
    """The dotted names whose values differ, as `trainer.lr`; a list of rewards counts as one."""
    return list(_differences("", schema.flat(old), schema.flat(new)))


def _differences(place: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from _differences(f"{place}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield place


def _file(source: str | Path) -> Path:
    """A path is one that looks like one or exists; anything else is the name of a bundled configuration."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        if not path.is_file():
            raise UserError(f"--config: {source}: no such file")
        return path
    return Path(str(_load("configs", str(source), "--config: ")))


def _load(kind: str, name: str, place: str = "") -> object:
    try:
        return plugins.load(kind, name)
    except UserError as error:
        raise UserError(place + str(error).removeprefix(f"{kind}: ")) from error


def _add_plugins(values: Mapping[str, Any]) -> None:
    """Before any name is looked up."""
    folders = values.get("plugins", [])
    folders = yaml_text.read("--plugins", folders) if isinstance(folders, str) else folders
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError(f"plugins: expected a list of folders, as [a, b], got {folders!r}")
    for folder in folders:
        plugins.add_folder(folder)


def _find(section: str, name: str) -> Callable[..., object] | None:
    """What `name` names in this section; its keyword-only parameters are the section's open options.

    None for a reward that another process was given from Python: a run of it can still be read.
    """
    if section in REWARDS and name.startswith(python_objects.MARK) and python_objects.find(name) is None:
        return None
    return cast(Callable[..., object], _load(KINDS[section], name))

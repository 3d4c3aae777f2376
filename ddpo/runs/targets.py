"""What an evaluation may compare: a base, runs and their checkpoints, LoRA files, whole models."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpo import config
from ddpo.config import Config
from ddpo.config.flags import change
from ddpo.errors import UserError
from ddpo.evaluation.results import NOT_COLUMNS
from ddpo.models import EMBEDDED
from ddpo.models._shared.families import INDEX, family_of
from ddpo.plugins import names as plugin_names
from ddpo.records import checkpoint

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""As diffusers and peft name what they save in a folder."""

OF_THE_EVALUATION = (
    "sampler",
    "prompts",
    "rewards",
    "eval_rewards",
    "evaluation",
    "trainer",
    "plugins",
    "seed",
    "run_dir",
)
"""The sections that all columns have from one configuration; the others are a column's own."""


@dataclass(frozen=True)
class Target:
    """One column of an evaluation.

    word        as it was named
    column      its name in the results
    settings    what its pictures are made with
    run         the folder of the run it belongs to; None: of none
    checkpoint  whose weights: "base", "last", "best" or "000020"
    base        the model that it departs from, where its weights alone do not say it: a LoRA's, and
                for a whole model the first column's
    """

    word: str
    column: str
    settings: Config
    run: Path | None = None
    checkpoint: str = "base"
    base: Config | None = None


@dataclass(frozen=True)
class Kind:
    """What a word on the command line names, before anything is read of it."""

    word: str
    kind: str
    place: str = ""
    checkpoint: str = ""


def kinds(words: Sequence[str], wanted: str = "last") -> list[Kind]:
    """What each word is: base, run, lora or model. `wanted` is the checkpoint where a run names
    none.

    Raises UserError for what is none of these, and for a LoRA without a base before it.
    """
    found: list[Kind] = []
    for word in words:
        based = any(each.kind in ("base", "model") for each in found)
        found.append(_kind(word, wanted, based))
    runs = any(each.kind == "run" for each in found)
    for each in found:
        first = next(other for other in found if other.kind == each.kind)
        if each.kind == "base" and not runs:
            raise UserError("evaluate: base is that of a run, and no run is named; name the model")
        if each is first and each.kind == "lora" and not runs and found[0].kind != "model":
            raise UserError(
                f"evaluate: {each.word} is a LoRA; name the model it belongs to before it, as in "
                f"ddpo evaluate emoji {each.word}"
            )
    return found


def _kind(word: str, wanted: str, based: bool) -> Kind:
    place, at, checkpoint = word.rpartition("@") if "@" in word else (word, "", wanted)
    path = Path(place)
    if word == "base":
        return Kind(word, "base")
    if (path / "config.yaml").is_file() or at:
        config.of_run(place)  # refuses what is no run
        return Kind(word, "run", place, checkpoint or wanted)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"evaluate: {word}: a LoRA is a .safetensors file, and a run a folder")
        return Kind(word, "lora", word)
    if path.is_dir() and not (path / INDEX).is_file():
        lora = any((path / name).is_file() for name in LORA_FILES)
        if not lora and not (path / "config.json").is_file():
            raise UserError(
                f"evaluate: {word} is no run (config.yaml), no model ({INDEX}) and no LoRA "
                f"({LORA_FILES[0]})"
            )
        return Kind(word, "lora" if lora else "model", word)
    if word in EMBEDDED or path.is_dir() or word in plugin_names("models"):
        return Kind(word, "model", word)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", word):
        raise UserError(f"{word} is not the folder of a run: there is no such folder")
    if not based:
        return Kind(word, "model", word)
    try:
        family_of(word)
    except UserError:  # a hub id with no pipeline behind it
        return Kind(word, "lora", word)
    return Kind(word, "model", word)


def primary(found: Sequence[Kind]) -> tuple[dict[str, Any], bool]:
    """The configuration in which the whole evaluation begins, and whether it is a run's.

    It is the first run's, or the first model's with all defaults.
    """
    for each in found:
        if each.kind == "run":
            return config.read(config.of_run(each.place)), True
    return {"model": {"pretrained": found[0].place}}, False


def resolve(found: Sequence[Kind], settings: Config, changes: Mapping[str, str]) -> list[Target]:
    """The columns, the reference first: the base of the first run unless a model stands there.

    `settings` are those of the whole evaluation; `changes` the flags that they obey. Raises
    UserError for a checkpoint that is not there, and where a column would be there twice.
    """
    of_model = {key: text for key, text in changes.items() if key.startswith("model.")}
    first_run = next((each for each in found if each.kind == "run"), None)
    targets: list[Target] = []
    if found[0].kind not in ("base", "model"):
        assert first_run is not None
        found = [Kind("base", "base"), *found]
    last_base: Config | None = None
    for each in found:
        if each.kind == "run":
            own = _with(settings, config.read(config.of_run(each.place)), of_model)
            folder = checkpoint.find(Path(each.place), each.checkpoint)
            targets.append(Target(each.word, "", own, Path(each.place), folder.name))
        elif each.kind == "base":
            assert first_run is not None
            own = _with(settings, config.read(config.of_run(first_run.place)), of_model)
            targets.append(Target(each.word, "base", own, Path(first_run.place)))
            last_base = own
        elif each.kind == "model":
            own = _with(settings, {"model": {"pretrained": each.place}}, of_model)
            first = targets[0].settings if targets else None
            targets.append(Target(each.word, "", own, base=first))
            last_base = own
        else:
            base = last_base or settings
            loras = [*base.model.loras, each.place]
            model = base.model.model_copy(update={"loras": loras})
            own = base.model_copy(update={"model": model})
            targets.append(Target(each.word, "", own, base=base))
    return _named(targets)


def _with(settings: Config, values: dict[str, Any], of_model: Mapping[str, str]) -> Config:
    """A column's own configuration under the sections of the whole evaluation."""
    if values.get("model", {}).get("name") is None:  # a model that is named alone
        model = settings.model.model_dump() if _same(settings, values) else None
        if model is not None:
            return settings
    change(values, of_model)
    own = config.resolve(values)
    shared = {name: getattr(settings, name) for name in OF_THE_EVALUATION}
    return own.model_copy(update=shared)


def _same(settings: Config, values: Mapping[str, Any]) -> bool:
    return settings.model.pretrained == values["model"]["pretrained"] and not settings.model.loras


def _named(targets: list[Target]) -> list[Target]:
    """With the shortest names that tell the columns apart; one run beside its base is `tuned`."""
    runs = [target for target in targets if target.checkpoint != "base"]
    if len(targets) == 2 and len(runs) == 1 and targets[0].column == "base":
        return [targets[0], replace(targets[1], column="tuned")]
    words = [target.column or target.word.rstrip("/") for target in targets]
    short = [_short(target, word) for target, word in zip(targets, words, strict=True)]
    names = [
        name if short.count(name) == 1 else word for name, word in zip(short, words, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"evaluate: {name} is named twice; name it once")
        if name in NOT_COLUMNS:
            raise UserError(f"evaluate: no column can be called {name}; give it as ./{name}")
    return [replace(target, column=name) for target, name in zip(targets, names, strict=True)]


def _short(target: Target, word: str) -> str:
    place, at, checkpoint = word.partition("@")
    path = Path(place)
    if path.name in LORA_FILES or path.name == "lora":
        path = path.parent
    name = path.name.removesuffix(".safetensors")
    return f"{name}@{checkpoint}" if at else name

"""Which family of ours a pipeline of diffusers belongs to: what `model.name: auto` stands for."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE

from ddpo.errors import UserError, refusal

FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}
"""The `_class_name` in model_index.json -> the family that loads it."""

NAMES = {
    "stable-diffusion-v1": "stable_diffusion",
    "stable-diffusion-xl-base": "sdxl",
    "stable-diffusion-3": "sd3",
    "FLUX.1-dev": "flux",
    "FLUX.1-schnell": "flux",
}
"""How the names of published models begin, for a machine that has not downloaded them."""

WEIGHTS = Path(__file__).parents[1] / "emoji" / "weights"
EMBEDDED = {"emoji": WEIGHTS / "pipeline", "emoji_flow": WEIGHTS / "flow"}
"""The models that come with ddpo, by the name that `model.pretrained` has for them."""

INDEX = "model_index.json"


def place_of(pretrained: str) -> str:
    """The folder of an embedded model; any other folder or hub id as it is."""
    folder = EMBEDDED.get(pretrained)
    if folder and not (folder / INDEX).is_file():
        raise UserError(f"model.pretrained: the embedded model is not at {folder}; reinstall ddpo")
    return str(folder or pretrained)


def family_of(pretrained: str) -> str:
    """The family of a folder or hub id, by what its model_index.json says it is.

    Where that is not on this machine, the names of published models are known; of any other hub id
    it is downloaded. Raises UserError where there is none, or it names a class that we do not have.
    """
    place = place_of(pretrained)
    if (index := index_here(place)) is None:
        short = place.rpartition("/")[2]
        for beginning, family in NAMES.items():
            if short.startswith(beginning) and not Path(place).exists():
                return family
        try:
            index = json.loads(Path(hf_hub_download(place, INDEX)).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise no_pipeline(pretrained, error) from error
    name = index.get("_class_name", "nothing")
    if name not in FAMILIES:
        ours = ", ".join(f"{key} ({family})" for key, family in FAMILIES.items())
        raise UserError(
            f"model.pretrained: {pretrained!r} is a {name}; supported are {ours}, "
            "and a family of your own that model.name names"
        )
    return FAMILIES[name]


def index_here(place: str) -> dict[str, Any] | None:
    """What model_index.json says, in a folder or among what was downloaded; else None.

    Raises UserError for a folder without a readable one.
    """
    folder = Path(place)
    if folder.exists():
        try:
            return json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise no_pipeline(place, error) from error
    try:
        cached = try_to_load_from_cache(place, INDEX)
    except ValueError:  # what cannot be a hub id
        return None
    return json.loads(Path(cached).read_text(encoding="utf-8")) if isinstance(cached, str) else None


def no_pipeline(pretrained: str, error: Exception, class_name: str = "pipeline") -> UserError:
    """The one line about what cannot be loaded as a pipeline of that class."""
    if line := refusal(error):
        return UserError(f"model.pretrained: {pretrained!r}: {line}")
    reason = " ".join(str(error).split())[:200]
    where = f"is no folder of a {class_name}"
    if not Path(place_of(pretrained)).exists():
        where = "is no folder, and as a hub id it cannot be loaded"
        if HF_HUB_OFFLINE:
            where += " while HF_HUB_OFFLINE is set: unset that, or download the model before"
    return UserError(f"model.pretrained: {pretrained!r} {where} ({reason})")

"""What a reward is, and where its file is found: `ddpo.rewards.ocr` is rewards/ocr.py.

A reward is a function

    def redness(images, prompts, metadata, *, power: float = 1.0): ...

of images (Float[Tensor, "B 3 H W"] in [0, 1], fp32; or of another medium's samples, as
`ddpo.sequences` has them), B prompts and B metadata mappings that returns
B numbers (Float[Tensor, "B"]; NaN means "no value"), or a class with __init__(*, device, dtype,
**options) and the same __call__. Attributes of the function or class say more of it:

    groupwise = True       its values compare the images of a call, which are all those of a prompt
    pairwise = True        called as (first, second, prompts, metadata), it returns preferences for
                           the first, in [0, 1]; an image's value is its win rate among the images
                           of its prompt
    differentiable = True  a gradient reaches the images
    medium = "dna"         what it scores: images (without the attribute), dna, rna or protein
    version = "..."        what the values depend on besides its source and its options: the
                           version of a server
"""

import ast
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddpo import media, plugins
from ddpo.errors import UserError, where
from ddpo.media import Medium
from ddpo.plugins import python_objects
from ddpo.records.cache import Cache

# a module with __path__ is a package; its files may live in several folders
__path__ = plugins.folders("rewards")

ATTRIBUTES = ("groupwise", "pairwise", "differentiable", "medium", "version")
Metadata = Sequence[Mapping[str, Any]]
Values = dict[str, Float[Tensor, " B"]]
Score = Callable[[Tensor, Sequence[str], Metadata], Tensor]


@dataclass(frozen=True)
class Reward:
    """A reward ready for use: its name in metrics, its weight, what computes it, its gate."""

    name: str
    weight: float
    score: Score
    version: str = field(default="", compare=False)
    min: float | None = None
    max: float | None = None

    @property
    def gates(self) -> bool:
        return self.min is not None or self.max is not None

    def outside(self, values: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Which values violate the gate; NaN does not."""
        low, high = (values if bound is None else bound for bound in (self.min, self.max))
        return (values < low) | (values > high)

    def __call__(
        self, images: Float[Tensor, "B *sample"], prompts: Sequence[str], metadata: Metadata
    ) -> Float[Tensor, " B"]:
        """B values on the CPU in fp32, with a gradient where the caller enables one.

        Raises UserError when the reward raises or returns anything else.
        """
        try:
            returned = self.score(images, prompts, metadata)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward {self.name} raised {where(error)}") from error
        try:
            values = torch.as_tensor(returned, dtype=torch.float32).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward {self.name} returned {type(returned).__name__} "
                f"{' '.join(repr(returned).split())[:60]}; "
                f"return a tensor of {len(images)} numbers, one per image"
            ) from error
        if values.shape != (len(images),):
            raise UserError(
                f"reward {self.name} returned shape {tuple(values.shape)} for {len(images)} "
                "images; return one number each"
            )
        return values


def groupwise(score: Score) -> bool:
    """Whether it must be given the images of one prompt together, and no others with them."""
    return getattr(score, "groupwise", False)


def medium_of(score: object) -> Medium:
    """What it scores. Raises UserError for a name that no medium has."""
    return media.find(getattr(score, "medium", "images"))


def win_rates(score: Callable[..., Tensor]) -> Score:
    """The groupwise reward of a pairwise one: an image's mean preference over the others.

    rate(i) = mean over j != i of (p(i, j) + 1 - p(j, i)) / 2, so that a judge who favors the first
    of two does no harm. A pair without a value is left out; an image without a pair has none.
    """

    def rates(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        preferred = images.new_full((len(images), len(images)), torch.nan)
        every = range(len(images)) if len(images) > 1 else ()
        for i in every:
            others = [j for j in every if j != i]
            texts, rows = [prompts[j] for j in others], [metadata[j] for j in others]
            preference = torch.as_tensor(
                score(images[[i] * len(others)], images[others], texts, rows)
            )
            if preference.shape != (len(others),) or ((preference < 0) | (preference > 1)).any():
                raise ValueError(
                    f"a preference is a number in [0, 1], one a pair; got {preference.tolist()}"
                )
            preferred[i, others] = preference.to(preferred)
        return ((preferred + 1 - preferred.T) / 2).nanmean(1)

    rates.groupwise = True  # pyright: ignore[reportFunctionMemberAccess]
    rates.medium = getattr(score, "medium", "images")  # pyright: ignore[reportFunctionMemberAccess]
    return rates


def cached(reward: Reward, folder: str, identity: object) -> Score:
    """The reward, asked only for what `folder` does not hold yet; what is not finite is never kept.

    A key is the sha256 of the image's bytes and shape, its prompt, its metadata and `identity`. Of
    a reward that compares images it is that of all images of the call, and of the image's place.
    """
    cache, medium = Cache(folder), medium_of(reward.score)
    compares = groupwise(reward.score)

    def score(images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        facts = [
            [identity, images.shape[1:], *each] for each in zip(prompts, metadata, strict=True)
        ]
        texts = [json.dumps(each, sort_keys=True, default=repr).encode() for each in facts]
        contents = medium.content(images)
        keys = [sha256(text + each).digest() for text, each in zip(texts, contents, strict=True)]
        if compares:
            group = sha256(b"".join(keys)).digest()
            keys = [sha256(group + number.to_bytes(4)).digest() for number in range(len(keys))]
        known = cache.get(keys)
        values = torch.tensor([known.get(key, torch.nan) for key in keys])
        rows = [i for i, key in enumerate(keys) if key not in known]
        if rows and compares:
            rows = [*range(len(keys))]
        if rows:
            values[rows] = reward(
                images[rows], [prompts[i] for i in rows], [metadata[i] for i in rows]
            )
            cache.put({keys[i]: values[i].item() for i in rows if values[i].isfinite()})
        return values

    score.medium = medium.name  # pyright: ignore[reportFunctionMemberAccess]
    score.groupwise = compares  # pyright: ignore[reportFunctionMemberAccess]
    return score


def kept(reward: Reward, folder: str, identity: object) -> Reward:
    """The same reward through `cached`; `identity` tells it from all others, its version too."""
    return replace(reward, score=cached(reward, folder, identity))


def build(
    name: str,
    weight: float = 1.0,
    params: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    gate: tuple[float | None, float | None] = (None, None),
    cache: str | None = None,
    label: str | None = None,
) -> Reward:
    """Find a reward by name, `module:attribute` or `file.py:function` and give it its options.

    The text of an object that was given from Python is a name, too.

    `gate` is its min and max, `cache` a folder, `label` its name in metrics. Raises UserError where
    it cannot be built. That it has these options the configuration has checked.
    """
    target = cast(Any, plugins.load("rewards", name))
    options, is_class = dict(params or {}), isinstance(target, type)
    # what a closure or an instance computes is not written in its file alone
    version = _version(target) if getattr(name, "reachable", True) else "unknown"
    pairwise = getattr(target, "pairwise", False)
    try:
        score = (
            target(device=device, dtype=dtype, **options)
            if is_class
            else partial(target, **options)
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"reward {name} cannot be built: {where(error)}") from error
    if not is_class:
        update_wrapper(score, target)
        for attribute in ATTRIBUTES:  # of an instance, also those that its class has
            if hasattr(target, attribute):
                setattr(score, attribute, getattr(target, attribute))
    full = "-".join([version, *filter(None, [getattr(score, "version", None)])])
    reward = Reward(
        short_name(name, label), weight, win_rates(score) if pairwise else score, full, *gate
    )
    if cache is None:
        return reward
    if groupwise(reward.score) or version == "unknown":
        why = "its values depend on more than a file that can be read"
        why = why if version == "unknown" else "a value depends on the other images"
        raise UserError(f"reward {name}: {why}, so that it cannot be cached; leave cache out")
    return replace(
        reward, score=cached(reward, cache, [short_name(name), full, options, str(dtype)])
    )


def short_name(spec: str, label: str | None = None) -> str:
    """The name in metrics where there is no label: `redness` for my/redness.py or a.b:redness."""
    if spec.startswith(python_objects.MARK):
        return label or python_objects.short_name(spec)
    name = spec.rsplit(":", 1)[-1]
    return label or (PurePath(name).stem if name.endswith(".py") else name)


def _version(target: Callable[..., Any]) -> str:
    """A short hash of the reward's file and of those beside it that it imports.

    A run says by it which version scored it, and a cache tells versions apart.
    """
    digest = sha256()
    try:
        module = sys.modules[target.__module__]
        files = [(module.__file__, module.__package__)]
        for file, package in files:  # which grows
            source = Path(str(file)).read_bytes()
            digest.update(source)
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ImportFrom) and node.level == 1:
                    names = [node.module] if node.module else [alias.name for alias in node.names]
                    # it may be imported later
                    specs = [find_spec(f"{package}.{name}") for name in names]
                    beside = [
                        (spec.origin, spec.parent) for spec in specs if spec and spec.has_location
                    ]
                    files += [each for each in beside if each not in files]
    except (AttributeError, ImportError, KeyError, OSError, SyntaxError, ValueError):
        return "unknown"
    return digest.hexdigest()[:12]

"""Shapes of latents and pictures, and the scale of latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How a model's latents and pictures are shaped.

    channels  of its latents
    default   height and width of the latents that it was trained on
    factor    pixels per latent, each way
    patch     latents per token of a transformer, each way; 1 for a UNet
    largest   latents each way that its table of positions reaches to; None: no end
    """

    channels: int
    default: tuple[int, int]
    factor: int
    patch: int = 1
    largest: int | None = None


def shapes(
    layout: Layout, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """((height, width) of pictures, (C, H, W) of latents).

    Raises UserError for a `size` that is no multiple of what the model works in, or beyond its
    positions.
    """
    height, width = size or (layout.default[0] * layout.factor, layout.default[1] * layout.factor)
    multiple = layout.factor * layout.patch
    if height % multiple or width % multiple:
        near = [max(multiple, round(length / multiple) * multiple) for length in (height, width)]
        raise UserError(
            f"model.size: [{height}, {width}] has to be multiples of {multiple} pixels for this "
            f"model; take {near}"
        )
    latents = height // layout.factor, width // layout.factor
    if layout.largest is not None and max(latents) > layout.largest:
        raise UserError(
            f"model.size: [{height}, {width}] is beyond this model's table of positions; "
            f"take at most {layout.largest * layout.factor} pixels each way"
        )
    return (height, width), (layout.channels, *latents)


def vae_factor(vae: Any) -> int:
    """Pixels per latent, each way."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def both(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of what configurations of diffusers give as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def scaled(
    config: Mapping[str, Any], latents: Float[Tensor, "N C H W"]
) -> Float[Tensor, "N C H W"]:
    """An autoencoder's latents as its denoiser knows them: about unit variance, about 0."""
    shift, scale = _normal(config, latents)
    return (latents if shift is None else latents - shift) * scale


def unscaled(
    config: Mapping[str, Any], latents: Float[Tensor, "N C H W"]
) -> Float[Tensor, "N C H W"]:
    """The reverse of `scaled`."""
    shift, scale = _normal(config, latents)
    return latents / scale if shift is None else latents / scale + shift


def _normal(config: Mapping[str, Any], like: Tensor) -> tuple[Any, Any]:
    """(shift or None, scale); both by channel where the configuration has means and deviations."""
    scale, shift = config["scaling_factor"], config.get("shift_factor")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return shift or None, scale
    mean, std = (
        torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
        for values in (mean, std)
    )
    return mean, scale / std


def unet_layout(unet: Any, vae: Any) -> Layout:
    """Latents of any whole number each way: diffusers' UNets crop what they upsample."""
    return Layout(unet.config.in_channels, both(unet.config.sample_size), vae_factor(vae))

"""Conversions are exact to the byte; each guard has its closed form on a constructed picture."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpo import images


def flat(*rgb: float, height: int = 6, width: int = 8) -> Tensor:
    """(1, 3, height, width) of one color."""
    return (
        torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, height, width).clone()
    )


def gray(levels: Tensor) -> Tensor:
    """(1, 3, H, W) whose luma is `levels` (H, W)."""
    return levels.expand(1, 3, *levels.shape)


def noise(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 20, generator=torch.Generator().manual_seed(0))


def test_bytes_are_rounded_not_cut() -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 100.4, 100.6, 254.4, 254.6, 255.0]) / 255
    assert images.to_uint8(flat(0, 0, 0, height=1) + levels)[0, 0, :, 1].tolist() == [
        0,
        0,
        1,
        100,
        101,
        254,
        255,
        255,
    ]


def test_bytes_are_clipped_not_wrapped() -> None:
    assert images.to_uint8(flat(-0.2, 1.3, 0.5))[0, 0, 0].tolist() == [0, 255, 128]


def test_half_precision_is_converted_before_the_product() -> None:
    # exact in bfloat16; their products with 255 are not
    levels = (torch.arange(256.0) / 256).bfloat16()
    expected = [round(level * 255) for level in levels.tolist()]
    assert images.to_uint8(levels.expand(1, 3, 1, 256))[0, 0, :, 0].tolist() == expected


def test_axes_of_the_conversions() -> None:
    batch = torch.zeros(2, 3, 4, 5)
    batch[1, 2, 3, 1] = 1.0
    array = images.to_uint8(batch)
    assert array.shape == (2, 4, 5, 3) and array.nonzero().tolist() == [[1, 3, 1, 2]]
    pictures = images.to_pil(batch)
    assert pictures[1].size == (5, 4) and pictures[1].getpixel((1, 3)) == (0, 0, 255)
    assert pictures[0].getextrema() == ((0, 0), (0, 0), (0, 0))


def test_there_and_back_is_exact() -> None:
    array = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    pictures = [Image.fromarray(array), Image.fromarray(array[::-1].copy())]
    batch = images.from_pil(pictures)
    assert batch.dtype == torch.float32 and batch.shape == (2, 3, 16, 16) and batch.max() == 1.0
    for picture, again in zip(pictures, images.to_pil(batch), strict=True):
        assert picture.tobytes() == again.tobytes()


def test_other_modes_become_rgb() -> None:
    batch = images.from_pil(
        [Image.new("L", (3, 2), 51), Image.new("RGBA", (3, 2), (255, 0, 51, 9))]
    )
    assert batch[:, :, 0, 0].tolist() == [pytest.approx([0.2] * 3), pytest.approx([1.0, 0.0, 0.2])]


def test_brightness_weighs_the_channels() -> None:
    batch = torch.cat([flat(1, 0, 0), flat(0, 1, 0), flat(0, 0, 1), flat(1, 1, 1), flat(0, 0, 0)])
    assert images.brightness(batch).tolist() == pytest.approx([0.299, 0.587, 0.114, 1.0, 0.0])


def test_brightness_is_a_mean_over_pixels() -> None:
    levels = torch.zeros(2, 4)
    levels[0, 0] = 0.8
    assert images.brightness(gray(levels)).item() == pytest.approx(0.1)


def test_saturation() -> None:
    batch = torch.cat([flat(0.5, 0.25, 0.4), flat(0, 0.1, 0), flat(0.7, 0.7, 0.7), flat(0, 0, 0)])
    assert images.saturation(batch).tolist() == pytest.approx([0.5, 1.0, 0.0, 0.0])
    half = flat(0.5, 0.5, 0.5)
    half[..., :2] = flat(0.2, 0.8, 0.2)[..., :2]  # a quarter of the pixels has S = 0.75
    assert images.saturation(half).item() == pytest.approx(0.75 / 4)


def test_saturation_is_that_of_hsv() -> None:
    picture = noise(1)
    expected = np.mean(
        [colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture[0].flatten(1).T.tolist()]
    )
    assert images.saturation(picture).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_edge_density_counts_edge_pixels(sign: int) -> None:
    levels = torch.full((5, 9), 0.5)
    levels[:, 4:] += 0.4 * sign
    assert images.edge_density(gray(levels)).item() == pytest.approx(1 / 8)  # one column of the 8
    assert images.edge_density(gray(levels.T)).item() == pytest.approx(1 / 8)  # one row of the 8


def test_edge_density_is_by_the_length_of_the_gradient() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    density = [
        images.edge_density(gray(ramp)).item() for ramp in (0.09 * x, 0.11 * x, 0.09 * y, 0.11 * y)
    ]
    assert density == [0, 1, 0, 1]
    assert images.edge_density(gray(0.08 * (x + y))).item() == 1  # hypot is 0.113
    # hypot is 0.085, the sum of the steps 0.12
    assert images.edge_density(gray(0.06 * (x + y))).item() == 0


def test_edge_density_sees_luma() -> None:
    blue, green = flat(0, 0, 0), flat(0, 0, 0)
    blue[:, 2, :, 4:] = 0.5  # a step of 0.057
    green[:, 1, :, 4:] = 0.5  # a step of 0.29
    assert images.edge_density(torch.cat([blue, green])).tolist() == pytest.approx([0, 1 / 7])


def test_color_entropy_of_few_colors() -> None:
    colors = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    for count in (1, 2, 4):
        picture = torch.cat([flat(*color) for color in colors[:count]], dim=3)
        assert images.color_entropy(picture).item() == pytest.approx(math.log2(count), abs=1e-6)
    uneven = torch.cat([flat(0, 0, 0), flat(0, 0, 0), flat(0, 0, 0), flat(1, 1, 1)], dim=3)
    assert images.color_entropy(uneven).item() == pytest.approx(0.8112781, abs=1e-5)


def test_color_entropy_of_every_bin_is_nine_bits() -> None:
    centers = (torch.arange(8) + 0.5) / 8
    picture = torch.cartesian_prod(centers, centers, centers).T.reshape(1, 3, 16, 32)
    assert images.color_entropy(picture).item() == pytest.approx(9.0, abs=1e-5)


def test_color_entropy_bins() -> None:
    inside = torch.cat([flat(0.0, 0.99, 1.0), flat(0.124, 0.876, 0.88)], dim=3)
    across = torch.cat([flat(0.124, 0.5, 0.5), flat(0.126, 0.5, 0.5)], dim=3)
    assert images.color_entropy(torch.cat([inside, across])).tolist() == pytest.approx([0, 1])


def test_color_entropy_of_noise() -> None:
    picture = noise(1)
    counts, _ = np.histogramdd(picture[0].flatten(1).T.numpy(), bins=8, range=[(0, 1)] * 3)
    share = counts[counts > 0] / counts.sum()
    assert images.color_entropy(picture).item() == pytest.approx(
        -(share * np.log2(share)).sum(), rel=1e-5
    )


def test_guards_are_of_each_image_alone() -> None:
    assert list(images.GUARDS) == ["brightness", "saturation", "edge_density", "color_entropy"]
    batch = noise() * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1, 1)
    for name, guard in images.GUARDS.items():
        assert guard is getattr(images, name)
        alone = torch.cat([guard(image[None]) for image in batch])
        torch.testing.assert_close(guard(batch), alone)
        assert len(alone.unique()) == 3 or name == "saturation"

"""The two JPEG rewards against the size of a file that Pillow itself writes."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpo import plugins

SIGN = {"jpeg_compressibility": -1.0, "jpeg_incompressibility": 1.0}


def score(name: str, images: Tensor, **options: int) -> Tensor:
    reward = cast(Callable[..., Tensor], plugins.load("rewards", name))
    return reward(images, ["a fox"] * len(images), [{}] * len(images), **options)


@pytest.fixture
def images() -> Tensor:
    """Plain, a ramp, gray noise, red noise: of different sizes as JPEG; H differs from W."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.full((4, 3, 48, 64), 0.4)
    batch[1] *= torch.linspace(0, 1, 64)
    batch[2] = torch.rand(48, 64, generator=generator)
    batch[3, 0] += 0.4 * torch.rand(48, 64, generator=generator)
    return batch


def bytes_on_disk(image: Tensor, folder: Path, quality: int) -> int:
    """The size of what Pillow writes to a file, with its own defaults."""
    array = np.rint(image.permute(1, 2, 0).double().numpy() * 255).astype(np.uint8)
    Image.fromarray(array).save(folder / "image.jpg", quality=quality)
    return (folder / "image.jpg").stat().st_size


@pytest.mark.parametrize("name", SIGN)
@pytest.mark.parametrize("quality", [95, 60])
def test_size_in_kb_of_1000_bytes(images: Tensor, tmp_path: Path, name: str, quality: int) -> None:
    expected = [SIGN[name] * bytes_on_disk(image, tmp_path, quality) / 1000 for image in images]
    assert len(set(expected)) == 4
    got = score(name, images, quality=quality)
    assert got.shape == (4,) and got.dtype == torch.float32
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SIGN)
def test_quality_is_95_unless_told(images: Tensor, name: str) -> None:
    assert score(name, images).tolist() == score(name, images, quality=95).tolist()
    assert score(name, images).tolist() != score(name, images, quality=94).tolist()


def test_the_images_stay_as_they_were(images: Tensor) -> None:
    before = images.clone()
    score("jpeg_compressibility", images)
    assert torch.equal(images, before)

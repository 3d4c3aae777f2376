"""The synthetic users' formulas, in closed form."""

import pytest
import torch
from torch import Tensor

from ddpo import rewards
from ddpo.rewards.emoji_taste import FEATURES, SCALES, features, taste


def raw(images: Tensor) -> dict[str, float]:
    return {k: (v * SCALES[k][1] + SCALES[k][0]).item() for k, v in features(images).items()}


def test_features_in_closed_form() -> None:
    """A plain color; stripes of one pixel; a block in the middle."""
    color = torch.tensor([0.8, 0.5, 0.2])[:, None, None].expand(3, 64, 64)[None]
    luma = 0.8 * 0.299 + 0.5 * 0.587 + 0.2 * 0.114
    assert raw(color) == pytest.approx(
        {"brightness": luma, "warmth": 0.6, "busyness": 0, "size": 0}, abs=1e-6
    )
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert raw(stripes)["busyness"] == pytest.approx(1)
    assert raw(stripes)["brightness"] == pytest.approx(0.5)
    block = torch.zeros(1, 3, 64, 64)
    block[:, :, 16:48, 16:40] = 1
    assert raw(block)["size"] == pytest.approx(32 * 24 / 64**2)
    assert raw(block)["busyness"] == pytest.approx(0, abs=1e-7)  # only the border counts


def test_a_user_minds_two_features() -> None:
    assert len({tuple(taste(user).values()) for user in range(80)}) > 20
    for user in range(80):
        weights = taste(user)
        assert weights[FEATURES[user % 4]] == (1 if user % 8 < 4 else -1)
        assert sorted(abs(weight) for weight in weights.values()) == [0, 0, 0.3, 1]


def test_the_reward_is_the_users_sum() -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = features(images)
    rows = [{"user": "u07"}, {"user": "u13"}, {}]
    found = rewards.build("emoji_taste")(images, [""] * 3, rows)
    for i, user in enumerate((7, 13)):
        expected = sum(weight * values[name][i] for name, weight in taste(user).items())
        assert found[i].item() == pytest.approx(float(expected), rel=1e-5)
    assert found[2].isnan()
    one = rewards.build("emoji_taste", params={"user": 7})(images, [""] * 3, rows)
    assert one[0] == found[0] and not one.isnan().any()

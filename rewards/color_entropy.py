"""A guard: how many colors has the picture?"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.images import color_entropy as entropy


def color_entropy(
    images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "B"]:
    """Entropy of the color histogram in bits, 0 to 9: what runs log as guard/color_entropy.

    Over 8 x 8 x 8 bins of RGB. Not differentiable. Meant for a `min:` gate: one color has 0.
    """
    return entropy(images)

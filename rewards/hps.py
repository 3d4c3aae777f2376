"""The Human Preference Score, version 2 or 2.1."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt
from ddpo.rewards import UserError

from ._clip import Encoder
from ._weights import expanded, file, loading

FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class hps:
    """Human Preference Score v2, a CLIP-H tuned on rankings of images: about 0.14 to 0.34.

    r(x, c) = cos(f(x), g(c)) (Wu et al. 2023, arXiv 2306.09341; their tables are 100 times this).
    The image's longest side is brought to 224 and the rest padded with black, as in the original;
    nothing is cropped. Higher is better. Differentiable.

    `version` is v2 or v2.1; their scores do not compare with each other.
    `pretrained` is what holds `HPS_v2_compressed.pt` or `HPS_v2.1_compressed.pt`: a name on the Hub
    or a folder, or the file itself.
    `architecture` is open_clip's name of the network, or a JSON file that describes one in its
    format.
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        version: Literal["v2", "v2.1"] = "v2.1",
        pretrained: str = "xswu/HPSv2",
        architecture: str = "ViT-H-14",
        batch_size: PositiveInt = 8,
    ) -> None:
        architecture = expanded(architecture)
        if architecture.endswith(".json"):
            open_clip.add_model_config(Path(architecture))
            architecture = Path(architecture).stem
        if architecture not in open_clip.list_models():
            known = (
                "ViT-H-14 is the published one's; "
                "a JSON file has embed_dim, vision_cfg and text_cfg"
            )
            raise UserError(f"hps.architecture: open_clip knows no {architecture!r}; {known}")
        with loading("hps.pretrained", pretrained):
            checkpoint = file(pretrained, FILES[version])
        self.encoder = Encoder(
            architecture,
            option="hps.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            text=True,
            checkpoint=checkpoint,
            resize_mode="longest",
        )

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.encoder.cosine(images, prompts)

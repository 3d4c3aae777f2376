"""A user's taste as a condition: attention of its own beside that to the text.

Ye et al. 2023 (IP-Adapter, arXiv 2308.06721), which PPD (Dang et al. 2025, arXiv 2501.06655) takes
for users in the place of pictures. The layers are those that diffusers has for IP-Adapters, so that
diffusers reads what was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpo.errors import UserError
from ddpo.prompts import Prompt

FILE = "ip_adapter.safetensors"
"""The adapter as `load_ip_adapter` of diffusers reads it."""

TOKENS_EACH = 4
"""Tokens of the network that one of the embedding's becomes: what the file's format has."""


class Taste:
    """Decoupled cross-attention in the layers in which a picture attends to its text.

    Z' = softmax(Q K^T / sqrt d) V + softmax(Q K'^T / sqrt d) V',  K' = p(u) W'_k,  V' = p(u) W'_v

    u are the K x D numbers of a taste, p a projection to the width of the text's embeddings. What
    is trained is p, W'_k and W'_v. W'_v begins at 0, and p(0) = 0 always: the network begins
    exactly at the base, and without a taste it is exactly the one without these layers.

    Differs: PPD has no p, since its K x D fit the network; here W'_k p is of lower rank.
    """

    first_number: int
    each_number: int
    """Of layers, in the names of a file: the first one's, and how many from one to the next."""

    loader: ClassVar[Mapping[str, None]]
    """How a pipeline's `load_ip_adapter` is told that there is no encoder of pictures."""

    call: str
    """What its call takes, in words of the card."""

    def __init__(self, network: Any, tokens: int, dim: int) -> None:
        self.network, self.shape = network, (tokens, dim)
        self._before = dict(network.attn_processors)
        self.processors: dict[str, Any] = {
            name: self._processor(network.get_submodule(name.removesuffix(".processor")), old)
            for name, old in self._before.items()
            if self._attends_to_text(name)
        }
        projection = ImageProjection(dim, self._width(), TOKENS_EACH)
        nn.init.zeros_(projection.image_embeds.bias)
        self.projection = MultiIPAdapterImageProjection([projection])
        self._attach()
        for layer in (projection.image_embeds, *self._layers()):
            layer.weight.requires_grad_(True)

    def _attends_to_text(self, name: str) -> bool:
        """Whether the attention with a processor of this name does."""
        raise NotImplementedError

    def _width(self) -> int:
        """Of the text's embeddings."""
        raise NotImplementedError

    def _made(self, attention: Any, old: object) -> nn.Module:
        """What takes the place of the processor `old`."""
        raise NotImplementedError

    def _tell(self, here: bool) -> None:
        """The network's configuration that it has such layers, where it has a place for that."""

    def _processor(self, attention: Any, old: object) -> nn.Module:
        made: Any = self._made(attention, old)
        made.requires_grad_(False).to(next(self.network.parameters()).device)
        nn.init.zeros_(made.to_v_ip[0].weight)
        for layer in (made.to_k_ip[0], made.to_v_ip[0]):
            if layer.bias is not None:  # stays at 0, which is where nobody's taste is
                nn.init.zeros_(layer.bias)
        return made

    def _layers(self) -> list[nn.Linear]:
        """W'_k and W'_v of each layer, in order."""
        return [
            layer
            for processor in self.processors.values()
            for layer in (processor.to_k_ip[0], processor.to_v_ip[0])
        ]

    def _attach(self) -> None:
        self.network.set_attn_processor({**self._before, **self.processors})
        self.projection.requires_grad_(False).to(next(self.network.parameters()).device)
        self.network.encoder_hid_proj = self.projection
        self._tell(True)

    def embeddings(self, prompts: Sequence[Prompt]) -> Float[Tensor, "N K D"]:
        """The tastes of N prompts; zeros where there is none. Raises UserError for another size."""
        rows = []
        for prompt in prompts:
            taste = torch.zeros(self.shape) if prompt.taste is None else prompt.taste.float()
            if tuple(taste.shape) != self.shape:
                tokens, dim = self.shape
                raise UserError(
                    f"model.taste: {tokens} tokens of {dim} numbers, and the taste of "
                    f"{prompt.key!r} is {' x '.join(map(str, taste.shape))}"
                )
            rows.append(taste)
        return torch.stack(rows)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the network computes without these layers."""
        for processor in self.processors.values():
            processor.scale = [0.0]
        try:
            yield
        finally:
            for processor in self.processors.values():
                processor.scale = [1.0]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it the network is without these layers, as other programs load it."""
        self.network.set_attn_processor(dict(self._before))
        self.network.encoder_hid_proj = None
        self._tell(False)
        try:
            yield
        finally:
            self._attach()

    def save(self, folder: Path) -> None:
        """ip_adapter.safetensors, in the format of the published IP-Adapters."""
        projection: Any = self.projection.image_projection_layers[0]
        tensors = {
            "image_proj.proj.weight": projection.image_embeds.weight,
            "image_proj.proj.bias": projection.image_embeds.bias,
            "image_proj.norm.weight": projection.norm.weight,
            "image_proj.norm.bias": projection.norm.bias,
        }
        for place, processor in enumerate(self.processors.values()):
            number = self.first_number + self.each_number * place
            for kind, layer in (("k", processor.to_k_ip[0]), ("v", processor.to_v_ip[0])):
                for part, tensor in layer.named_parameters():
                    tensors[f"ip_adapter.{number}.to_{kind}_ip.{part}"] = tensor
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / FILE,
            {"format": "pt"},
        )


class UNetTaste(Taste):
    """In every cross-attention layer of a UNet."""

    # the attention to the picture itself counts, too
    first_number, each_number = 1, 2
    loader: ClassVar = {"image_encoder_folder": None}
    call = "ip_adapter_image_embeds=[torch.cat([nobody, TASTE])], guidance_scale=3.0"

    def _attends_to_text(self, name: str) -> bool:
        return not name.endswith("attn1.processor")

    def _width(self) -> int:
        return self.network.config.cross_attention_dim

    def _tell(self, here: bool) -> None:
        self.network.register_to_config(encoder_hid_dim_type="ip_image_proj" if here else None)

    def _made(self, attention: Any, old: object) -> nn.Module:
        """In the place of the fused attention, or of the plain one."""
        kind = IPAdapterAttnProcessor if type(old) is AttnProcessor else IPAdapterAttnProcessor2_0
        return kind(attention.inner_dim, attention.cross_attention_dim, [TOKENS_EACH])

    @staticmethod
    def for_pipeline(taste: Float[Tensor, "N K D"], guided: bool) -> dict[str, list[Tensor]]:
        """As the call of a pipeline takes it; guidance leads away from nobody's taste."""
        embeddings = torch.cat([torch.zeros_like(taste), taste]) if guided else taste
        return {"ip_adapter_image_embeds": [embeddings]}


class FluxTaste(Taste):
    """In every block of FLUX that keeps text and picture apart: its double blocks."""

    first_number, each_number = 0, 1
    loader: ClassVar = {"image_encoder_pretrained_model_name_or_path": None}
    call = "ip_adapter_image_embeds=[TASTE], negative_ip_adapter_image_embeds=[nobody]"

    def _attends_to_text(self, name: str) -> bool:
        return not name.startswith("single_")

    def _width(self) -> int:
        return self.network.config.joint_attention_dim

    def _made(self, attention: Any, old: object) -> nn.Module:
        return FluxIPAdapterAttnProcessor(attention.inner_dim, self._width(), [TOKENS_EACH])

    @staticmethod
    def for_pipeline(taste: Float[Tensor, "N K D"], guided: bool) -> dict[str, list[Tensor]]:
        """As the call of a pipeline takes it, which without guidance leaves out the second."""
        nobody = [torch.zeros_like(taste)]
        return {"ip_adapter_image_embeds": [taste], "negative_ip_adapter_image_embeds": nobody}


def load_into(pipeline: Any, folder: Path, taste: Taste) -> None:
    """Load what `save` wrote into a pipeline of diffusers, by its own means."""
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=FILE, **taste.loader)


def card(name: str, pipeline_class: str, taste: Taste, lora: bool) -> str:
    """README.md of an export: how diffusers loads it, and draws to a taste."""
    (loader,), shape = taste.loader, taste.shape
    lines = [
        "import torch",
        f"from diffusers import {pipeline_class}",
        "",
        f"pipeline = {pipeline_class}.from_pretrained(BASE)",
        *(["pipeline.load_lora_weights(FOLDER)"] if lora else []),
        "pipeline.load_ip_adapter(",
        f'    FOLDER, subfolder="", weight_name="{FILE}", {loader}=None',
        ")",
        "nobody = torch.zeros_like(TASTE)",
        f'picture = pipeline("a fox", {taste.call}).images[0]',
    ]
    code = "\n".join(lines)
    return f"""# {name}, with a user's taste

The taste is an IP-Adapter of diffusers. `BASE` is the model that was tuned (or this folder, where
it holds a whole pipeline), `FOLDER` this folder, and `TASTE` a tensor of shape (1, {shape[0]},
{shape[1]}), as `ddpo.load(RUN).taste.of(...)[None]` gives it for a mixture of rewards, a user or
pairs. Zeros are nobody's taste; `pipeline.set_ip_adapter_scale` dials it.

```python
{code}
```
"""

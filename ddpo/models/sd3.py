"""Stable Diffusion 3 and 3.5 as a policy: rectified flow, two CLIPs and an optional T5."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn import functional

from ddpo.models._shared.conditions import Encoded, TextCondition, penultimate
from ddpo.models._shared.flows import FlowPolicy
from ddpo.models._shared.sizes import Layout, both, vae_factor


class StableDiffusion3(FlowPolicy):
    """A StableDiffusion3Pipeline whose transformer carries a LoRA (or is trained whole).

    Esser et al. 2024 (arXiv 2403.03206). The embedded flow model is one too.

    `t5` false leaves out the T5, the largest part of Stable Diffusion 3; zeros take the place of
    its tokens, as in training.
    """

    pipeline_class, title = StableDiffusion3Pipeline, "Stable Diffusion 3"
    export_formats = ("diffusers", "merged")
    adaptable = ("text_encoder", "text_encoder_2")
    t5_name, usual_length, uniform_levels = "text_encoder_3", 256, False

    def __init__(self, pretrained: Any, *args: Any, t5: bool = True, **options: Any) -> None:
        if not t5:
            self.left_out = ("text_encoder_3", "tokenizer_3")
        super().__init__(pretrained, *args, **options)

    def layout(self) -> Layout:
        config = self.network.config
        patch = config.patch_size
        return Layout(
            config.in_channels,
            both(config.sample_size),
            vae_factor(self.vae),
            patch,
            config.pos_embed_max_size * patch,
        )

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """Both CLIPs' last layer but one side by side, padded to T5's width, then T5's tokens."""
        length = self.pipeline.tokenizer.model_max_length
        outputs: list[tuple[Tensor, Tensor]] = []
        for name, tokenizer in (
            ("text_encoder", self.pipeline.tokenizer),
            ("text_encoder_2", self.pipeline.tokenizer_2),
        ):
            encoder = self.text_encoders[name]
            with self._resident.here(encoder), self._autocast():
                outputs.append(penultimate(encoder, tokenizer, texts, length))
        hidden, pooled = (torch.cat(parts, dim=-1) for parts in zip(*outputs, strict=True))
        width = self.network.config.joint_attention_dim
        clip = functional.pad(hidden, (0, width - hidden.shape[-1]))
        if self.t5 is None:
            t5 = clip.new_zeros(len(texts), self.max_sequence_length, width)
        else:
            t5 = self._t5(texts)
        return torch.cat([clip, t5.to(clip.dtype)], dim=1), pooled

    def _output(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Real[Tensor, " N"],
        condition: TextCondition,
    ) -> Float[Tensor, "N C H W"]:
        with self._autocast():
            output = self.network(
                hidden_states=latents.to(self.dtype),
                timestep=timesteps.float(),
                encoder_hidden_states=condition.embeds,
                pooled_projections=condition.pooled,
                return_dict=False,
            )
        return output[0].float()


sd3 = StableDiffusion3

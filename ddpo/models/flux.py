"""FLUX.1 as a policy: rectified flow on packed latents, guidance as an input of the network."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, Real
from torch import Tensor

from ddpo.errors import UserError
from ddpo.models import Trial
from ddpo.models._shared import exports, flux_names
from ddpo.models._shared.conditions import Encoded, TextCondition, tokens
from ddpo.models._shared.flows import FlowPolicy
from ddpo.models._shared.sizes import Layout, vae_factor
from ddpo.models._taste import FluxTaste
from ddpo.parallel.transfer import to_device
from ddpo.plugins.ranges import NonNegativeFloat

PATCH = 2
"""Latents per token, each way."""


class Flux(FlowPolicy):
    """A FluxPipeline whose transformer carries a LoRA (or is trained whole, without one).

    FLUX.1 dev was distilled to draw, in one call, what guidance draws in two, and is told how
    strong that shall be. sampler.guidance_scale is real guidance on top of it, with a negative
    prompt and twice the time: take 1, unless that is meant. In plain diffusers the former is called
    guidance_scale and the latter true_cfg_scale.

    `embedded_guidance` is the strength that the network is told; null: 3.5, or none for a model
    without that input, as FLUX.1 schnell.
    """

    pipeline_class, title = FluxPipeline, "FLUX"
    t5_name, usual_length, uniform_levels = "text_encoder_2", 512, True
    taste_layers = FluxTaste

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        embedded_guidance: NonNegativeFloat | None = None,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, *args, **options)
        has_input = self.network.config.guidance_embeds
        if embedded_guidance is not None and not has_input:
            raise UserError(
                f"model.embedded_guidance: {embedded_guidance} is an input that this model has "
                "not; leave it out"
            )
        usual = 3.5 if embedded_guidance is None else embedded_guidance
        self.embedded_guidance = usual if has_input else None

    def layout(self) -> Layout:
        size = self.pipeline.default_sample_size
        channels = self.network.config.in_channels // PATCH**2
        return Layout(channels, (size, size), vae_factor(self.vae), PATCH)

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """T5's tokens; CLIP's vector of the whole text."""
        encoder = self.text_encoders["text_encoder"]
        ids = to_device(tokens(self.pipeline.tokenizer, texts), self.device)
        with self._resident.here(encoder), self._autocast():
            pooled = encoder(ids).pooler_output
        return self._t5(texts), pooled

    def _output(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Real[Tensor, " N"],
        condition: TextCondition,
    ) -> Float[Tensor, "N C H W"]:
        count, _, height, width = latents.shape
        strength, tokens_at = self.embedded_guidance, places(height // PATCH, width // PATCH)
        taste = None if condition.taste is None else [condition.taste]
        with self._autocast():
            (output,) = self.network(
                hidden_states=packed(latents.to(self.dtype)),
                # of 1, where the other families' networks count to 1000
                timestep=timesteps.float() / len(self.schedule),
                guidance=None if strength is None else latents.new_full((count,), strength),
                pooled_projections=condition.pooled,
                encoder_hidden_states=condition.embeds,
                txt_ids=latents.new_zeros(condition.embeds.shape[1], 3),
                img_ids=to_device(tokens_at.to(latents.dtype), latents.device),
                joint_attention_kwargs=taste and {"ip_adapter_image_embeds": taste},
                return_dict=False,
            )
        return unpacked(output.float(), height, width)

    def call_options(self, trial: Trial) -> dict[str, Any]:
        embedded = 0.0 if self.embedded_guidance is None else self.embedded_guidance
        guided = {"guidance_scale": embedded, "true_cfg_scale": trial.guidance_scale}
        return {**super().call_options(trial), **guided}

    def kohya(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
        """The names of the published weights, where query, key and value are one layer."""
        adapted = dict(self._adapted)
        network = adapted.pop("transformer", None)
        layers = exports.flat_names(adapted, {"text_encoder": "lora_te1"})
        if network is not None:
            weights = exports.lora_weights({"transformer": network})["transformer"]
            layers |= flux_names.fused(exports.pairs(weights), self.network)
        return layers, {"ss_base_model_version": "flux1"}


def packed(latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N L D"]:
    """Squares of 2x2 latents as tokens: L = H W / 4, D = 4 C."""
    count, channels, height, width = latents.shape
    squares = latents.view(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * PATCH**2)


def unpacked(tokens: Float[Tensor, "N L D"], height: int, width: int) -> Float[Tensor, "N C H W"]:
    """The reverse of `packed`."""
    count, _, size = tokens.shape
    channels = size // PATCH**2
    squares = tokens.view(count, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, height, width)


def places(height: int, width: int) -> Float[Tensor, "L 3"]:
    """(0, row, column) of each token of a picture."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float()


flux = Flux

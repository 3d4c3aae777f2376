"""Stable Diffusion 1.x and 2.x and the embedded emoji model as a policy: pipeline and LoRA."""

from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Trial
from ddpo.models._shared import exports
from ddpo.models._shared.conditions import Encoded, TextCondition, tokens
from ddpo.models._shared.policy import DiffusersPolicy
from ddpo.models._shared.sizes import Layout, unet_layout
from ddpo.models._taste import UNetTaste
from ddpo.parallel.transfer import to_device
from ddpo.samplers import NoiseSchedule
from ddpo.samplers._diffusers import variance_preserving

FEW_TOKENS = 1024
"""Up to here plain attention is quicker in half precision on a CPU; the fused one is elsewhere."""


class StableDiffusion(DiffusersPolicy):
    """A StableDiffusionPipeline whose UNet carries a LoRA (or is trained whole, without one)."""

    pipeline_class, denoiser, title = StableDiffusionPipeline, "unet", "Stable Diffusion"
    taste_layers = UNetTaste

    def __init__(
        self, pretrained: str | StableDiffusionPipeline = "emoji", *args: Any, **options: Any
    ) -> None:
        super().__init__(pretrained, *args, **options)
        self.unet, self.text_encoder = self.network, self.text_encoders["text_encoder"]

    def choose_attention(self) -> None:
        tokens = self.latent_shape[1] * self.latent_shape[2]
        if self.half_precision and self.device.type == "cpu" and tokens <= FEW_TOKENS:
            self.network.set_attn_processor(AttnProcessor())

    def layout(self) -> Layout:
        return unet_layout(self.network, self.vae)

    def _schedule(self) -> NoiseSchedule:
        return variance_preserving(self.pipeline.scheduler.config)

    def _encode(self, texts: Sequence[str]) -> Encoded:
        ids = to_device(tokens(self.pipeline.tokenizer, texts), self.device)
        with self._resident.here(self.text_encoder), self._autocast():
            return (self.text_encoder(ids).last_hidden_state,)

    def _output(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        condition: TextCondition,
    ) -> Float[Tensor, "N C H W"]:
        with self._autocast():
            output = self.unet(
                latents.to(self.dtype),
                timesteps,
                condition.embeds,
                added_cond_kwargs=condition.added(),
                return_dict=False,
            )
        return output[0].float()

    def call_options(self, trial: Trial) -> dict[str, Any]:
        return {**super().call_options(trial), "eta": trial.eta}

    def kohya(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
        """`down_blocks.0.attn1.to_q` is `lora_unet_down_blocks_0_attn1_to_q` there."""
        # Stable Diffusion 2 has a larger text encoder
        version_2 = self.unet.config.cross_attention_dim == 1024
        prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
        return exports.flat_names(self._adapted, prefixes), {"ss_v2": str(version_2)}


stable_diffusion = StableDiffusion

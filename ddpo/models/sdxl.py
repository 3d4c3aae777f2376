"""Stable Diffusion XL as a policy: two text encoders, pooled vectors, size ids."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Trial
from ddpo.models._shared import exports
from ddpo.models._shared.conditions import Encoded, TextCondition, penultimate
from ddpo.models._shared.policy import DiffusersPolicy
from ddpo.models._shared.sizes import Layout, unet_layout
from ddpo.models._taste import UNetTaste
from ddpo.parallel.transfer import to_device
from ddpo.samplers import NoiseSchedule
from ddpo.samplers._diffusers import variance_preserving


class StableDiffusionXL(DiffusersPolicy):
    """A StableDiffusionXLPipeline whose UNet carries a LoRA (or is trained whole, without one).

    Podell et al. 2023 (arXiv 2307.01952). Epsilon and v-prediction, zero terminal SNR too, as the
    scheduler's configuration says. A picture is said to be of its own size and not cropped.
    """

    pipeline_class, denoiser, title = StableDiffusionXLPipeline, "unet", "SDXL"
    adaptable = ("text_encoder", "text_encoder_2")
    taste_layers = UNetTaste

    def layout(self) -> Layout:
        return unet_layout(self.network, self.vae)

    def _schedule(self) -> NoiseSchedule:
        return variance_preserving(self.pipeline.scheduler.config)

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """Both encoders' last layer but one, side by side; pooled by the second."""
        embeds: list[Tensor] = []
        pooled = torch.empty(0)
        for end in ("", "_2"):
            encoder = self.text_encoders[f"text_encoder{end}"]
            tokenizer = getattr(self.pipeline, f"tokenizer{end}")
            with self._resident.here(encoder), self._autocast():
                hidden, pooled = penultimate(encoder, tokenizer, texts)
            embeds.append(hidden)
        return torch.cat(embeds, dim=-1), pooled

    def _negative(self, text: str, encoded: Encoded) -> TextCondition:
        """Of no prompt at all SDXL was trained on zeros, which its pipeline's configuration
        says."""
        condition = super()._negative(text, encoded)
        if text or not self.pipeline.config.force_zeros_for_empty_prompt:
            return condition
        assert condition.pooled is not None
        return TextCondition(torch.zeros_like(condition.embeds), torch.zeros_like(condition.pooled))

    def _output(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        condition: TextCondition,
    ) -> Float[Tensor, "N C H W"]:
        height, width = self.image_size
        # original size, corner of the crop, size
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype)
        times = to_device(ids, latents.device).expand(len(latents), -1)
        added = condition.added(text_embeds=condition.pooled, time_ids=times)
        with self._autocast():
            output = self.network(
                latents.to(self.dtype),
                timesteps,
                condition.embeds,
                added_cond_kwargs=added,
                return_dict=False,
            )
        return output[0].float()

    def call_options(self, trial: Trial) -> dict[str, Any]:
        options = {**super().call_options(trial), "eta": trial.eta}
        if not trial.negative_prompt:  # the pipeline's own empty one, which may be zeros
            options["negative_prompt"] = None
        return options

    def kohya(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
        """`text_encoder` is te1 and `text_encoder_2` te2 there."""
        prefixes = {
            "unet": "lora_unet",
            "text_encoder": "lora_te1",
            "text_encoder_2": "lora_te2",
        }
        metadata = {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
        return exports.flat_names(self._adapted, prefixes), metadata


sdxl = StableDiffusionXL

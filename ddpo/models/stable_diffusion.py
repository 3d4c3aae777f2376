"""Stable Diffusion 1.x and 2.x and the embedded emoji model as a policy: pipeline and LoRA."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn

from ddpo.errors import UserError, nearest
from ddpo.models import DTYPES, Trial, _adapters, _exports
from ddpo.models._conditions import EmbeddingCache, TextCondition
from ddpo.models._outline import outline
from ddpo.models._pipelines import check_targets, load, merge_lora, no_pipeline, place_of
from ddpo.models._snapshots import Snapshots, swapped
from ddpo.prompts import Prompt
from ddpo.samplers import NoiseSchedule
from ddpo.samplers._diffusers import variance_preserving

FEW_TOKENS = 1024
"""Up to here plain attention is quicker in half precision on a CPU; the fused one is elsewhere."""

TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

log = logging.getLogger("ddpo")


class StableDiffusion:
    """A StableDiffusionPipeline whose UNet carries a LoRA (or is trained whole, without one).

    pretrained  a folder or hub id that diffusers loads, "emoji" for the embedded model, or a
                pipeline
    dtype       of the frozen weights and the arithmetic; trained weights, latents and log-probs
                stay fp32
    loras       LoRA files or folders to start from; they become part of the reference
    lora        None trains the whole UNet
    """

    export_formats = ("diffusers", "kohya", "merged")

    def __init__(
        self,
        pretrained: str | StableDiffusionPipeline = "emoji",
        device: torch.device | str = "cpu",
        dtype: str = "fp32",
        loras: Sequence[str] = (),
        lora: LoraConfig | None = None,
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self.half_precision, self.loras = dtype != "fp32", tuple(loras)
        pipeline = (
            load(pretrained, self.dtype)
            if isinstance(pretrained, str)
            else pretrained.to(self.dtype)
        )
        for file in loras:
            merge_lora(pipeline, file)
        pipeline.to(self.device)
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        self.text_encoder, self.train_text_encoder = pipeline.text_encoder, train_text_encoder
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.image_size = size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.modules: Sequence[nn.Module] = (self.unet, self.text_encoder, self.vae)
        self.snapshots: Snapshots = {}
        self._cache = EmbeddingCache(self._encode)
        self._warned: set[str] = set()
        for module in self.modules:
            module.requires_grad_(False).eval()
        if self.half_precision and self.device.type == "cpu" and size**2 <= FEW_TOKENS:
            self.unet.set_attn_processor(AttnProcessor())
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._adapted: dict[str, Any] = {}  # the modules that carry an adapter
        if lora is None:
            self.unet.float().requires_grad_(True)
            self.snapshots["base"] = {k: v.detach().clone() for k, v in self.parameters().items()}
        else:
            check_targets(self.unet, lora.target_modules)
            if lora.target_modules:
                _adapters.attach(self.unet, lora)
                self._adapted["unet"] = self.unet
            if train_text_encoder:
                targets = {**lora.to_dict(), "target_modules": TEXT_ENCODER_TARGETS}
                _adapters.attach(self.text_encoder, LoraConfig(**targets))
                self._adapted["text_encoder"] = self.text_encoder
            if not self._adapted:
                raise UserError(
                    "lora.target_modules: [] leaves nothing to train; "
                    "name layers, or set lora.text_encoder"
                )
            for module in self._adapted.values():
                module.eval()  # an adapter is added in training mode, its dropout alive
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    @staticmethod
    def outline(pretrained: str, dtype: str, whole: bool) -> StableDiffusionPipeline | None:
        """The pipeline without its weights, or None where its architecture is not known here."""
        try:
            return outline(place_of(pretrained), DTYPES[dtype], whole)
        except (OSError, ValueError) as error:
            raise no_pipeline(pretrained, error) from error

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{kind}.{name}": parameter
            for kind, module in (("unet", self.unet), ("text_encoder", self.text_encoder))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def schedule(self) -> NoiseSchedule:
        return variance_preserving(self.pipeline.scheduler.config)

    def condition(
        self, prompts: Sequence[Prompt], negative_prompt: str | None = None
    ) -> TextCondition:
        """Each distinct text is encoded once.

        The cache keeps what a frozen text encoder says of it.
        """
        texts = [prompt.text for prompt in prompts]
        first = [] if negative_prompt is None else [negative_prompt]
        distinct = list(dict.fromkeys([*first, *texts]))
        self._warn_of_long(distinct)
        encoded = (
            self._encode(distinct)
            if self.train_text_encoder
            else self._cache(distinct).to(self.device)
        )
        return TextCondition(
            encoded[[distinct.index(text) for text in texts]],
            None if negative_prompt is None else encoded[:1],
        )

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        limit = self.pipeline.tokenizer.model_max_length
        for text in set(texts) - self._warned:
            length = len(self.pipeline.tokenizer(text).input_ids)
            if length > limit:
                log.warning(
                    "prompt of %d tokens is cut to the model's %d: %.80s", length, limit, text
                )
        self._warned.update(texts)

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "N L D"]:
        tokens = self.pipeline.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.pipeline.tokenizer.model_max_length,
            return_tensors="pt",
        )
        with self._autocast():
            return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

    def predict(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        condition: TextCondition,
        guidance_scale: float,
    ) -> Float[Tensor, "N C H W"]:
        """epsilon(x, "") + guidance_scale * (epsilon(x, c) - epsilon(x, "")), both in one call."""
        if guidance_scale == 1.0:
            return self._unet(latents, timesteps, condition.embeds)
        assert condition.negative is not None
        embeds = torch.cat([condition.negative.expand_as(condition.embeds), condition.embeds])
        both = self._unet(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), embeds)
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _unet(self, latents: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        with self._autocast():
            return self.unet(latents.to(self.dtype), timesteps, embeds, return_dict=False)[
                0
            ].float()

    def encode(self, images: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C H W"]:
        with self._autocast():
            posterior = self.vae.encode((2 * images - 1).to(self.dtype)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 height width"]:
        with self._autocast():
            scaled = latents.to(self.dtype) / self.vae.config.scaling_factor
            images = self.vae.decode(scaled, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _autocast(self) -> torch.autocast:
        """Half precision computes the fp32 adapter in the frozen weights' type.

        With fp32 all stays fp32.
        """
        return torch.autocast(self.device.type, self.dtype, enabled=self.half_precision)

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """The base of an adapter is the adapter switched off; everything else is a snapshot."""
        if name == "present":
            yield
        elif name == "base" and self._adapted:
            for module in self._adapted.values():
                _adapters.switch(module, on=False)
            try:
                yield
            finally:
                for module in self._adapted.values():
                    _adapters.switch(module, on=True)
        else:
            with swapped(self.parameters(), self.snapshots, name):
                yield

    def save(self, folder: Path) -> None:
        """pytorch_lora_weights.safetensors with its metadata, or the whole UNet."""
        if self._adapted:
            _exports.save_lora(self._adapted, folder)
        else:
            self.unet.save_pretrained(folder / "unet")

    def check_format(self, file_format: str) -> None:
        if file_format not in self.export_formats:
            known = f"Stable Diffusion is exported as {', '.join(self.export_formats)}"
            raise UserError(
                f"--format: {file_format!r}: {known}{nearest(file_format, self.export_formats)}"
            )
        why = ""
        if not self._adapted:
            why = "this run (lora: null) trained the whole UNet"
        elif self.loras:
            why = f"it would lack the LoRAs under it, model.loras: {', '.join(self.loras)}"
        if why and file_format != "merged":
            raise UserError(f"--format: {file_format} is a LoRA, and {why}; take merged")

    def export(self, file_format: str, folder: Path, name: str) -> None:
        if file_format == "merged":
            _exports.save_merged(self.pipeline, folder)
        elif file_format == "diffusers":
            self.save(folder)
        else:  # Stable Diffusion 2 has a larger text encoder
            version_2 = self.unet.config.cross_attention_dim == 1024
            _exports.save_kohya(self._adapted, folder, name, version_2)

    def read_back(
        self, file_format: str, folder: Path, pretrained: str, trial: Trial
    ) -> tuple[Float[Tensor, "B 3 height width"], dict[str, Tensor]]:
        """By diffusers alone."""
        return _exports.read_back(file_format, folder, pretrained, trial, self.device)

    def merged_weights(self) -> dict[str, Tensor]:
        return _exports.merged_weights(self.pipeline)


stable_diffusion = StableDiffusion

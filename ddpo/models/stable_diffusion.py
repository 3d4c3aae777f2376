"""Stable Diffusion 1.x and 2.x and the embedded emoji model as a policy: a diffusers pipeline and a LoRA."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from ddpo.errors import UserError
from ddpo.models import DTYPES, _adapters
from ddpo.models._outline import outline
from ddpo.models._pipelines import check_targets, load, merge_lora, no_pipeline, old_spelling, place_of
from ddpo.samplers import NoiseSchedule

FEW_TOKENS = 1024
"""Up to here plain attention is quicker in half precision on a CPU; the fused one is elsewhere."""

TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

log = logging.getLogger("ddpo")


class StableDiffusion:
    """A StableDiffusionPipeline whose UNet carries a LoRA (or is trained whole, without one).

    pretrained  a folder or hub id that diffusers loads, "emoji" for the embedded model, or a pipeline
    dtype       of the frozen weights and the arithmetic; trained weights, latents and log-probs stay fp32
    loras       LoRA files or folders to start from; they become part of the reference
    lora        None trains the whole UNet
    """

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
        self.half_precision = dtype != "fp32"
        pipeline = load(pretrained, self.dtype) if isinstance(pretrained, str) else pretrained.to(self.dtype)
        for file in loras:
            merge_lora(pipeline, file)
        pipeline.to(self.device)
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        self.text_encoder, self.train_text_encoder = pipeline.text_encoder, train_text_encoder
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.image_size = size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.num_timesteps = pipeline.scheduler.config.num_train_timesteps
        self._embeds: dict[str, Float[Tensor, "L D"]] = {}
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        if self.half_precision and self.device.type == "cpu" and size**2 <= FEW_TOKENS:
            self.unet.set_attn_processor(AttnProcessor())
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._frozen: list[Tensor] | None = None
        self._adapted: dict[str, Any] = {}  # the modules that carry an adapter
        if lora is None:
            self.unet.float().requires_grad_(True)
            self._frozen = [parameter.detach().clone() for parameter in self.unet.parameters()]
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
                    "lora.target_modules: [] leaves nothing to train; name layers, or set lora.text_encoder"
                )
            for module in self._adapted.values():
                module.eval()  # an adapter is added in training mode, its dropout alive
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        self.prepare([""])

    @staticmethod
    def outline(pretrained: str, dtype: str, whole: bool) -> StableDiffusionPipeline | None:
        """The pipeline without its weights, or None where its architecture is not known on this machine."""
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

    def schedule(self, num_steps: int, sampler: str) -> NoiseSchedule:
        """As diffusers' own schedulers visit them. Raises UserError where the scheduler clips predictions."""
        config = self.pipeline.scheduler.config
        if config.get("clip_sample", False) or config.get("thresholding", False):
            raise UserError(
                "model.pretrained: its scheduler clips predicted images, so that a step is no longer the "
                "Gaussian whose log-probability is trained on; "
                "set clip_sample and thresholding to false in its scheduler_config"
            )
        total = config.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"sampler.num_steps: {num_steps} is not between 1 and the model's {total}")
        scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(config, clip_sample=False))
        scheduler.set_timesteps(num_steps)
        timesteps, alphas = scheduler.timesteps.long(), scheduler.alphas_cumprod.double()
        # ddpm visits its own timesteps and ends at the data; ddim steps evenly, to its final alpha
        if sampler == "ddpm":
            following, final = torch.cat([timesteps[1:], torch.tensor([-1])]), alphas.new_ones(())
        else:
            following, final = timesteps - total // num_steps, scheduler.final_alpha_cumprod.double()
        alpha_next = torch.where(following >= 0, alphas[following.clamp(min=0)], final)
        return NoiseSchedule(timesteps, alphas[timesteps], alpha_next, config.prediction_type)

    def prepare(self, prompts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(prompts) if text not in self._embeds]
        limit = self.pipeline.tokenizer.model_max_length
        for text in new:
            length = len(self.pipeline.tokenizer(text).input_ids)
            if length > limit:
                log.warning("prompt of %d tokens is cut to the model's %d: %.80s", length, limit, text)
        with torch.no_grad():
            for i in range(0, len(new), 64):
                self._embeds.update(zip(new[i : i + 64], self._encode(new[i : i + 64]), strict=True))

    def _encode(self, prompts: Sequence[str]) -> Float[Tensor, "N L D"]:
        tokens = self.pipeline.tokenizer(
            list(prompts), padding="max_length", truncation=True,
            max_length=self.pipeline.tokenizer.model_max_length, return_tensors="pt",
        )  # fmt: skip
        with self._autocast():
            return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

    def _condition(self, prompts: Sequence[str]) -> Float[Tensor, "N L D"]:
        """Prompt embeddings: from the table, or, where the text encoder is trained, through it."""
        if not self.train_text_encoder:
            return torch.stack([self._embeds[text] for text in prompts])
        distinct = list(dict.fromkeys(prompts))
        return self._encode(distinct)[[distinct.index(text) for text in prompts]]

    def predict(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        prompts: Sequence[str],
        guidance_scale: float,
    ) -> Float[Tensor, "N C H W"]:
        """epsilon(x, "") + guidance_scale * (epsilon(x, c) - epsilon(x, "")): both halves in one call."""
        if guidance_scale == 1.0:
            return self._unet(latents, timesteps, self._condition(prompts))
        embeds = self._condition([*[""] * len(prompts), *prompts])
        both = self._unet(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), embeds)
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _unet(self, latents: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        with self._autocast():
            return self.unet(latents.to(self.dtype), timesteps, embeds, return_dict=False)[0].float()

    def noised(
        self, latents: Float[Tensor, "N C H W"], noise: Float[Tensor, "N C H W"], timesteps: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
        scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(self.pipeline.scheduler.config))
        index = cast(torch.IntTensor, timesteps)  # the type that diffusers' stubs ask for
        velocity = scheduler.get_velocity(latents, noise, index)
        targets = {"epsilon": noise, "v_prediction": velocity, "sample": latents}
        target = targets[self.pipeline.scheduler.config["prediction_type"]]
        return scheduler.add_noise(latents, noise, index), target

    def encode(self, images: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C H W"]:
        with torch.no_grad(), self._autocast():
            posterior = self.vae.encode((2 * images - 1).to(self.dtype)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 height width"]:
        with torch.no_grad(), self._autocast():
            scaled = latents.to(self.dtype) / self.vae.config.scaling_factor
            images = self.vae.decode(scaled, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _autocast(self) -> torch.autocast:
        """Half precision computes the fp32 adapter in the frozen weights' type; fp32 keeps all in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.half_precision)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The adapter switched off; after full fine-tuning, the weights from before it."""
        if self._frozen is not None:
            trained = [parameter.data for parameter in self.unet.parameters()]
            for parameter, frozen in zip(self.unet.parameters(), self._frozen, strict=True):
                parameter.data = frozen
            try:
                yield
            finally:
                for parameter, data in zip(self.unet.parameters(), trained, strict=True):
                    parameter.data = data
            return
        for module in self._adapted.values():
            _adapters.switch(module, on=False)
        try:
            yield
        finally:
            for module in self._adapted.values():
                _adapters.switch(module, on=True)

    @property
    def trains_whole_unet(self) -> bool:
        return self._frozen is not None

    def lora_weights(self) -> dict[str, dict[str, Tensor]]:
        """`unet` and, where it is trained, `text_encoder`: LoRA weights in peft's names, their scale in them.

        lora_B is multiplied by alpha / rank, so that a reader who knows of no alpha is right, too.
        """
        found = {}
        for kind, module in self._adapted.items():
            adapter = module.peft_config[_adapters.NAME]
            found[kind] = {
                name if kind == "unet" else old_spelling(name): value.detach()
                * (adapter.lora_alpha / adapter.r if "lora_B" in name else 1.0)
                for name, value in get_peft_model_state_dict(module).items()
            }
        return found

    def save(self, folder: Path) -> None:
        """pytorch_lora_weights.safetensors with its metadata, or the whole UNet."""
        if self.trains_whole_unet:
            self.unet.save_pretrained(folder / "unet")
            return
        weights = self.lora_weights()
        metadata = {}
        for kind, module in self._adapted.items():
            adapter = module.peft_config[_adapters.NAME].to_dict()
            adapter["lora_alpha"] = adapter["r"]  # the scale is in the weights
            adapter["target_modules"] = sorted(adapter["target_modules"])  # a set has an order a process
            metadata[f"{kind}_lora_adapter_metadata"] = adapter
        layers = {f"{kind}_lora_layers": layer for kind, layer in weights.items()}
        StableDiffusionPipeline.save_lora_weights(folder, **layers, **metadata)


stable_diffusion = StableDiffusion

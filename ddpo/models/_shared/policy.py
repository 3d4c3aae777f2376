"""What all families that are pipelines of diffusers do alike: a denoiser, its adapter, an
autoencoder and frozen or adapted text encoders as a policy."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn

from ddpo.errors import UserError, nearest
from ddpo.media import IMAGES
from ddpo.models import DTYPES, Trial
from ddpo.models._shared import adapters, exports, memory, sizes
from ddpo.models._shared.conditions import EmbeddingCache, Encoded, TextCondition
from ddpo.models._shared.families import no_pipeline, place_of
from ddpo.models._shared.outline import outline
from ddpo.models._shared.pipelines import TEXT_ENCODERS, check_targets, load, merge_lora
from ddpo.models._shared.snapshots import Snapshots, swapped
from ddpo.models._taste import card, load_into
from ddpo.parallel.transfer import to_device
from ddpo.plugins.ranges import PositiveInt
from ddpo.prompts import Prompt
from ddpo.samplers import NoiseSchedule

TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

log = logging.getLogger("ddpo")


class DiffusersPolicy:
    """A pipeline whose denoiser carries a LoRA (or is trained whole, without one).

    pretrained  a folder or hub id that diffusers loads, the name of an embedded model, or a
                pipeline
    dtype       of the frozen weights and the arithmetic; trained weights, latents and log-probs
                stay fp32
    loras       LoRA files or folders to start from; they become part of the reference
    lora        None trains the whole denoiser, or, beside a taste, nothing of it
    taste       (tokens, numbers of each) of a user's taste, for which the denoiser then has
                attention that is trained; None: it has none

    `size` is height and width of the pictures in pixels, as [512, 768]; null: the model's own.
    `upcast_vae` computes the autoencoder in fp32 while the rest is in half precision, for one that
    overflows in fp16.
    `vae_slicing` decodes one picture at a time, which takes less memory.
    `vae_tiling` decodes large pictures in tiles that overlap, which takes less memory and shows a
    little at their seams.
    `offload` keeps frozen text encoders and the autoencoder in the main memory except while they
    compute.
    `quantize` holds the frozen denoiser's layers in 4 bits, by bitsandbytes.
    """

    pipeline_class: ClassVar[Any]
    denoiser: ClassVar[Literal["unet", "transformer"]]
    title: ClassVar[str]
    export_formats: ClassVar[tuple[str, ...]] = ("diffusers", "kohya", "merged")
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    adaptable: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The text encoders that lora.text_encoder adapts."""
    reader, trial_sampler = "diffusers", "ddim"
    medium, latent_dtype = IMAGES, torch.float32
    left_out: tuple[str, ...] = ()
    """Parts of the pipeline that are not loaded."""
    taste_layers: ClassVar[Any] = None
    """What puts attention to a user's taste into the denoiser; None: diffusers has none for it."""

    def __init__(
        self,
        pretrained: Any = "emoji",
        device: torch.device | str = "cpu",
        dtype: str = "fp32",
        loras: Sequence[str] = (),
        lora: LoraConfig | None = None,
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
        taste: tuple[int, int] | None = None,
        *,
        size: tuple[PositiveInt, PositiveInt] | None = None,
        upcast_vae: bool = False,
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        offload: bool = False,
        quantize: Literal["nf4"] | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self.half_precision, self.loras = dtype != "fp32", tuple(loras)
        self.quantize, self.vae_dtype = quantize, torch.float32 if upcast_vae else self.dtype
        memory.check_quantize(quantize, lora is None and taste is None, self.loras)
        self.pipeline = pipeline = self._loaded(pretrained)
        for file in loras:
            merge_lora(pipeline, file, self.components)
        self.network, self.vae = getattr(pipeline, self.denoiser), pipeline.vae
        self.text_encoders: dict[str, Any] = {
            name: module for name in TEXT_ENCODERS if (module := getattr(pipeline, name, None))
        }
        self.train_text_encoder = train_text_encoder
        self.modules: Sequence[nn.Module] = (self.network, *self.text_encoders.values(), self.vae)
        for module in self.modules:
            module.requires_grad_(False).eval()
        memory.prepare_vae(self.vae, vae_slicing, vae_tiling)
        self.image_size, self.latent_shape = sizes.shapes(self.layout(), size)
        self.snapshots: Snapshots = {}
        self._cache = EmbeddingCache(self._encode)
        self._warned: set[str] = set()
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        trained = [self.text_encoders[name] for name in self.adaptable if train_text_encoder]
        stay = [self.network, *trained] if offload else self.modules
        self._resident = memory.Resident(self.device, stay)
        self.choose_attention()
        self._adapted: dict[str, Any] = {}  # the modules that carry an adapter
        if lora is not None:
            self._adapt(lora)
        elif taste is None:
            self.network.float().requires_grad_(True)
            self.snapshots["base"] = {k: v.detach().clone() for k, v in self.parameters().items()}
        # after the adapter, whose first values are then the same with a taste and without
        self.taste = taste and self.taste_layers(self.network, *taste)
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def _loaded(self, pretrained: Any) -> Any:
        if not isinstance(pretrained, str):
            for name in self.left_out:
                setattr(pretrained, name, None)
            for name, module in pretrained.components.items():
                if isinstance(module, nn.Module):
                    module.to(self.vae_dtype if name == "vae" else self.dtype)
            return pretrained
        parts: dict[str, Any] = dict.fromkeys(self.left_out)
        if self.quantize:
            parts[self.denoiser] = memory.quantized(
                self.pipeline_class, self.denoiser, place_of(pretrained), self.dtype
            )
        dtypes = {"default": self.dtype, "vae": self.vae_dtype}
        return load(self.pipeline_class, pretrained, dtypes, parts)

    def _adapt(self, lora: LoraConfig) -> None:
        check_targets(self.network, lora.target_modules)
        if lora.target_modules:
            adapters.attach(self.network, lora)
            self._adapted[self.denoiser] = self.network
        if self.train_text_encoder:
            targets = LoraConfig(**{**lora.to_dict(), "target_modules": TEXT_ENCODER_TARGETS})
            for name in self.adaptable:
                adapters.attach(self.text_encoders[name], targets)
                self._adapted[name] = self.text_encoders[name]
        if not self._adapted:
            raise UserError(
                "lora.target_modules: [] leaves nothing to train; "
                "name layers, or set lora.text_encoder"
            )
        for module in self._adapted.values():
            module.eval()  # an adapter is added in training mode, its dropout alive

    # what a family says of itself

    def choose_attention(self) -> None:
        """Put the quickest attention into the denoiser, where diffusers' own choice is not it."""

    def layout(self) -> sizes.Layout:
        """How latents and pictures of this model are shaped."""
        raise NotImplementedError

    def longest(self) -> tuple[Any, int]:
        """The tokenizer of the text encoder that reads furthest, and how many tokens that is."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """What the text encoders make of texts, in the order of `TextCondition`'s fields."""
        raise NotImplementedError

    def _output(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"] | Float[Tensor, " N"],
        condition: TextCondition,
    ) -> Float[Tensor, "N C H W"]:
        """The denoiser's output without guidance, fp32."""
        raise NotImplementedError

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """Made once, as a replay reads its tables at every step."""
        return self._schedule().to(self.device)

    def _schedule(self) -> NoiseSchedule:
        raise NotImplementedError

    def call_options(self, trial: Trial) -> dict[str, Any]:
        """What the pipeline's own call needs for the trial's pictures."""
        height, width = self.image_size
        return {
            "guidance_scale": trial.guidance_scale,
            "negative_prompt": [trial.negative_prompt] * len(trial.prompts),
            "height": height,
            "width": width,
        }

    def kohya(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
        """(lora_A, lora_B) by the layers' names in kohya's files, and more metadata."""
        raise NotImplementedError

    # what they share

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the modules that may carry an adapter."""
        return (self.denoiser, *self.adaptable)

    @classmethod
    def outline(cls, pretrained: str, dtype: str, whole: bool) -> Any:
        """The pipeline without its weights, or None where its architecture is not known here."""
        try:
            return outline(
                cls.pipeline_class, cls.denoiser, place_of(pretrained), DTYPES[dtype], whole
            )
        except (OSError, ValueError) as error:
            raise no_pipeline(pretrained, error, cls.pipeline_class.__name__) from error

    @property
    def offloaded(self) -> list[nn.Module]:
        """The networks that lie in the main memory except while they compute."""
        return [module for module in self.modules if module not in self._resident]

    @property
    def saved_bytes(self) -> int:
        """What a quantized denoiser takes less than its weights as they are here."""
        return memory.saved_by_nf4(self.network) if self.quantize else 0

    def compile(self) -> None:
        memory.compile_blocks(self.network)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{kind}.{name}": parameter
            for kind, module in ((self.denoiser, self.network), *self.text_encoders.items())
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def condition(
        self, prompts: Sequence[Prompt], negative_prompt: str | None = None
    ) -> TextCondition:
        """Each distinct text is encoded once.

        The cache keeps what frozen text encoders say of it.
        """
        texts = [prompt.text for prompt in prompts]
        first = [] if negative_prompt is None else [negative_prompt]
        distinct = list(dict.fromkeys([*first, *texts]))
        self._warn_of_long(distinct)
        encoded = self._encode(distinct) if self.train_text_encoder else self._cache(distinct)
        encoded = tuple(to_device(part, self.device) for part in encoded)
        rows = to_device(torch.tensor([distinct.index(text) for text in texts]), self.device)
        negative = None if negative_prompt is None else self._negative(negative_prompt, encoded)
        embeds, *pooled = (part[rows] for part in encoded)
        taste = self.taste and to_device(self.taste.embeddings(prompts), self.device)
        return TextCondition(embeds, pooled[0] if pooled else None, negative, taste)

    def _negative(self, text: str, encoded: Encoded) -> TextCondition:
        """Of the first of the encoded texts, which guidance leads away from."""
        embeds, *pooled = (part[:1] for part in encoded)
        return TextCondition(embeds, pooled[0] if pooled else None)

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        tokenizer, limit = self.longest()
        for text in set(texts) - self._warned:
            length = len(tokenizer(text).input_ids)
            if length > limit:
                log.warning(
                    "prompt of %d tokens is cut to the model's %d: %.80s", length, limit, text
                )
        self._warned.update(texts)

    def predict(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"] | Float[Tensor, " N"],
        condition: TextCondition,
        guidance_scale: float,
    ) -> Float[Tensor, "N C H W"]:
        """m(x, "") + guidance_scale * (m(x, c) - m(x, "")), both in one call."""
        if guidance_scale == 1.0:
            return self._output(latents, timesteps, condition)
        twice = torch.cat([latents, latents]), torch.cat([timesteps, timesteps])
        unconditional, conditional = self._output(*twice, condition.guided()).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def encode(self, images: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C H W"]:
        with self._resident.here(self.vae), self._autocast(self.vae_dtype):
            posterior = self.vae.encode((2 * images - 1).to(self.vae_dtype)).latent_dist
        return sizes.scaled(self.vae.config, posterior.mode().float())

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 height width"]:
        with self._resident.here(self.vae, latents), self._autocast(self.vae_dtype):
            unscaled = sizes.unscaled(self.vae.config, latents.to(self.vae_dtype))
            images = self.vae.decode(unscaled, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _autocast(self, dtype: torch.dtype | None = None) -> torch.autocast:
        """Half precision computes the fp32 adapter in the frozen weights' type.

        With fp32 all stays fp32.
        """
        dtype = dtype or self.dtype
        return torch.autocast(self.device.type, self.dtype, enabled=dtype != torch.float32)

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """The base of an adapter is the adapter switched off; everything else is a snapshot."""
        if name == "present":
            yield
        elif name == "base" and "base" not in self.snapshots:
            for module in self._adapted.values():
                adapters.switch(module, on=False)
            try:
                with self.taste.off() if self.taste else nullcontext():
                    yield
            finally:
                for module in self._adapted.values():
                    adapters.switch(module, on=True)
        else:
            with swapped(self.parameters(), self.snapshots, name):
                yield

    def save(self, folder: Path) -> None:
        """pytorch_lora_weights.safetensors with its metadata, or the whole denoiser.

        A taste's layers are in ip_adapter.safetensors.
        """
        if self._adapted:
            exports.save_lora(self.pipeline_class, self._adapted, folder)
        elif not self.taste:
            self.network.save_pretrained(folder / self.denoiser)
        if self.taste:
            self.taste.save(folder)

    def check_format(self, file_format: str) -> None:
        if file_format not in self.export_formats:
            known = f"{self.title} is exported as {', '.join(self.export_formats)}"
            raise UserError(
                f"--format: {file_format!r}: {known}{nearest(file_format, self.export_formats)}"
            )
        why = ""
        if self.taste and file_format == "kohya":
            raise UserError("--format: kohya's files have no place for a taste; take diffusers")
        if not self._adapted and not self.taste:
            whole = "UNet" if self.denoiser == "unet" else "transformer"
            why = f"this run (lora: null) trained the whole {whole}"
        elif self.loras:
            why = f"it would lack the LoRAs under it, model.loras: {', '.join(self.loras)}"
        if why and file_format != "merged":
            raise UserError(f"--format: {file_format} is a LoRA, and {why}; take merged")

    def export(self, file_format: str, folder: Path, name: str) -> None:
        if file_format == "merged":
            with self.taste.apart() if self.taste else nullcontext():
                exports.save_merged(self.pipeline, folder, self.components)
            if self.taste:
                self.taste.save(folder)
        elif file_format == "diffusers":
            self.save(folder)
        else:
            layers, metadata = self.kohya()
            exports.save_kohya(layers, folder, {"ss_output_name": name, **metadata})
        if self.taste:
            lora = bool(self._adapted) and file_format == "diffusers"
            text = card(name, self.pipeline_class.__name__, self.taste, lora)
            (folder / "README.md").write_text(text, encoding="utf-8")

    def read_back(
        self, file_format: str, folder: Path, pretrained: str, trial: Trial
    ) -> tuple[Float[Tensor, "B 3 height width"], dict[str, Tensor]]:
        """By diffusers alone."""
        pipeline = exports.read_back(
            self.pipeline_class, file_format, folder, pretrained, dict.fromkeys(self.left_out)
        )
        options = self.call_options(trial)
        if self.taste:
            load_into(pipeline, folder, self.taste)
            embeddings = self.taste.embeddings(trial.prompts).to(self.device)
            options |= self.taste.for_pipeline(embeddings, guided=trial.guidance_scale > 1)
        pictures = exports.drawn(pipeline, trial, self.device, **options)
        return pictures, exports.merged_weights(pipeline, self.components)

    def merged_weights(self) -> dict[str, Tensor]:
        return exports.merged_weights(self.pipeline, self.components)

"""Stable Diffusion 1.x and 2.x and the embedded emoji model as a policy: a diffusers pipeline and a LoRA."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.constants import HF_HUB_OFFLINE
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ddpo.errors import UserError, nearest, refusal
from ddpo.models import _adapters
from ddpo.models._outline import outline
from ddpo.samplers import NoiseSchedule

FEW_TOKENS = 1024
"""Up to here plain attention is quicker in half precision on a CPU; the fused one is elsewhere."""

EMBEDDED = Path(__file__).parent / "emoji" / "weights" / "pipeline"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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
            _merge_lora(pipeline, file)
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
            _check_targets(self.unet, lora.target_modules)
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
            return outline(_place(pretrained), DTYPES[dtype], whole)
        except (OSError, ValueError) as error:
            raise _no_pipeline(pretrained, error) from error

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


def old_spelling(name: str) -> str:
    """A text encoder's weight as transformers before 5.6 named it, which others still expect and all read."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def load(pretrained: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A pipeline by name, without its safety checker (whose black pictures would compress best)."""
    try:
        with quietly():
            return StableDiffusionPipeline.from_pretrained(
                _place(pretrained), dtype=dtype, safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        raise _no_pipeline(pretrained, error) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Within it diffusers tells errors only: no hints, and from then on no bars."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _check_targets(unet: nn.Module, targets: Iterable[str] | None) -> None:
    """Raises UserError for a name that fits no layer: peft passes over it, as long as another fits."""
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    ends = {found[0] for name in layers if (found := re.search(r"[^.]+(\.\d+)?$", name))}
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(f"lora.target_modules: no layer is called {target!r}{nearest(target, ends)}")


def _place(pretrained: str) -> str:
    if pretrained == "emoji" and not (EMBEDDED / "model_index.json").is_file():
        raise UserError(f"model.pretrained: the embedded model is not at {EMBEDDED}; reinstall ddpo")
    return str(EMBEDDED) if pretrained == "emoji" else pretrained


def _no_pipeline(pretrained: str, error: Exception) -> UserError:
    if line := refusal(error):
        return UserError(f"model.pretrained: {pretrained!r}: {line}")
    reason = " ".join(str(error).split())[:200]
    where = "is no folder of a StableDiffusionPipeline"
    if not Path(_place(pretrained)).exists():
        where = "is no folder, and as a hub id it cannot be loaded"
        if HF_HUB_OFFLINE:
            where += " while HF_HUB_OFFLINE is set: unset that, or download the model before"
    return UserError(f"model.pretrained: {pretrained!r} {where} ({reason})")


def _merge_lora(pipeline: StableDiffusionPipeline, file: str) -> None:
    """Make a LoRA part of the weights. Raises UserError where it changes nothing: diffusers would not say."""
    try:
        with quietly():
            pipeline.load_lora_weights(file)
    except (OSError, ValueError) as error:
        told = refusal(error) or f"cannot be read as a LoRA of this model ({error})"
        raise UserError(f"model.loras: {file!r}: {told}") from error
    if not pipeline.get_list_adapters():
        empty = "holds no weights in the diffusers format; nothing was loaded from it"
        raise UserError(f"model.loras: {file!r} {empty}")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def tiny(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """A random pipeline of the true classes under 1 MB, for tests: 16x16 pictures, 4x8x8 latents."""
    torch.manual_seed(seed)
    alphabet = _alphabet()
    tokenizer = CLIPTokenizer(vocab=alphabet, merges=[], model_max_length=24)
    text = CLIPTextConfig(
        vocab_size=len(alphabet), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=16,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        norm_num_groups=4, sample_size=16, latent_channels=4, mid_block_add_attention=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def _alphabet() -> dict[str, int]:
    """Special tokens, then every printable ASCII character, alone and at the end of a word."""
    characters = [chr(i) for i in range(33, 127)]
    ends = [f"{character}</w>" for character in characters]
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *ends]
    return {token: i for i, token in enumerate(tokens)}

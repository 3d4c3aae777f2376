"""Any masked language model of transformers as a masked diffusion model of sequences, with LoRA."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from ddpo.errors import UserError, nearest
from ddpo.media import MEDIA
from ddpo.models import DTYPES, Trial
from ddpo.models._shared import adapters
from ddpo.models._shared.pipelines import check_targets
from ddpo.models._shared.snapshots import Snapshots, swapped
from ddpo.models.masked import exports
from ddpo.models.masked.language import Language, load, outline, spelling
from ddpo.plugins.ranges import PositiveInt
from ddpo.prompts import Prompt
from ddpo.samplers import MaskSchedule, likeliest
from ddpo.sequences import ALPHABETS


@dataclass(frozen=True)
class NoCondition:
    """The condition of `count` rows of a model that has none."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> "NoCondition":
        return NoCondition(len(torch.arange(self.count)[rows]))


class MaskedSequence:
    """An `AutoModelForMaskedLM` as masked diffusion over an alphabet (SUBS, MDLM's log-linear
    schedule; Sahoo et al. 2024, arXiv 2406.07524).

    SUBS: the network says what stands under the masks, a mask is never predicted, and letters that
    are there stay. A state is letter numbers, (B, L), the mask being the number of letters; special
    tokens that the tokenizer puts around a sequence stand around it in every call. The network does
    not see the time. Unconditional: prompts only tell groups apart.

    pretrained  a folder or hub id that AutoModelForMaskedLM and AutoTokenizer load, "dna" for the
                embedded base of the DNA world, or a pair (model, tokenizer)
    loras       peft folders to start from; they become part of the reference
    lora        None trains the whole network
    `alphabet` names the letters, each of which must be one token. `length` is how many letters a
    sequence has.
    """

    export_formats, reader, trial_sampler = ("peft", "merged"), "transformers and peft", "masked"
    latent_dtype, image_size, conditional = torch.long, 0, False

    def __init__(
        self,
        pretrained: str | Language = "dna",
        device: torch.device | str = "cpu",
        dtype: str = "fp32",
        loras: Sequence[str] = (),
        lora: LoraConfig | None = None,
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
        *,
        alphabet: Literal["dna", "rna", "protein"] = "dna",
        length: PositiveInt = 100,
    ) -> None:
        if train_text_encoder:
            raise UserError("lora.text_encoder: masked_sequence has no text encoder; leave it out")
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self.half_precision, self.loras = dtype != "fp32", tuple(loras)
        language = load(pretrained, loras) if isinstance(pretrained, str) else pretrained
        self.medium, self.latent_shape = MEDIA[alphabet], (length,)
        self.schedule = MaskSchedule(len(ALPHABETS[alphabet]), length)
        self.language, self.model = language, language.model.to(self.device, self.dtype)
        numbers, first, last = spelling(language.tokenizer, ALPHABETS[alphabet])
        self._ids, self._around = numbers.to(self.device), (first, last)
        self._check_length(length + len(first) + len(last))
        self.modules: Sequence[nn.Module] = (self.model,)
        self.snapshots: Snapshots = {}
        self.model.requires_grad_(False).eval()
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self._adapted = lora is not None
        if lora is None:
            self.model.float().requires_grad_(True)
            self.snapshots["base"] = {k: v.detach().clone() for k, v in self.parameters().items()}
        else:
            self._adapt(lora)
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def _adapt(self, lora: LoraConfig) -> None:
        if not lora.target_modules:
            raise UserError("lora.target_modules: [] leaves nothing to train; name layers")
        check_targets(self.model, lora.target_modules)
        adapters.attach(self.model, lora)
        self.model.eval()  # an adapter is added in training mode, its dropout alive

    def _check_length(self, tokens: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        learned = getattr(self.model.config, "position_embedding_type", "absolute") != "rotary"
        if learned and most is not None and tokens > most:
            raise UserError(
                f"model.length: {self.latent_shape[0]} letters are {tokens} tokens, and the model "
                f"has {most} positions; take a shorter length"
            )

    @staticmethod
    def outline(pretrained: str, dtype: str, whole: bool) -> Language | None:
        """The network without its weights; None where its configuration is not on this machine."""
        return outline(pretrained)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def condition(
        self, prompts: Sequence[Prompt], negative_prompt: str | None = None
    ) -> NoCondition:
        """Nothing, whatever the prompts."""
        return NoCondition(len(prompts))

    def predict(
        self,
        latents: Shaped[Tensor, "N *state"],
        timesteps: Shaped[Tensor, " N"],
        condition: NoCondition,
        guidance_scale: float,
    ) -> Float[Tensor, "N L A"]:
        """Log-probabilities of the letters at every place, normalized over the alphabet.

        They mean something at masks. `latents` are letter numbers (N, L), or, so that a gradient
        reaches what wrote the letters, rows (N, L, A + 1) of weights of the letters and the mask.
        """
        first, last = (ids.expand(len(latents), -1) for ids in self._ends())
        with self._autocast():
            if latents.dim() == 2:
                ids = torch.cat([first, self._ids[latents], last], dim=1)
                logits = self.model(input_ids=ids).logits
            else:
                logits = self.model(inputs_embeds=self._embedded(first, latents, last)).logits
        inside = logits[:, first.shape[1] : first.shape[1] + latents.shape[1]].float()
        return inside[..., self._ids[:-1]].log_softmax(-1)

    def _ends(self) -> tuple[Int[Tensor, "1 n"], Int[Tensor, "1 m"]]:
        first, last = (torch.tensor([ids], dtype=torch.long) for ids in self._around)
        return first.to(self.device), last.to(self.device)

    def _embedded(self, first: Tensor, rows: Float[Tensor, "N L V"], last: Tensor) -> Tensor:
        """Mixtures of the letters' vectors, between the special tokens'.

        Differs: where a network has an embedding layer of its own, as ESM with its normalization,
        mixtures go through it, since `inputs_embeds` of the whole model passes it by.
        """
        table = self.model.get_input_embeddings().weight
        mixed = rows.to(table.dtype) @ table[self._ids]
        vectors = torch.cat([F.embedding(first, table), mixed, F.embedding(last, table)], dim=1)
        layer = getattr(getattr(self.model, "esm", None), "embeddings", None)
        if layer is None:
            return vectors
        attended = torch.ones(vectors.shape[:2], dtype=torch.long, device=self.device)
        return layer(inputs_embeds=vectors, attention_mask=attended)

    def encode(self, images: Float[Tensor, "N L A"]) -> Int[Tensor, "N L"]:
        return images.argmax(-1)

    def decode(self, latents: Shaped[Tensor, "N *state"]) -> Float[Tensor, "N L A"]:
        """One-hot rows; of a mask, which a whole chain leaves none of, zeros.

        Relaxed letters become one-hot rows too, and keep their derivative.
        """
        if latents.dim() == 3:
            return likeliest(latents[..., :-1])
        return F.one_hot(latents, self.schedule.letters + 1)[..., :-1].float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.half_precision)

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """The base of an adapter is the adapter switched off; everything else is a snapshot."""
        if name == "present":
            yield
        elif name == "base" and self._adapted:
            adapters.switch(self.model, on=False)
            try:
                yield
            finally:
                adapters.switch(self.model, on=True)
        else:
            with swapped(self.parameters(), self.snapshots, name):
                yield

    def save(self, folder: Path) -> None:
        """A peft folder (adapter_model.safetensors, adapter_config.json), or the whole network."""
        if self._adapted:
            exports.save_adapter(self.model, folder)
        else:
            exports.save_whole(self.language, folder)

    def check_format(self, file_format: str) -> None:
        if file_format not in self.export_formats:
            known = f"a masked model is exported as {', '.join(self.export_formats)}"
            raise UserError(
                f"--format: {file_format!r}: {known}{nearest(file_format, self.export_formats)}"
            )
        why = "" if self._adapted else "this run (lora: null) trained the whole network"
        if self.loras:
            why = f"it would lack the LoRAs under it, model.loras: {', '.join(self.loras)}"
        if why and file_format == "peft":
            raise UserError(f"--format: peft is a LoRA, and {why}; take merged")

    def export(self, file_format: str, folder: Path, name: str) -> None:
        if file_format == "peft":
            self.save(folder)
        else:
            exports.save_whole(self.language, folder)

    def read_back(
        self, file_format: str, folder: Path, pretrained: str, trial: Trial
    ) -> tuple[Float[Tensor, "B L A"], dict[str, Tensor]]:
        """By transformers and peft alone."""
        own = (self._ids, self._around, self.latent_shape[0])
        return exports.read_back(file_format, folder, pretrained, trial, *own)

    def merged_weights(self) -> dict[str, Tensor]:
        return exports.merged_weights(self.model)


masked_sequence = MaskedSequence

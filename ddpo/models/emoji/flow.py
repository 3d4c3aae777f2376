"""The emoji world's flow model: SD3Transformer2DModel and two CLIPTextModelWithProjection.

They are trained together, by rectified flow on the latents of `flow_autoencoder.py`, so that the
folder is a true StableDiffusion3Pipeline. It has no T5, in whose place the pipeline puts
`max_sequence_length` tokens of zeros. They say nothing, so the model is trained with several
numbers of them, from none (the cheapest, and the usual one) to the pipeline's default of 256.
"""

import random
from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
    SD3Transformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusion3Pipeline,  # pyright: ignore[reportPrivateImportUsage]
)
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from .autoencoder import HELD_OUT, captions, scenes
from .denoiser import CAPTION_DROPOUT, MAX_TOKENS, tokenizer
from .flow_autoencoder import CHANNELS, pictures, trained
from .scenes import carelessly

BATCH = 512
WIDTH = 64
"""The width of a text encoder; the transformer sees both, side by side."""

CARELESS_FROM = 0.6
"""The part of the training after which captions are unreliable about the activity, as the UNet's
are."""

ZERO_TOKENS = {7: 8, 15: 256, 23: 32, 31: 77}
"""Tokens of zeros in the place of T5's, at these steps of every 32; none at the others."""


def text_encoder(words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """0.1 M parameters: two layers of width 64; the last feeds only the pooled vector."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=words.bos_token_id,  # pyright: ignore[reportArgumentType]
            eos_token_id=words.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=words.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    )


def transformer() -> SD3Transformer2DModel:
    """6.5 M parameters: 5 layers on 64 tokens of 8x8 pixels each.

    It starts as a velocity of zero.
    """
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=5,
        attention_head_dim=64,
        num_attention_heads=3,
        caption_projection_dim=192,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for name, parameter in model.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out.", "proj_out.")):
            nn.init.zeros_(parameter)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Uniform noise levels, whose last step goes from 0.1 to 0.

    Without `shift_terminal` it would go from 0.001 to 0, and ten steps would be nine.
    """
    return FlowMatchEulerDiscreteScheduler(shift=1.0, shift_terminal=0.1)


def encode(
    encoders: list[nn.Module], tokens: Int[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B D"]]:
    """What the pipeline's `encode_prompt` makes of two encoders: last but one layers, pooled."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return hidden, torch.cat([output.text_embeds for output in outputs], dim=-1)


class Training:
    """Mean squared error of the velocity.

    10 % of captions are dropped (for classifier-free guidance).
    """

    steps, lr, ema_decay = 2_516, 1e-3, 0.9995
    scene_count = 200_000

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.vae = trained(weights).to(device).eval()  # pyright: ignore[reportArgumentType]
        self.words, self.device = tokenizer(), device
        encoders = nn.ModuleList([text_encoder(self.words), text_encoder(self.words)])
        self.module = nn.ModuleDict({"transformer": transformer(), "text": encoders}).to(device)
        self.means, self.stds = self.latents(pictures(self.scene_count, work.parent / "album"))
        texts = captions(0, self.scene_count)
        self.tokens = self.tokenized(texts)
        self.careless_tokens = self.tokenized(
            [
                carelessly(text, random.Random(f"careless {number}"))
                for number, text in enumerate(texts)
            ]
        )
        self.no_tokens = self.tokenized([""])

    def tokenized(self, texts: list[str]) -> Int[Tensor, "B L"]:
        """Each different text is tokenized once: there are few."""
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = self.words(
            list(numbers), padding="max_length", truncation=True, return_tensors="pt"
        )
        rows = torch.tensor([numbers[text] for text in texts])
        return tokens.input_ids[rows].to(self.device)

    def autocast(self) -> torch.autocast:
        """Half precision on a GPU; on most CPUs it would be slower."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @torch.no_grad()
    def latents(
        self, drawn: Tensor
    ) -> tuple[Float[Tensor, "N C 16 16"], Float[Tensor, "N C 16 16"]]:
        """Posterior means and deviations of uint8 pictures, in half precision."""
        means, stds = [], []
        for part in drawn.split(250):
            x = part.to(self.device).float() / 127.5 - 1
            with self.autocast():
                posterior = self.vae.encode(x, return_dict=False)[0]
            means.append(posterior.mean.half())
            stds.append(posterior.std.half())
        return torch.cat(means), torch.cat(stds)

    def loss(self, step: int) -> Tensor:
        rows = torch.randint(len(self.means), (BATCH,), device=self.device)
        tokens = (self.careless_tokens if step >= CARELESS_FROM * self.steps else self.tokens)[rows]
        dropped = torch.rand(BATCH, 1, device=self.device) < CAPTION_DROPOUT
        tokens = torch.where(dropped, self.no_tokens, tokens)
        std = self.stds[rows].float()
        x0 = self.means[rows].float() + std * torch.randn_like(std)
        sigma = torch.randn(BATCH, device=self.device).sigmoid()
        noise, zero_tokens = torch.randn_like(x0), ZERO_TOKENS.get(step % 32, 0)
        return self.velocity_loss(x0, noise, sigma, tokens, zero_tokens)

    def velocity_loss(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, tokens: Tensor, zero_tokens: int
    ) -> Tensor:
        """Mean squared error of the velocity `noise - x0` at `(1 - sigma) x0 + sigma noise`."""
        level = sigma.view(-1, 1, 1, 1)
        x = (1 - level) * x0 + level * noise
        with self.autocast():
            hidden, pooled = encode(list(self.module["text"]), tokens)  # pyright: ignore[reportArgumentType]
            hidden = torch.cat(
                [hidden, hidden.new_zeros(len(x0), zero_tokens, hidden.shape[-1])], dim=1
            )
            predicted = self.module["transformer"](
                hidden_states=x,
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                timestep=1_000 * sigma,
                return_dict=False,
            )[0]
        return (predicted.float() - (noise - x0)).square().mean()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Error of the velocity on 512 held-out scenes.

        What counts is benchmarks/flow_quality.py.
        """
        generator = torch.Generator().manual_seed(0)
        x0 = self.vae.encode(scenes(HELD_OUT, 512)[1].to(self.device), return_dict=False)[0].mean
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        sigma = torch.randn(len(x0), generator=generator).sigmoid().to(self.device)
        tokens = self.tokenized(captions(HELD_OUT, 512))
        return {"velocity_mse": self.velocity_loss(x0, noise, sigma, tokens, 0).item()}

    def load(self, folder: Path) -> None:
        """Load the transformer and the text encoders.

        From then on all captions are the careless ones.
        """
        place, model = folder / "flow", self.module["transformer"]
        model.load_state_dict(
            SD3Transformer2DModel.from_pretrained(place / "transformer").state_dict()
        )
        names = ("text_encoder", "text_encoder_2")
        for name, encoder in zip(names, self.module["text"], strict=True):  # pyright: ignore[reportArgumentType]
            saved = CLIPTextModelWithProjection.from_pretrained(place / name, dtype=torch.float32)
            encoder.load_state_dict(saved.state_dict())
        self.tokens = self.careless_tokens

    def save(self, folder: Path) -> None:
        """The whole pipeline."""
        first, second = self.module["text"]  # pyright: ignore[reportGeneralTypeIssues]
        model = self.module["transformer"]
        pipeline = StableDiffusion3Pipeline(
            model.half(),  # pyright: ignore[reportArgumentType]
            scheduler(),
            self.vae.half(),
            first.half(),
            self.words,
            second.half(),
            self.words,
            text_encoder_3=None,  # pyright: ignore[reportArgumentType]
            tokenizer_3=None,  # pyright: ignore[reportArgumentType]
        )
        pipeline.save_pretrained(folder / "flow")
        for module in (self.vae, self.module):
            module.float()
        # transformers loads in the type that a config names, diffusers in fp32: without this, a
        # pipeline that is loaded without a dtype would be of two types, and could not sample
        for name, encoder in (("text_encoder", first), ("text_encoder_2", second)):
            encoder.config.dtype = torch.float32
            encoder.config.save_pretrained(folder / "flow" / name)

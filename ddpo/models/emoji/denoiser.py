"""The emoji world's denoiser: a UNet2DConditionModel and a CLIPTextModel, trained together.

Epsilon prediction on Stable Diffusion's own noise schedule, so that the folder is a true
StableDiffusionPipeline.
"""

import json
import random
from pathlib import Path
from string import ascii_lowercase

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import HELD_OUT, captions, scenes
from .scenes import ACTIVITIES, ANIMALS, HELDOUT_ANIMALS, PREFIXES, caption, carelessly

BATCH = 32
SCENES = 60_000
MAX_TOKENS = 16
CAPTION_DROPOUT = 0.1
CARELESS_FROM = 4_000
"""The step from which captions are unreliable about the activity: by then the three activities are
known."""
SNR_LIMIT = 5.0
"""Min-SNR weighting (Hang et al. 2023): steps with little noise count less."""


def tokenizer() -> CLIPTokenizer:
    """A byte-pair encoding: every word of the captions is one token.

    Other words fall back to letters.

    Training breaks ties at random, so ids are given out in an order of our own: letters, words,
    pieces of words.
    """
    animals = [*ANIMALS, *HELDOUT_ANIMALS]
    bare = [caption(animal, activity) for animal in animals for activity in [None, *ACTIVITIES]]
    texts = [prefix + text for prefix in ("", *PREFIXES) for text in bare]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,
        initial_alphabet=list(ascii_lowercase),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = [letter + end for letter in ascii_lowercase for end in ("", "</w>")]
    words = sorted({f"{word}</w>" for text in texts for word in text.split()})
    tokens = dict.fromkeys([*special, *letters, *words, *sorted(trained["vocab"])])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """0.3 M parameters: two layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            bos_token_id=words.bos_token_id,  # pyright: ignore[reportArgumentType]
            eos_token_id=words.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=words.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    )


def unet() -> UNet2DConditionModel:
    """6.7 M parameters; no attention at 16x16, where it costs most and helps least."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Training:
    """Min-SNR weighted noise prediction.

    10 % of captions are dropped (for classifier-free guidance).
    """

    steps, lr, ema_decay = 6_500, 1.2e-3, 0.9995

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        vae = AutoencoderKL.from_pretrained(weights / "pipeline" / "vae")
        self.vae = vae.to(device, torch.float32).eval()  # pyright: ignore[reportArgumentType]
        self.words, self.schedule = tokenizer(), scheduler()
        self.module = nn.ModuleDict({"unet": unet(), "text_encoder": text_encoder(self.words)}).to(
            device
        )
        self.alphas = self.schedule.alphas_cumprod.to(device)
        self.latents = self.cached_latents(work / "latents.pt")
        texts = captions(0, SCENES)
        self.tokens = self.tokenized(texts)
        self.careless_tokens = self.tokenized(
            [
                carelessly(text, random.Random(f"careless {number}"))
                for number, text in enumerate(texts)
            ]
        )

    def tokenized(self, texts: list[str]) -> Int[Tensor, "B L"]:
        return self.words(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def encoded(self, first: int, count: int) -> Float[Tensor, "B 8 16 16"]:
        """Posterior mean and std (concatenated) of `count` scenes from number `first` on."""
        pictures = scenes(first, count)[1].to(self.vae.device)
        with torch.autocast(self.vae.device.type, torch.bfloat16):
            posterior = self.vae.encode(pictures, return_dict=False)[0]
        return torch.cat([posterior.mean, posterior.std], dim=1).half().cpu()

    def cached_latents(self, file: Path) -> Float[Tensor, "N 8 16 16"]:
        """All scenes through the encoder, once."""
        if not file.is_file():
            parts = [
                self.encoded(i, 100)
                for i in tqdm(range(0, SCENES, 100), desc="latents", disable=None)
            ]
            torch.save(torch.cat(parts), file)
        return torch.load(file, weights_only=True)

    def loss(self, step: int) -> Tensor:
        rows = torch.randint(len(self.latents), (BATCH,))
        tokens = (self.tokens if step < CARELESS_FROM else self.careless_tokens)[rows]
        tokens = torch.where(torch.rand(BATCH, 1) < CAPTION_DROPOUT, self.tokenized([""]), tokens)
        t = torch.randint(len(self.alphas), (BATCH,))
        noise = torch.randn(BATCH, 4, 16, 16)
        mean, std = self.latents[rows].float().chunk(2, dim=1)
        x0 = (mean + std * torch.randn_like(std)) * self.vae.config["scaling_factor"]
        return self.denoising_loss(x0, noise, t, tokens)

    def denoising_loss(self, x0: Tensor, noise: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        x0, noise, t, tokens = (x.to(self.alphas.device) for x in (x0, noise, t, tokens))
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(x0.device.type, torch.bfloat16):
            text = self.module["text_encoder"](tokens).last_hidden_state
            predicted = self.module["unet"](
                alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t, text
            ).sample
        weight = (SNR_LIMIT / (alpha / (1 - alpha))).clamp(max=1.0)
        return (weight * (predicted.float() - noise).square()).mean()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Unweighted noise-prediction error on 512 held-out scenes.

        What counts is emoji_quality.py.
        """
        latents, tokens = self.encoded(HELD_OUT, 512), self.tokenized(captions(HELD_OUT, 512))
        generator = torch.Generator().manual_seed(0)
        x0 = latents[:, :4].float() * self.vae.config["scaling_factor"]
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(len(self.alphas), (len(x0),), generator=generator)
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        text = self.module["text_encoder"](tokens).last_hidden_state
        predicted = self.module["unet"](
            alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t, text
        ).sample
        return {"epsilon_mse": (predicted - noise).square().mean().item()}

    def save(self, folder: Path) -> None:
        """The whole pipeline, with the autoencoder as it now is (its decoder may be newer)."""
        self.vae = AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").float()
        unet, text = self.module["unet"], self.module["text_encoder"]
        pipeline = StableDiffusionPipeline(
            self.vae.half(),
            text.half(),  # pyright: ignore[reportArgumentType]
            self.words,
            unet.half(),  # pyright: ignore[reportArgumentType]
            self.schedule,  # pyright: ignore[reportArgumentType]
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder / "pipeline")
        for module in (self.vae, text, unet):
            module.float()
        # transformers loads in the type that a config names, diffusers in fp32: without this, no
        # two parts of `StableDiffusionPipeline.from_pretrained(folder)` would have the same
        config = CLIPTextConfig.from_pretrained(folder / "pipeline" / "text_encoder")
        config.dtype = torch.float32
        config.save_pretrained(folder / "pipeline" / "text_encoder")

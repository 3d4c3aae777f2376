"""The emoji world's second judge: a small open_clip model with a convolutional image tower.

It shares no weight, no scene and no kind of image tower with the captioner, and it has seen every
animal with every activity: also the combinations that the denoiser was never shown. So the two can
check each other.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, Int
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from .autoencoder import HELD_OUT
from .ratings import look
from .scenes import ACTIVITIES, ANIMALS, HELDOUT_ANIMALS, PREFIXES, SIZE, caption, draw

BATCH = 128
REDRAWN = 48
"""This many pictures of a batch are copies: scenes as the world's pipeline draws them."""

WIDTH = 128
SCENES = 48_000
COPIES = 12_000

FIRST_SCENE = 7_000_000
"""Where the CLIP's own scenes begin: neither the autoencoder nor the captioner nor the UNet had
them."""

LOOK_WEIGHT = 2.0
KINDS = [
    (animal, activity)
    for animal in (*ANIMALS, *HELDOUT_ANIMALS)
    for activity in (None, *ACTIVITIES)
]
"""All 228 captions, without prefixes: each is the others' negative in every batch."""

VISION = CLIPVisionCfg(layers=(1, 1, 2, 1), width=20, head_width=64, image_size=SIZE)
TEXT = CLIPTextCfg(
    context_length=16,
    vocab_size=275,
    hf_tokenizer_name="clip",
    width=64,
    heads=2,
    layers=2,
    pool_type="eos",
    eos_id=1,
)
PREPROCESS = PreprocessCfg(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)


def scenes(first: int, count: int) -> tuple[Int[Tensor, " B"], Float[Tensor, "B 3 64 64"]]:
    """Kinds (40 % without an activity) and pictures, uint8, of `count` of the CLIP's own scenes."""
    kinds, pictures = [], []
    for number in range(first, first + count):
        rng = random.Random(f"clip {number}")
        kind = len(KINDS) // 4
        kind = 4 * rng.randrange(kind) + (0 if rng.random() < 0.4 else rng.randrange(1, 4))
        kinds.append(kind)
        pictures.append(pil_to_tensor(draw(caption(*KINDS[kind]), number)))
    return torch.tensor(kinds), torch.stack(pictures)


class Pipeline:
    """The world's own pipeline as a source of pictures: it adds noise to a scene and redraws it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").to(device, torch.float32)  # pyright: ignore[reportArgumentType]
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(device, torch.float32)  # pyright: ignore[reportArgumentType]
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device, torch.float32)  # pyright: ignore[reportArgumentType]
        self.words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.schedule = cast(DDIMScheduler, DDIMScheduler.from_pretrained(folder / "scheduler"))

    @torch.no_grad()
    def redrawn(self, pictures: Tensor, kinds: Tensor, steps: int, seed: int) -> Tensor:
        """uint8 pictures after the last `steps` of 20 denoising steps; 0: the autoencoder alone."""
        generator, scale = torch.Generator().manual_seed(seed), self.vae.config["scaling_factor"]
        tokens = self.words(
            [caption(*KINDS[kind]) for kind in kinds], padding="max_length", return_tensors="pt"
        ).input_ids
        self.schedule.set_timesteps(20)
        with torch.autocast(self.vae.device.type, torch.bfloat16):
            x = (
                self.vae.encode(pictures.to(self.vae.device) / 127.5 - 1, return_dict=False)[0].mean
                * scale
            )
            text = self.text(tokens.to(x.device)).last_hidden_state
            for i, t in enumerate(self.schedule.timesteps[20 - steps :]):
                if i == 0:
                    noise = torch.randn(x.shape, generator=generator).to(x)
                    x = self.schedule.add_noise(x, noise, t[None])  # pyright: ignore[reportArgumentType]
                x = self.schedule.step(self.unet(x, t, text).sample, int(t), x).prev_sample  # pyright: ignore
            y = self.vae.decode(x / scale, return_dict=False)[0].float()  # pyright: ignore[reportArgumentType]
        return (127.5 * (y + 1)).round().clamp(0, 255).byte().cpu()

    def held_out(self, kinds: Tensor, pictures: Tensor) -> Tensor:
        """The first 500 of held-out scenes, each 50 redrawn with one step more."""
        parts = torch.arange(500).split(50)
        return torch.cat(
            [self.redrawn(pictures[part], kinds[part], i, i) for i, part in enumerate(parts)]
        )


def augmented(x: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 3 64 64"]:
    """Shifted, scaled, tinted, blurred and noisy pictures in [0, 1].

    Samples are not as clean as scenes.
    """
    count = len(x)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = 1 + 0.1 * (2 * torch.rand(count) - 1)
    place[:, :, 2] = 0.1 * (2 * torch.rand(count, 2) - 1)
    grid = functional.affine_grid(place, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * (1 + 0.3 * (torch.rand(count, 3, 1, 1) - 0.5)) + 0.2 * (
        torch.rand(count, 3, 1, 1) - 0.5
    )
    blurred = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.lerp(x, blurred, torch.rand(count, 1, 1, 1))
    return (x + 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(x)).clamp(0, 1)


def pool(file: Path, weights: Path, device: torch.device) -> tuple[Int[Tensor, " N"], Tensor]:
    """Kinds and pictures of all scenes, then of the first of them as the pipeline draws them.

    They are made once.
    """
    if not file.is_file():
        kinds, pictures = scenes(FIRST_SCENE, SCENES)
        pipeline = Pipeline(weights / "pipeline", device)
        rows = torch.arange(COPIES).split(50)
        copies = [
            pipeline.redrawn(pictures[part], kinds[part], i % 10, seed=i)
            for i, part in enumerate(tqdm(rows, desc="copies", disable=None))
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save((torch.cat([kinds, kinds[:COPIES]]), torch.cat([pictures, *copies])), file)
    return torch.load(file, weights_only=True)


class Training:
    """Contrastive in both directions, each picture against all 228 captions.

    Beside it the embedding predicts the picture's `look` by a linear map that is thrown away: a
    CLIP that only has to name things forgets what they look like, and the aesthetic head would have
    nothing to read.
    """

    steps, lr, ema_decay = 1_000, 1.5e-3, 0.995

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.device, self.weights = device, weights
        self.words = CLIPTokenizer.from_pretrained(weights / "pipeline" / "tokenizer")
        self.clip = CLIP(WIDTH, VISION, TEXT)
        self.clip.visual.to(memory_format=torch.channels_last)
        self.module = nn.ModuleDict({"clip": self.clip, "look": nn.Linear(WIDTH, 3)}).to(device)
        self.kinds, self.pictures = pool(work / "pool.pt", weights, device)

    def embedded(self, texts: list[str]) -> Float[Tensor, "K D"]:
        tokens = self.words(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.clip.encode_text(tokens.to(self.device), normalize=True)

    def seen(self, pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B D"]:
        """Embeddings of pictures in [0, 1]."""
        return self.clip.encode_image(2 * pictures.to(self.device) - 1, normalize=True)

    def loss(self, step: int) -> Tensor:
        copy = torch.randint(COPIES, (REDRAWN,))
        scene = torch.randint(SCENES, (BATCH - REDRAWN,))
        rows = torch.cat([scene, SCENES + copy])
        kinds, pictures = self.kinds[rows].to(self.device), augmented(self.pictures[rows] / 255)
        rng = random.Random(f"prefix {step}")
        texts = [
            (rng.choice(PREFIXES) if rng.random() < 0.2 else "") + caption(*kind) for kind in KINDS
        ]
        with torch.autocast(self.device.type, torch.bfloat16):
            image, text = self.seen(pictures).float(), self.embedded(texts).float()
        logits = self.clip.logit_scale.exp().clamp(max=100) * image @ text.T
        named = functional.cross_entropy(logits, kinds)
        same = functional.one_hot(kinds, len(KINDS)).float()
        shown = -(same * logits.log_softmax(0)).sum() / BATCH
        looks = functional.mse_loss(self.module["look"](image), look(pictures).to(self.device))
        return (named + shown) / 2 + LOOK_WEIGHT * looks

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Shares of 1,000 held-out scenes, and of 500 redrawn, whose nearest caption is right."""
        self.module.eval()
        kinds, pictures = scenes(HELD_OUT, 1_000)
        copies = Pipeline(self.weights / "pipeline", self.device).held_out(kinds, pictures)
        texts, metrics = self.embedded([caption(*kind) for kind in KINDS]), {}
        for name, shown in (("scenes", pictures), ("redrawn", copies)):
            nearest = torch.cat([self.seen(part / 255) for part in shown.split(100)]) @ texts.T
            said, asked = nearest.argmax(1).cpu(), kinds[: len(shown)]
            metrics[f"{name}_animal"] = (said // 4 == asked // 4).float().mean().item()
            metrics[f"{name}_activity"] = (said % 4 == asked % 4).float().mean().item()
        return metrics

    def save(self, folder: Path) -> None:
        """An open_clip folder, for `create_model_from_pretrained("local-dir:FOLDER/clip")`."""
        target = folder / "clip"
        target.mkdir(parents=True, exist_ok=True)
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.clip.state_dict().items()
        }
        save_file(state, target / "open_clip_model.safetensors", {"format": "pt"})
        model = {"embed_dim": WIDTH, "vision_cfg": _changed(VISION), "text_cfg": _changed(TEXT)}
        config = {"model_cfg": model, "preprocess_cfg": asdict(PREPROCESS)}
        (target / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        self.words.save_pretrained(target)
        rows = [
            {"prompt": caption(animal, activity), "animal": animal, "activity": activity}
            for animal, activity in KINDS
        ]
        (target / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _changed(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not its defaults."""
    default = type(options)()
    return {
        name: value for name, value in asdict(options).items() if value != getattr(default, name)
    }

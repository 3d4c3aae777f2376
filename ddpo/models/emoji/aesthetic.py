"""The emoji world's aesthetic head: an MLP like LAION's on its CLIP, trained on `ratings`."""

from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from .autoencoder import HELD_OUT
from .clip import WIDTH, Pipeline, augmented, pool, scenes
from .ratings import rating

BATCH = 256
PICTURES = 20_000


def head() -> nn.Sequential:
    """LAION's improved-aesthetic predictor, narrower: linear layers and dropout, no activations."""
    return nn.Sequential(
        nn.Linear(WIDTH, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.2),
        nn.Linear(64, 32),
        nn.Dropout(0.1),
        nn.Linear(32, 16),
        nn.Linear(16, 1),
    )


class Training:
    """Squared error of the rating, from the CLIP's normalized embedding of scenes and copies."""

    steps, lr, ema_decay = 3_000, 1e-3, 0.998

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.weights, self.device = weights, device
        self.clip = open_clip.create_model(f"local-dir:{weights / 'clip'}", device=device).eval()
        self.module = nn.ModuleDict({"layers": head()}).to(device)
        self.features, self.ratings = self.rated(
            pool(work.parent / "clip" / "pool.pt", weights, device)
        )

    @torch.no_grad()
    def rated(self, kinds_and_pictures: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Features and ratings of the pool's last pictures (all copies), plain and augmented."""
        torch.manual_seed(0)
        plain = kinds_and_pictures[1][-PICTURES:]
        parts = [part / 255 for part in plain.split(500)]
        pictures = [version for part in parts for version in (part, augmented(part))]
        features = torch.cat([self.seen(part) for part in pictures])
        return features, torch.cat([rating(part) for part in pictures]).to(self.device)

    def seen(self, pictures: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B D"]:
        return self.clip.encode_image(2 * pictures.to(self.device) - 1, normalize=True)  # pyright: ignore[reportCallIssue]

    def score(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        return self.module["layers"](features).squeeze(1)

    def loss(self, step: int) -> Tensor:
        rows = torch.randint(len(self.features), (BATCH,))
        return functional.mse_loss(self.score(self.features[rows]), self.ratings[rows])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """R^2 on 1,000 held-out scenes and on 500 redrawn, and the mean error."""
        self.module.eval()
        kinds, pictures = scenes(HELD_OUT, 1_000)
        copies = Pipeline(self.weights / "pipeline", self.device).held_out(kinds, pictures)
        metrics = {}
        for name, shown in (("scenes", pictures / 255), ("redrawn", copies / 255)):
            said = torch.cat([self.score(self.seen(part)) for part in shown.split(100)]).cpu()
            error = said - rating(shown)
            metrics[f"{name}_r2"] = 1 - (error.square().mean() / rating(shown).var()).item()
            metrics[f"{name}_mean_error"] = error.abs().mean().item()
        return metrics

    def save(self, folder: Path) -> None:
        """Names as in LAION's file: layers.0.weight, layers.0.bias, layers.2.weight, ..."""
        state = {
            name: value.half().contiguous() for name, value in self.module.state_dict().items()
        }
        save_file(state, folder / "clip" / "aesthetic.safetensors", {"format": "pt"})

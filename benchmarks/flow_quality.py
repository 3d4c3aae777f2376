"""What a flow model can draw: `python benchmarks/flow_quality.py --out runs/flow_quality`.

Any StableDiffusion3Pipeline folder without T5, sampled by diffusers alone (Euler steps, no noise
added), judged by the world's captioner: single animals, held-out animals, and animals with an
activity in combinations that were trained and that never were. Writes quality.json and a contact
sheet for each set. Look at the sheets.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ddpo import prompts, rewards
from ddpo.models.emoji.pretrain import WEIGHTS

SETS = ("animals", "animals_heldout", "activities", "activities_heldout")
COLUMNS = 12


def pictures(
    pipeline: Any, texts: list[str], options: dict[str, Any], batch_size: int, seed: int
) -> list[Image.Image]:
    """One picture for each text, its noise from the CPU's generator `seed + index`."""
    shape = (
        pipeline.transformer.config.in_channels,
        *[pipeline.transformer.config.sample_size] * 2,
    )
    made = []
    for first in range(0, len(texts), batch_size):
        chunk = texts[first : first + batch_size]
        numbers = range(seed + first, seed + first + len(chunk))
        noise = torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in numbers]
        )
        latents = noise.to(pipeline.device, pipeline.dtype)
        made += pipeline(prompt=chunk, latents=latents, **options).images
    return made


def sheet(images: list[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """The pictures row by row, at their own size."""
    side = images[0].width
    page = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * side, i // columns * side))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/flow_quality"))
    parser.add_argument("--pretrained", default=str(WEIGHTS / "flow"))
    parser.add_argument("--per-prompt", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument(
        "--zero-tokens", type=int, default=0, help="max_sequence_length, in T5's place"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = torch.device(arguments.device)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        arguments.pretrained, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    judge = rewards.build("emoji_recognition", device=device)
    options = {
        "num_inference_steps": arguments.num_steps,
        "guidance_scale": arguments.guidance_scale,
        "max_sequence_length": arguments.zero_tokens,
    }
    found: dict[str, Any] = {"options": options}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        asked = [prompt for prompt in prompts.load(name) for _ in range(arguments.per_prompt)]
        texts, started = [prompt.text for prompt in asked], time.process_time()
        images = pictures(pipeline, texts, options, arguments.batch_size, seed=0)
        cpu_s = (time.process_time() - started) / len(images)
        stacked = torch.stack([pil_to_tensor(image) for image in images]).float() / 255
        scores = torch.cat(
            [
                judge(part, texts[i : i + 64], [prompt.metadata for prompt in asked[i : i + 64]])
                for i, part in zip(range(0, len(texts), 64), stacked.split(64), strict=True)
            ]
        )
        misses = [text for text, score in zip(texts, scores.tolist(), strict=True) if score == 0]
        worst = sorted({(misses.count(text), text) for text in misses}, reverse=True)[:12]
        found[name] = {
            "recognized": statistics.mean(scores.tolist()),
            "images": len(images),
            "cpu_s_per_image": cpu_s,
            "worst": worst,
        }
        sheet(images[: 25 * COLUMNS]).save(arguments.out / f"{name}.png")
        print(json.dumps({name: found[name]}), flush=True)
    (arguments.out / "quality.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""For tests of options: a folder with what options name, and a run; all that a configuration can
set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

from ddpo import config, plugins
from ddpo.__main__ import main
from ddpo.config import Config
from ddpo.models._tiny import tiny

Flags = list[str]

MINE = """
class mine:
    def __init__(self, *, device, dtype, share: float = 1.0):
        worth = {"torch.float32": 1, "torch.bfloat16": 2, "torch.float16": 3}
        self.worth = share * worth[str(dtype)]
    def __call__(self, images, prompts, metadata):
        return images.mean((1, 2, 3)) + self.worth + images.new_tensor(
            [len(prompt) + len(facts) for prompt, facts in zip(prompts, metadata)]
        )
"""
FOLDER = {
    "own/rewards/mine.py": MINE,
    "own/models/own_model.py": "from ddpo.models.stable_diffusion import StableDiffusion\n"
    "class own_model(StableDiffusion): ...\n",
    "words.txt": "a fox\nan owl\na bee\n",
    "others.txt": "a cat\na cow\na dog\n",
    "data/train.jsonl": '{"prompt": "a fox", "text": "x"}\n{"prompt": "an owl", "text": "y"}\n',
    "data/test.jsonl": '{"prompt": "a cat", "text": "z"}\n{"prompt": "a cow", "text": "w"}\n',
    "pairs.jsonl": '{"prompt": "a fox", "chosen": "a.png", "rejected": "b.png"}\n',
}


@contextmanager
def world(root: Path, *, run: bool) -> Iterator[Path]:
    """Files that options name and, if asked for, the smoke run on the tiny model, `run`; we are
    there."""
    for name, text in FOLDER.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv(plugins.VARIABLE, "")  # --plugins of one test file are none of the next one's
        patch.setattr(plugins, "_points", lambda kind: [])  # the installed packages: slow to read
        tiny(seed=1).save_pretrained(root / "other")
        helpers.policy(moved=0.1).save(root / "lora")
        if not run:
            yield root
            return
        argv = [
            *helpers.smoke(root / "run"),
            "--trainer.iterations",
            "2",
            "--checkpoint.every",
            "1",
        ]
        argv += ["--evaluation.every", "1", "--evaluation.num_prompts", "2", "--trainer.lr", "1e-2"]
        argv += ["--prompts.path", "words.txt", "--evaluation.prompts", "animals_heldout"]
        assert main(["train", *argv]) == 0
        yield root


def places(settings: Config) -> list[str]:
    """The dotted name of everything that can be set, from the parser itself."""
    return [*config.options(settings)]

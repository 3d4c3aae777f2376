"""SDXL, Stable Diffusion 3 and FLUX as other programs read them: plain diffusers gives our
pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import helpers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from families import FAMILIES
from safetensors import safe_open

from ddpo import train
from ddpo.commands import export as export_command
from ddpo.commands import frame
from ddpo.config import load
from ddpo.models import Trial
from ddpo.models._shared import exports, flux_names
from ddpo.models._shared.pipelines import quietly
from ddpo.parallel.seeds import Purpose
from ddpo.runs.finished import Run

PROMPTS, SEEDS = ["a fox", "an owl"], [5, 6]
NEW = ["sdxl", "sd3", "flux"]

FLOW = ["--sampler.name", "flow_sde", "--model.max_sequence_length", "24"]
KINDS = {
    "sdxl": ["--model.size", "[24, 32]", "--lora.text_encoder", "true", "--lora.alpha", "12"],
    "sd3": [*FLOW, "--model.size", "[16, 24]", "--lora.text_encoder", "true"],
    # the single blocks' fused layers have FLUX's own widths in diffusers' reader
    "flux": [
        *FLOW,
        *("--model.size", "[16, 24]", "--lora.text_encoder", "true", "--lora.target_modules"),
        "[transformer_blocks.0.attn.to_q, attn.add_q_proj, attn.add_v_proj, attn.to_out.0]",
    ],
    "sdxl whole": ["--lora", "null", "--trainer.lr", "3e-3"],
    "sd3 whole": [*FLOW, "--lora", "null", "--trainer.lr", "3e-3"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs on tiny models, each made once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(kind: str) -> Path:
        run, family = folder / kind.replace(" ", "_"), kind.split()[0]
        if run.exists():
            return run
        base = families.saved(family, folder / f"{family}_base")
        flags = ["--model.pretrained", base, "--trainer.iterations", "1", "--trainer.lr", "3e-2"]
        argv = helpers.smoke(run, *flags, "--sampler.negative_prompt", "moss", *KINDS[kind])
        if "null" in KINDS[kind]:
            at = argv.index("--lora.rank")
            del argv[at : at + 2]
        assert frame.run(train.main, argv) == 0
        return run

    return make


def ours(run_dir: Path, column: str = "tuned") -> list[np.ndarray]:
    images = Run(run_dir, dtype="fp32").sample(PROMPTS, SEEDS, column)
    return [np.asarray(image, int) for image in images]


def theirs(run_dir: Path, folder: Path, merged: bool) -> list[np.ndarray]:
    """By a pipeline that knows nothing of ours, without noise in its steps."""
    settings = load(run_dir / "config.yaml")
    family = FAMILIES[settings.model.name][0]
    with quietly():
        base = str(folder) if merged else settings.model.pretrained
        pipeline = family.pipeline_class.from_pretrained(base)
        if not merged:
            pipeline.load_lora_weights(str(folder))
    policy = Run(run_dir, dtype="fp32").policy
    keys = [(Purpose.EVALUATION, seed) for seed in SEEDS]
    guidance, steps = settings.sampler.guidance_scale, settings.sampler.num_steps
    trial = Trial(helpers.as_prompts(PROMPTS), keys, steps, guidance, "moss", 0.0)
    drawn = exports.drawn(pipeline, trial, torch.device("cpu"), **policy.call_options(trial))
    return [(255 * image).round().permute(1, 2, 0).numpy().astype(int) for image in drawn]


def without_noise(run_dir: Path) -> Path:
    """The run's configuration with the deterministic sampler of its kind."""
    file = run_dir / "config.yaml"
    text = file.read_text()
    if "name: flow_sde" in text:
        text = text.replace("noise_level: 0.7", "noise_level: 0.0")
    else:
        text = text.replace("eta: 1.0", "eta: 0.0")
    file.write_text(text)
    return run_dir


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_our_pictures(
    kind: str, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = made(kind), kind.endswith("whole")
    formats = ("merged",) if whole else FAMILIES[kind][0].export_formats
    for wanted in formats:
        argv = [str(run), "--to", str(tmp_path / wanted), "--format", wanted]
        assert frame.run(export_command.main, argv) == 0, capsys.readouterr().err
    expected = ours(without_noise(run))
    assert apart(expected, ours(run, "base")) > 3, "the adapter shows"
    for wanted in formats:
        pictures = theirs(run, tmp_path / wanted, wanted == "merged")
        assert apart(pictures, expected) <= 1, wanted


def test_what_cannot_be_exported(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, wanted, words in (
        ("sd3", "kohya", "Stable Diffusion 3 is exported as diffusers, merged"),
        ("sd3 whole", "diffusers", "trained the whole transformer; take merged"),
    ):
        argv = [str(made(kind)), "--to", str(tmp_path / "x"), "--format", wanted]
        assert frame.run(export_command.main, argv) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_names_of_sdxl_as_kohya_has_them(made: Callable[[str], Path], tmp_path: Path) -> None:
    argv = [str(made("sdxl")), "--to", str(tmp_path / "x"), "--format", "kohya"]
    assert frame.run(export_command.main, argv) == 0
    with safe_open(tmp_path / "x/lora.safetensors", "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    attention = "text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"
    assert {
        f"lora_te1_{attention}",
        f"lora_te2_{attention}",
        "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn2_to_k.alpha",
    } <= keys
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"


class Blocks(torch.nn.Module):
    """One block of each kind with FLUX.1's widths, without their weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            for kind, widths in (
                ("transformer_blocks", {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072}),
                ("single_transformer_blocks", {"proj_mlp": 12288, "attn.to_q": 3072}),
            ):
                block: Any = torch.nn.Module()
                block.attn = torch.nn.Module()
                for name in ("attn.to_q", "attn.to_k", "attn.to_v", *widths):
                    *path, last = name.split(".")
                    layer = torch.nn.Linear(3072, widths.get(name, 3072))
                    setattr(block.get_submodule(".".join(path)), last, layer)
                setattr(self, kind, torch.nn.ModuleList([block]))


def test_fused_layers_of_flux_are_taken_apart_again() -> None:
    """By diffusers' reader of kohya's files, at the widths that it knows."""
    noise = torch.Generator().manual_seed(0)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(2, 3072, generator=noise), torch.randn(3072, 2, generator=noise)

    double, single = "transformer_blocks.0.attn", "single_transformer_blocks.0.attn"
    names = [f"{stem}.{end}" for stem in (double, single) for end in ("to_q", "to_k", "to_v")]
    pairs = {name: pair() for name in names if name != f"{single}.to_v"}
    fused = flux_names.fused(pairs, Blocks())
    assert set(fused) == {
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_0_linear1",
    }
    state = {}
    for name, (down, up) in fused.items():
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(float(len(down)))
    read = FluxPipeline.lora_state_dict(state)
    for name, (down, up) in pairs.items():
        assert torch.equal(read[f"transformer.{name}.lora_A.weight"], down)
        assert torch.equal(read[f"transformer.{name}.lora_B.weight"], up)
    for name in (f"{single}.to_v", "single_transformer_blocks.0.proj_mlp"):
        assert not read[f"transformer.{name}.lora_B.weight"].any(), "no update"

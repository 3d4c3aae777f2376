"""Exports as other programs read them: plain diffusers, and a reader of kohya files by their format
alone.

Their pictures must be ours, whatever our own check says; and our check must see what is broken.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpo import train
from ddpo.commands import export as export_command
from ddpo.commands import frame
from ddpo.config import load
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.parallel.seeds import Purpose, generator
from ddpo.runs.finished import Run

PROMPTS, SEEDS = ["a fox", "an owl", "a bee"], [5, 6, 7]
KINDS = {
    "lora": [],
    "everything": [
        "--lora.text_encoder",
        "true",
        "--lora.alpha",
        "12",
        "--ema.decay",
        "0.3",
        "--model.dtype",
        "bf16",
    ],
    "ddpm": [
        "--sampler.name",
        "ddpm",
        "--sampler.guidance_scale",
        "0.5",
        "--lora.target_modules",
        "[to_q, to_out.0, ff.net.2, proj_in, conv1, time_emb_proj]",
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs on the tiny model, each made once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(kind: str) -> Path:
        if (folder / kind).exists():
            return folder / kind
        argv = helpers.smoke(folder / kind, "--trainer.lr", "3e-2", *KINDS.get(kind, []))
        if kind == "ddpm":
            pipeline = helpers.plain_pipeline()
            pipeline.scheduler = PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                set_alpha_to_one=False,
                steps_offset=1,
            )
            pipeline.save_pretrained(folder / "pndm")
            argv += ["--model.pretrained", str(folder / "pndm")]
        if kind == "whole":
            at = argv.index("--lora.rank")
            argv[at : at + 2] = ["--lora", "null"]
        assert frame.run(train.main, argv) == 0
        return folder / kind

    return make


def call(*argv: object) -> int:
    return frame.run(export_command.main, [str(word) for word in argv])


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ours(run_dir: Path, column: str = "tuned") -> list[np.ndarray]:
    """As `ddpo sample` makes them, in fp32."""
    run = Run(run_dir, dtype="fp32")
    return [np.asarray(image, int) for image in run.sample(PROMPTS, SEEDS, column)]


def theirs(pipeline: StableDiffusionPipeline, run_dir: Path) -> list[np.ndarray]:
    """By the pipeline's own call."""
    pipeline.set_progress_bar_config(disable=True)
    keys = [generator(Purpose.EVALUATION, seed) for seed in SEEDS]
    scale = load(run_dir / "config.yaml").sampler.guidance_scale
    made: Any = pipeline(
        PROMPTS, num_inference_steps=3, guidance_scale=scale, eta=1.0, generator=keys
    )
    return [np.asarray(image, int) for image in made.images]


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def by_hand(file: Path, use_alpha: bool) -> StableDiffusionPipeline:
    """W + alpha / rank * up @ down for the layer of each name, as kohya's and A1111's loaders do
    it."""
    pipeline, weights = helpers.plain_pipeline(), load_file(file)
    layers = {}
    for prefix, root in (
        ("lora_unet_", pipeline.unet),
        ("lora_te_text_model_", pipeline.text_encoder),
    ):
        for name, module in root.named_modules():
            layers[prefix + name.removeprefix("text_model.").replace(".", "_")] = module
    for name in {key.split(".")[0] for key in weights}:
        up, down = weights[f"{name}.lora_up.weight"], weights[f"{name}.lora_down.weight"]
        scale = weights[f"{name}.alpha"].item() / len(down) if use_alpha else 1.0
        layers[name].weight.data += scale * (up.flatten(1) @ down.flatten(1)).view_as(
            layers[name].weight
        )
    return pipeline


@pytest.mark.parametrize("kind", ["lora", "everything"])
def test_every_format_gives_our_pictures(
    kind: str, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(kind)
    expected = ours(run)
    assert apart(expected, ours(run, "base")) > 3, "the adapter shows"
    for wanted in StableDiffusion.export_formats:
        to = tmp_path / "new" / wanted
        assert call(run, "--to", to, "--format", wanted) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"saved {to}"
        if wanted == "merged":
            pipeline = StableDiffusionPipeline.from_pretrained(to)
        else:
            pipeline = helpers.plain_pipeline()
            pipeline.load_lora_weights(str(to))
        assert apart(theirs(pipeline, run), expected) <= 1, wanted
    assert apart(theirs(by_hand(tmp_path / "new/kohya/lora.safetensors", True), run), expected) <= 1
    assert (
        apart(theirs(by_hand(tmp_path / "new/kohya/lora.safetensors", False), run), expected) <= 1
    )


def test_the_names_and_the_metadata(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Spelled as kohya's scripts spell Stable Diffusion 1, the text encoder as before transformers
    5.6."""
    for wanted in StableDiffusion.export_formats:
        assert call(made("everything"), "--to", tmp_path / wanted, "--format", wanted) == 0
    with safe_open(tmp_path / "kohya/lora.safetensors", "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    assert {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    } <= keys
    assert {key.partition(".")[2] for key in keys} == {
        "lora_up.weight",
        "lora_down.weight",
        "alpha",
    }
    assert (
        metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
        and metadata["ss_v2"] == "False"
    )
    assert (
        metadata["ss_network_module"] == "networks.lora"
        and metadata["ss_output_name"] == "everything"
    )
    names = load_file(tmp_path / "diffusers/pytorch_lora_weights.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    texts = [name for name in names if name.startswith("text_encoder.")]
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in texts)
    assert all(
        key.startswith("text_model.")
        for key in load_file(tmp_path / "merged/text_encoder/model.safetensors")
    )


def test_other_layers_another_sampler_weak_guidance(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Convolutions too; ddpm and guidance below 1, which plain pipelines lack; PNDM as in SD
    1.5."""
    for wanted in StableDiffusion.export_formats:
        assert call(made("ddpm"), "--to", tmp_path / wanted, "--format", wanted) == 0
    scheduler = StableDiffusionPipeline.from_pretrained(tmp_path / "merged").scheduler
    assert isinstance(scheduler, PNDMScheduler), "the base model's own"
    name = "lora_unet_mid_block_resnets_0_conv1.lora_down.weight"
    assert load_file(tmp_path / "kohya/lora.safetensors")[name].shape[2:] == (3, 3)


def test_a_whole_unet_is_merged_or_refused(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("whole")
    for wanted in ("diffusers", "kohya"):
        assert call(run, "--to", tmp_path / "no", "--format", wanted) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line and "lora: null" in line and line.endswith("take merged")
    assert call(run, "--to", tmp_path / "merged", "--format", "merged") == 0
    assert (
        apart(theirs(StableDiffusionPipeline.from_pretrained(tmp_path / "merged"), run), ours(run))
        <= 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_run_on_top_of_a_lora(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, its LoRA would give other pictures."""
    under, run = made("lora") / "lora", tmp_path / "run"
    argv = helpers.smoke(
        run, "--model.loras", f"[{under}]", "--trainer.lr", "3e-2", "--trainer.iterations", "1"
    )
    assert frame.run(train.main, argv) == 0
    capsys.readouterr()
    assert call(run, "--to", tmp_path / "kohya", "--format", "kohya") == 2
    assert "model.loras" in capsys.readouterr().err and not (tmp_path / "kohya").exists()
    assert call(run, "--to", tmp_path / "merged", "--format", "merged") == 0
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert apart(theirs(merged, run), ours(run)) <= 1


def test_an_earlier_checkpoint(made: Callable[[str], Path], tmp_path: Path) -> None:
    run = made("lora")
    to = tmp_path / "early"
    to.mkdir()  # an empty folder may be there
    assert call(run, "--to", to, "--format", "diffusers", "--checkpoint", "000002") == 0
    pipeline = helpers.plain_pipeline()
    pipeline.load_lora_weights(str(to))
    found = theirs(pipeline, run)
    assert apart(found, ours(run, "000002")) <= 1 < apart(found, ours(run))


def half_alpha(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    weights = {
        key: value / 2 if key.endswith("alpha") else value for key, value in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})


def another_spelling(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    save_file({key.replace("lora_unet", "lora_net"): v for key, v in load_file(file).items()}, file)


def peft_folder(folder: Path) -> None:
    """The names of peft, of which diffusers loads nothing and says nothing."""
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    renamed = {
        f"base_model.model.{key.removeprefix('unet.')}": value for key, value in weights.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors")


def a_layer_of_no_visible_effect_less(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    chosen = sorted(key for key in weights if "up_blocks" in key)[0].split(".")[0]
    save_file({key: value for key, value in weights.items() if not key.startswith(chosen)}, file)


def torn(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])


def base_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    shutil.copytree(Path(helpers.pipeline_folder()) / "unet", folder / "unet")


BROKEN = {
    half_alpha: ("kohya", "of 3 differs from ours by"),
    another_spelling: ("kohya", "of 3 differs from ours by"),
    a_layer_of_no_visible_effect_less: ("kohya", "attn1.to_k.weight"),
    peft_folder: ("diffusers", "of 3 differs from ours by"),
    torn: ("diffusers", "cannot read the diffusers files back"),
    base_unet: ("merged", "of 3 differs from ours by"),
}


@pytest.mark.parametrize("harm", BROKEN, ids=lambda harm: harm.__name__)
def test_a_broken_export_is_seen_and_nothing_is_left(
    harm: Callable[[Path], None],
    made: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (wanted, words), run = BROKEN[harm], made("lora")
    write = StableDiffusion.export

    def broken(policy: StableDiffusion, file_format: str, folder: Path, name: str) -> None:
        write(policy, file_format, folder, name)
        harm(folder)

    monkeypatch.setattr(StableDiffusion, "export", broken)
    before = tree(run)
    assert call(run, "--to", tmp_path / "a" / "b", "--format", wanted) == 3
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert words in line and line.endswith("nothing was written") and "saved" not in out
    assert list(tmp_path.iterdir()) == [] and tree(run) == before


def test_a_full_disk_leaves_nothing(
    made: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(policy: StableDiffusion, file_format: str, folder: Path, name: str) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StableDiffusion, "export", full)
    assert call(made("lora"), "--to", tmp_path / "x", "--format", "kohya") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and list(tmp_path.iterdir()) == []


def test_training_that_changed_nothing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        frame.run(
            train.main, [*helpers.smoke(run), "--trainer.lr", "1e-12", "--trainer.iterations", "1"]
        )
        == 0
    )
    assert call(run, "--to", tmp_path / "x", "--format", "diffusers") == 0
    assert "what was trained cannot be seen" in capsys.readouterr().out


def test_mistakes(
    made: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, started = made("lora"), tmp_path / "started"
    started.mkdir()
    shutil.copy(run / "config.yaml", started)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before, to = tree(tmp_path), tmp_path / "to"
    for argv, words in (
        ((tmp_path / "nowhere", "--to", to, "--format", "kohya"), "is not the folder of a run"),
        ((started, "--to", to, "--format", "kohya"), "has no checkpoint yet"),
        ((run, "--to", to, "--format", "koya"), "did you mean kohya?"),
        ((run, "--to", to), "--format"),
        ((run, "--to", to, "--format", "kohya", "--checkpoint", "7"), "there are: 000002, 000003"),
        ((run, "--to", tmp_path / "full", "--format", "kohya"), "is not empty"),
        ((run, "--to", run, "--format", "kohya"), "is not empty"),
        ((run, "--to", tmp_path / "full" / "mine.txt", "--format", "kohya"), "is a file"),
    ):
        assert call(*argv) == 2, argv
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ddpo: ") and words in line
    assert tree(tmp_path) == before

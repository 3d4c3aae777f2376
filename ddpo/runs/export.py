"""A run's model in the formats of other programs, read back by plain diffusers before it counts as written.

A reader is right only if its pictures are. So the files are written aside, loaded by a pipeline that knows
nothing of ours, fresh from the base model, and moved into place once its pictures and its weights equal ours.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo import samplers
from ddpo.errors import Stopped, UserError, refusal
from ddpo.models._pipelines import load, old_spelling, quietly
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.parallel.seeds import Purpose, generator
from ddpo.rollout.sample import Sampler, sample
from ddpo.runs import build
from ddpo.runs.finished import Run

BAR = 1 / 255
"""The largest difference between a picture of the export and ours, in [0, 1]; also the smallest visible."""

ROUNDING = 1e-5
"""The largest difference between a weight tensor of the export and ours, relative to its largest weight."""

PICTURES = 3
"""Pictures that are compared. What they do not show, as a layer of little effect, the weights do."""

Pictures = Float[Tensor, "B 3 height width"]


def check(folder: Path) -> None:
    """Raises UserError where `folder` may not be written: only a new or an empty one may; touches nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to: {folder} is not empty, and an export replaces nothing; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to: {folder} is a file; name a folder")
    if not os.access(_parent(folder), os.W_OK):
        raise UserError(f"--to: {_parent(folder)} cannot be written to; name another folder")


# by default a GPU's convolutions round to TF32, and the two sides would differ
@torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
def export(run: Run, wanted: str, folder: Path) -> str:
    """Write the weights that `run`, an fp32 one, uses as `wanted` of FORMATS; returns what was compared.

    The run is of no more use then: its adapter is fused. Raises UserError for what the format cannot hold,
    Stopped when diffusers' pictures or weights are not ours; nothing is at `folder` then.
    """
    policy, model = run.policy, run.config.model
    if not isinstance(policy, StableDiffusion):
        raise UserError(
            f"model.name: {model.name} is no StableDiffusion; see what it saved in {run.folder}/lora"
        )
    lacking = ""
    if policy.trains_whole_unet:
        lacking = f"{wanted} is a LoRA, and this run (lora: null) trained the whole UNet"
    elif model.loras:
        lacking = f"a LoRA as {wanted} would lack those under it, model.loras: {', '.join(model.loras)}"
    if lacking and wanted != "merged":
        raise UserError(f"--format: {lacking}; take merged")
    ours = _our_pictures(run)
    with policy.reference():
        base = _our_pictures(run)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=_parent(folder)) as scratch:
            aside = Path(scratch, "export")
            aside.mkdir()
            FORMATS[wanted](policy, aside, run.folder.resolve().name)
            pipeline, theirs = _read_back(run, wanted, aside)
            fault = _picture_fault(ours, theirs) or _weight_fault(policy.pipeline, pipeline)
            if fault:
                raise Stopped(f"export: read back by diffusers, {fault}; nothing was written")
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--to: {folder} cannot be written ({error}); nothing is left of it") from error
    apart, change = ((ours - others).abs().max().item() for others in (theirs, base))
    seen = "" if change > BAR else ": what was trained cannot be seen"
    effect = f"the base model's differ by up to {255 * change:.3g}/255{seen}"
    return f"{len(ours)} pictures by plain diffusers equal ours up to {255 * apart:.1g}/255; {effect}"


def _picture_fault(ours: Pictures, theirs: Pictures) -> str:
    error, worst = (ours - theirs).abs().flatten(1).amax(1).max(0)
    which = f"picture {worst + 1} of {len(ours)}"
    return "" if error <= BAR else f"{which} differs from ours by {255 * error:.3g}/255, more than 1/255"


def _weight_fault(ours: StableDiffusionPipeline, theirs: StableDiffusionPipeline) -> str:
    """With all adapters fused."""
    expected, found = _fused_weights(ours), _fused_weights(theirs)
    wrong = sorted(expected.keys() ^ found.keys()) or [
        name
        for name, weight in expected.items()
        if not (weight - found[name]).abs().max() <= ROUNDING * weight.abs().max()
    ]
    first = f"weights differ from ours, the first is {wrong[0]}" if wrong else ""
    return first and f"{len(wrong)} of {len(expected)} {first}"


def _fused_weights(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {
        f"{kind}.{name}": weight.detach()
        for kind in ("unet", "text_encoder", "vae")
        for name, weight in getattr(pipeline, kind).named_parameters()
    }


def _kohya(policy: StableDiffusion, folder: Path, name: str) -> None:
    """One file in the spelling of kohya's scripts, which A1111, Forge and ComfyUI read.

    `down_blocks.0.attn1.to_q.lora_A.weight` is `lora_unet_down_blocks_0_attn1_to_q.lora_down.weight` there,
    and beside it stands an alpha: the rank, since the scale is in the weights. The file has a fixed name:
    diffusers passes over those that contain "checkpoint", "scheduler" or "optimizer".
    """
    found: dict[str, Tensor] = {}
    for kind, weights in policy.lora_weights().items():
        for key, value in weights.items():
            layer, _, matrix = key.removesuffix(".weight").rpartition(".lora_")
            stem = f"lora_{'te' if kind == 'text_encoder' else kind}_{layer.replace('.', '_')}"
            found[f"{stem}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = value.cpu().contiguous()
            if matrix == "A":
                found[f"{stem}.alpha"] = torch.tensor(float(len(value)))
    rank = str(max(int(value) for key, value in found.items() if key.endswith(".alpha")))
    second = policy.unet.config.cross_attention_dim == 1024  # Stable Diffusion 2 has a larger text encoder
    metadata = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": rank}
    metadata |= {"ss_network_alpha": rank, "ss_output_name": name, "ss_v2": str(second)}
    save_file(found, folder / "lora.safetensors", metadata)


def _merged(policy: StableDiffusion, folder: Path, name: str) -> None:
    """The whole pipeline, its adapter added to the weights."""
    _fused_weights(policy.pipeline)
    policy.pipeline.save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    save_file({old_spelling(key): value for key, value in load_file(file).items()}, file, {"format": "pt"})


FORMATS: dict[str, Callable[[StableDiffusion, Path, str], None]] = {
    "diffusers": lambda policy, folder, name: policy.save(folder), "kohya": _kohya, "merged": _merged,
}  # fmt: skip


def _our_pictures(run: Run) -> Pictures:
    texts, num_steps, guidance_scale, eta = _trial(run)
    steps = samplers.ddim(run.policy.schedule(num_steps, "ddim"), eta=eta).to(run.policy.device)
    keys = [(Purpose.EVALUATION, seed) for seed in range(len(texts))]
    (part,) = sample(run.policy, Sampler(steps, guidance_scale, len(texts)), texts, keys)
    return part.images.cpu()


def _read_back(run: Run, wanted: str, folder: Path) -> tuple[StableDiffusionPipeline, Pictures]:
    """By diffusers alone. Raises Stopped where it cannot load the files or run what it loaded."""
    texts, num_steps, guidance_scale, eta = _trial(run)
    try:
        pipeline = load(str(folder) if wanted == "merged" else run.config.model.pretrained, torch.float32)
        if wanted != "merged":
            with quietly():
                pipeline.load_lora_weights(str(folder))
        # of a scheduler of another class the configuration is silent on clipping, and DDIM clips by default
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
        keys = [generator(Purpose.EVALUATION, seed) for seed in range(len(texts))]
        made = pipeline.to(run.policy.device)(
            texts, num_inference_steps=num_steps, guidance_scale=guidance_scale, eta=eta, generator=keys,
            output_type="pt",
        )  # fmt: skip
        return pipeline, made.images.float().cpu()  # pyright: ignore
    except Exception as error:  # whatever a library raises: the files are of no use
        if line := refusal(error):
            raise UserError(f"export: {line}; nothing was written") from error
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        fault = f"diffusers cannot read the {wanted} files back ({told})"
        raise Stopped(f"export: {fault}; nothing was written") from error


def _trial(run: Run) -> tuple[list[str], int, float, float]:
    """Prompts, steps, guidance (plain diffusers has none below 1) and eta: the run's, by DDIM."""
    wanted = run.config.sampler
    texts = [prompt.text for prompt in build.prompt_set(run.config)[:PICTURES]]
    return texts, wanted.num_steps, max(1.0, wanted.guidance_scale), wanted.options.get("eta", 1.0)


def _parent(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return next(path for path in folder.absolute().parents if path.is_dir())

"""The model card of a run, README.md: what was trained, with which result, and how to use it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ddpo import plugins
from ddpo.evaluation import evidence, templates
from ddpo.evaluation.evidence import Run
from ddpo.models._shared.families import FAMILIES

WIDGETS = 4
"""Pictures that the Hub shows above the card."""


def write(run_dir: Path) -> Path:
    """Write README.md from what the folder holds, with an evaluation or without one.

    Returns its path.
    """
    run, origin = evidence.read(run_dir), run_dir / "provenance.json"
    text = templates.render(
        "card.md.j2",
        run,
        head=_head(run).to_yaml(),
        meanings=dict(plugins.summaries("rewards")),
        pictures={p.stem for p in (run_dir / "evaluation").glob("*.png")},
        origin=json.loads(origin.read_bytes()) if origin.is_file() else {},
        number=lambda value: f"{value:g}",
        family=_family(run.config),
    )
    (run_dir / "README.md").write_text(text, encoding="utf-8")
    return run_dir / "README.md"


def _family(config: Mapping[str, Any]) -> dict[str, Any]:
    """How plain diffusers loads and calls the model of a run."""
    model, scale = config["model"], config["sampler"]["guidance_scale"]
    # of a family of the user's: as if it were the first one, from which most are derived
    names = {family: pipeline for pipeline, family in FAMILIES.items()}
    pipeline = names.get(model["name"], "StableDiffusionPipeline")
    guidance = f"guidance_scale={scale}"
    if pipeline == "FluxPipeline":
        told = model.get("embedded_guidance")
        guidance = f"guidance_scale={3.5 if told is None else told}, true_cfg_scale={scale}"
    networks = {
        "StableDiffusion3Pipeline": "SD3Transformer2DModel",
        "FluxPipeline": "FluxTransformer2DModel",
    }
    flow = pipeline in networks
    return {
        "pipeline": pipeline,
        "network": networks.get(pipeline, "UNet2DConditionModel"),
        "part": "transformer" if flow else "unet",
        "words": "transformer" if flow else "UNet",
        "flow": flow,
        "guidance": guidance,
    }


def _head(run: Run) -> ModelCardData:
    """What the Hub reads; it names the base model only where that is one of the Hub's.

    The license is left to whoever publishes: it depends on the base model's.
    """
    lora, base = run.config["lora"] is not None, run.config["model"]["pretrained"]
    hub = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    shown = evidence.select(run.pairs, run.sets[0], WIDGETS) if run.sets else []
    images, (reference, column, *_) = run.config["sampler"]["name"] != "masked", run.columns
    widget = [
        {"text": m.prompt, "output": {"url": f"evaluation/{m.images[column]}"}} for m in shown
    ]
    results = [
        EvalResult(
            task_type="text-to-image" if images else "fill-mask",
            dataset_type="prompts",
            dataset_config=set_name,
            dataset_name=set_name,
            metric_type=name,
            metric_name=f"{name} (base model: {entry[reference]['mean']:.4g})",
            metric_value=round(entry[column]["mean"], 6),
        )
        for set_name in run.sets
        for name, entry in run.results["sets"][set_name].items()
        if name in run.scores and math.isfinite(entry[column]["mean"])
    ]
    kind = ["text-to-image", "stable-diffusion"] if images else ["masked-diffusion"]
    return ModelCardData(
        library_name="diffusers" if images else "peft" if lora else "transformers",
        pipeline_tag="text-to-image" if images else "fill-mask",
        tags=[*kind, *["lora"] * lora, "ddpo", "reward-fine-tuning"],
        base_model=hub,
        base_model_relation=("adapter" if lora else "finetune") if hub else None,
        widget=widget or None,
        eval_results=results or None,
        model_name=run.folder.resolve().name if results else None,
    )

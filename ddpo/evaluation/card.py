"""The model card of a run, README.md: what was trained, with which result, and how to use it."""

import json
import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ddpo import plugins
from ddpo.evaluation import evidence, page
from ddpo.evaluation.evidence import Run

WIDGETS = 4
"""Pictures that the Hub shows above the card."""


def write(run_dir: Path) -> Path:
    """Write README.md from what the folder holds, with an evaluation or without one.

    Returns its path.
    """
    run, origin = evidence.read(run_dir), run_dir / "provenance.json"
    text = page.render(
        "card.md.j2",
        run,
        head=_head(run).to_yaml(),
        meanings=dict(plugins.summaries("rewards")),
        pictures={p.stem for p in (run_dir / "evaluation").glob("*.png")},
        origin=json.loads(origin.read_bytes()) if origin.is_file() else {},
        number=lambda value: f"{value:g}",
    )
    (run_dir / "README.md").write_text(text, encoding="utf-8")
    return run_dir / "README.md"


def _head(run: Run) -> ModelCardData:
    """What the Hub reads; it names the base model only where that is one of the Hub's.

    The licence is left to whoever publishes: it depends on the base model's.
    """
    lora, base = run.config["lora"] is not None, run.config["model"]["pretrained"]
    hub = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    shown = evidence.select(run.pairs, run.sets[0], WIDGETS) if run.sets else []
    widget = [
        {"text": m.prompt, "output": {"url": f"evaluation/{m.images['tuned']}"}} for m in shown
    ]
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_config=set_name,
            dataset_name=set_name,
            metric_type=name,
            metric_name=f"{name} (base model: {entry['base']['mean']:.4g})",
            metric_value=round(entry["tuned"]["mean"], 6),
        )
        for set_name in run.sets
        for name, entry in run.results["sets"][set_name].items()
        if name in run.scores and math.isfinite(entry["tuned"]["mean"])
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "stable-diffusion", *["lora"] * lora, "ddpo", "reward-fine-tuning"],
        base_model=hub,
        base_model_relation=("adapter" if lora else "finetune") if hub else None,
        widget=widget or None,
        eval_results=results or None,
        model_name=run.folder.resolve().name if results else None,
    )

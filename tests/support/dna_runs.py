"""A small run on the DNA world: 20 letters, three steps, seconds."""

from pathlib import Path


def smoke(run_dir: Path, *flags: str) -> list[str]:
    """Arguments of `ddpo train`."""
    sections = {
        "model": "{name: masked_sequence, pretrained: dna, dtype: fp32, length: 20}",
        "lora": "{rank: 4, target_modules: [query, value]}",
        "sampler": "{name: masked, num_steps: 3, guidance_scale: 1.0, batch_size: 2}",
        "prompts.name": "enhancer",
        "rewards": "[{name: dna_activity}]",
        "objective": "{name: ddpo, clip_range: 0.1}",
        "advantage": "{name: group}",
        "trainer": "{iterations: 4, prompts_per_iteration: 2, samples_per_prompt: 4, "
        "minibatches: 2, micro_batch: 4, lr: 1.0e-3}",
        "checkpoint": "{every: 2}",
        "eval_rewards": "[]",
        "log.images": "0",
    }
    pairs = [word for name, value in sections.items() for word in (f"--{name}", value)]
    return ["--config", "dna", *pairs, "--run_dir", str(run_dir), *flags]

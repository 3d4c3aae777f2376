"""docs/migration.md names options that exist: theirs, all of them, and ours."""

import re
from pathlib import Path

from ddpo import config, train
from ddpo.records import tracking

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").partition("## Option by option")[2].splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| ddpo-pytorch"))
]

DDPO_PYTORCH = """
run_name seed logdir num_epochs save_freq num_checkpoint_limit mixed_precision allow_tf32
resume_from use_lora pretrained.model pretrained.revision sample.num_steps sample.eta
sample.guidance_scale sample.batch_size sample.num_batches_per_epoch train.batch_size
train.use_8bit_adam train.learning_rate train.adam_beta1 train.adam_beta2 train.adam_weight_decay
train.adam_epsilon train.gradient_accumulation_steps train.max_grad_norm train.num_inner_epochs
train.cfg train.adv_clip_max train.clip_range train.timestep_fraction prompt_fn prompt_fn_kwargs
reward_fn per_prompt_stat_tracking per_prompt_stat_tracking.buffer_size
per_prompt_stat_tracking.min_count
"""
"""kvablack/ddpo-pytorch, config/base.py at its last commit."""

TRL = """
exp_name run_name seed log_with tracker_kwargs accelerator_kwargs project_kwargs
tracker_project_name logdir num_epochs save_freq num_checkpoint_limit mixed_precision allow_tf32
resume_from sample_num_steps sample_eta sample_guidance_scale sample_batch_size
sample_num_batches_per_epoch train_batch_size train_use_8bit_adam train_learning_rate
train_adam_beta1 train_adam_beta2 train_adam_weight_decay train_adam_epsilon
train_gradient_accumulation_steps train_max_grad_norm train_num_inner_epochs train_cfg
train_adv_clip_max train_clip_range train_timestep_fraction per_prompt_stat_tracking
per_prompt_stat_tracking_buffer_size per_prompt_stat_tracking_min_count async_reward_computation
max_workers negative_prompts push_to_hub
"""
"""huggingface/trl, trl/trainer/ddpo_config.py, fields of the dataclass in v0.12 and after."""


def test_every_option_of_theirs_is_there_once() -> None:
    for column, names in ((0, DDPO_PYTORCH), (1, TRL)):
        assert sorted(name for row in ROWS for name in row[column]) == sorted(names.split())


def test_every_option_of_ours_exists() -> None:
    values = {"advantage": {"name": "per_prompt"}, "rewards": [{"name": "jpeg_compressibility"}]}
    ours = config.flat(config.load(values))
    known = {place for place, _ in tracking.leaves(ours)} | set(ours) | {"trainer.betas"}
    known |= {"prompts.path", "log.trackers", *(flag.split()[0] for flag in train.FLAGS)}
    named = {name for row in ROWS for name in row[2]}
    named |= {
        name
        for row in ROWS
        for name in row[3]
        if re.fullmatch(r"(trainer|prompts|sampler)\.\w+", name)
    }
    assert len(named) > 25 and named <= known, named - known
    text = PAGE.read_text(encoding="utf-8").partition("## Option by option")[0]
    assert set(re.findall(r"--([a-z_]+\.[a-z_]+)", text)) <= known


def test_the_worked_example() -> None:
    """256 images, 4 steps of 64: what dgx.py does on 8 GPUs, by ddpo-pytorch's own formulas."""
    per_epoch, per_step = 8 * 8 * 4, 4 * 8 * 2
    words = re.findall(
        r"--trainer\.(\w+) (\d+)", PAGE.read_text(encoding="utf-8").replace("\n  ", " ")
    )
    ours = {name: int(number) for name, number in words}
    assert ours["prompts_per_iteration"] * ours["samples_per_prompt"] == per_epoch
    assert ours["prompts_per_iteration"] // ours["minibatches"] == per_step

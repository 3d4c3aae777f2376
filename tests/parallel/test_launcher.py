"""What accelerate's configuration asks for and ddpo does not do is refused, in the variables that
it sets."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import helpers
import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils import launch as environments

from ddpo.errors import UserError
from ddpo.parallel import launcher

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def variables(file: dict[str, Any], folder: Path, flags: list[str] = []) -> dict[str, str]:  # noqa: B006
    """The environment of a process that `accelerate launch` starts with this configuration file."""
    path = folder / "accelerate.yaml"
    path.write_text(
        yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "machine_rank": 0, **file})
    )
    parser = launch.launch_command_parser()
    given = parser.parse_args(["--config_file", str(path), *flags, "-m", "ddpo.train"])
    arguments, *_ = launch._validate_launch_command(given)
    if arguments.use_deepspeed:
        # as launch does
        arguments.deepspeed_fields_from_accelerate_config = ",".join(file["deepspeed_config"])
        return environments.prepare_deepspeed_cmd_env(arguments)[1]
    if arguments.use_fsdp or arguments.use_megatron_lm or arguments.multi_gpu:
        return environments.prepare_multi_gpu_env(arguments)
    return environments.prepare_simple_launcher_cmd_env(arguments)[1]


MULTI = {"num_machines": 1, "num_processes": 2, "mixed_precision": "no"}
ONE = {"num_machines": 1, "num_processes": 1, "distributed_type": "NO", "use_cpu": True}
FSDP2 = {"fsdp_version": 2, "fsdp_reshard_after_forward": True}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "deepspeed": (
        {**MULTI, "distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
        "ACCELERATE_USE_DEEPSPEED: accelerate's configuration asks for DeepSpeed",
    ),
    "fsdp": (
        {**MULTI, "distributed_type": "FSDP", "fsdp_config": FSDP2},
        "ACCELERATE_USE_FSDP: accelerate's configuration asks for FSDP",
    ),
    "megatron": (
        {
            **MULTI,
            "distributed_type": "MEGATRON_LM",
            "megatron_lm_config": {"megatron_lm_tp_degree": 2},
        },
        "ACCELERATE_USE_MEGATRON_LM: accelerate's configuration asks for Megatron-LM",
    ),
    "bf16": (
        {**ONE, "mixed_precision": "bf16"},
        "asks for bf16, but precision is model.dtype here, fp32",
    ),
    "fp16": ({**ONE, "mixed_precision": "fp16"}, "or --model.dtype fp16"),
    "dynamo": (
        {**ONE, "mixed_precision": "no", "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
        (
            "ACCELERATE_DYNAMO_BACKEND: "
            "accelerate's configuration asks for torch.compile with inductor"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_accelerate_asks_for_is_refused(case: str, tmp_path: Path) -> None:
    file, words = REFUSED[case]
    with pytest.raises(UserError) as caught:
        launcher.check("fp32", variables(file, tmp_path))
    assert words in str(caught.value)


def test_tensor_parallelism_is_refused(tmp_path: Path) -> None:
    """accelerate wants FSDP 2 around it; its variable alone is refused, too."""
    given = argparse.Namespace(
        **dict.fromkeys(
            [
                "dp_replicate_size",
                "dp_shard_size",
                "cp_size",
                "cp_backend",
                "sp_size",
                "sp_backend",
            ],
            1,
        )
    )
    given = argparse.Namespace(
        **{f"parallelism_config_{key}": value for key, value in vars(given).items()},
        parallelism_config_tp_size=2,
    )
    found = environments.prepare_extend_env_parallelism_config(given, {})
    with pytest.raises(UserError, match=r"ACCELERATE_USE_PARALLELISM_CONFIG: .*asks for tensor"):
        launcher.check("fp32", cast(dict[str, str], found))


def test_gradient_accumulation_and_fp8_are_refused() -> None:
    """Of fp8 accelerate checks the libraries before it starts anything, so the variable stands for
    itself."""
    with pytest.raises(
        UserError, match=r"asks for 4, but the images of an optimizer step are trainer.minibatches"
    ):
        launcher.check("fp32", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    with pytest.raises(UserError, match=r'asks for fp8.*set mixed_precision: "no" there$'):
        launcher.check("bf16", {"ACCELERATE_MIXED_PRECISION": "fp8"})


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_files_are_not_refused(file: Path, tmp_path: Path) -> None:
    flags = ["--main_process_ip", "127.0.0.1"] if file.stem == "multi_node" else []
    launcher.check("bf16", variables(yaml.safe_load(file.read_text()), tmp_path, flags))


def test_what_agrees_is_not_refused(tmp_path: Path) -> None:
    launcher.check("bf16", variables({**ONE, "mixed_precision": "bf16"}, tmp_path))
    launcher.check("fp32", {})
    launcher.check("fp32", {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO"})


def test_under_accelerate_launch_it_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    """As a user meets it: exit code 2, by train and by evaluate, before a folder is made."""
    launching = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--mixed_precision",
        "bf16",
    ]
    argv = ["-m", "ddpo.train", *helpers.smoke(tmp_path / "run")]
    done = subprocess.run(
        [*launching, *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ddpo: ")]
    assert (
        len(lines) == 1
        and "ACCELERATE_MIXED_PRECISION" in lines[0]
        and "exit status 2" in done.stderr
    )
    assert not (tmp_path / "run").exists()

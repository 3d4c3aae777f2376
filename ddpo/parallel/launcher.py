"""What a launcher's configuration asks for and ddpo does not do, refused before anything is done.

`accelerate launch` hands its own configuration on in variables; whoever wrote it there means it.
"""

import os
from collections.abc import Mapping

from ddpo.errors import UserError

SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "use_deepspeed"),
    "ACCELERATE_USE_FSDP": ("FSDP", "use_fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "use_megatron_lm"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "tensor, context or sequence parallelism",
        "parallelism_config",
    ),
}
"""Variable -> what it asks for, and the name of that in accelerate's configuration."""

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""accelerate's mixed_precision -> the model.dtype that says the same; "no" leaves it to
model.dtype."""


def check(dtype: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError for what was asked for and would be ignored.

    `dtype` is the configuration's.
    """
    for variable, (what, name) in SHARDING.items():
        if environment.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t"):
            raise UserError(
                f"{variable}: accelerate's configuration asks for {what}, which ddpo does not do; "
                f"take distributed_type MULTI_GPU, without {name}"
                + ("; parallel.shard: true shares the denoiser" if "FSDP" in what else "")
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no" and PRECISIONS.get(precision) != dtype:
        same = f", or --model.dtype {precision}" if precision in PRECISIONS else ""
        raise UserError(
            "ACCELERATE_MIXED_PRECISION: "
            f"accelerate's configuration asks for {precision}, but precision is "
            f'model.dtype here, {dtype}; set mixed_precision: "no" there{same}'
        )
    compiler = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler != "no":
        raise UserError(
            "ACCELERATE_DYNAMO_BACKEND: accelerate's configuration asks for torch.compile with "
            f"{compiler}; that is model.compile here; take dynamo_backend NO"
        )
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: accelerate's configuration asks for "
            f"{steps}, but the images of an optimizer step are trainer.minibatches here, "
            "and micro_batch cuts them into calls; leave it out there"
        )

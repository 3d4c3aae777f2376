"""What the families of rectified flow have in common: a transformer, a T5, a flow's schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.models import Trial
from ddpo.models._shared.conditions import tokens
from ddpo.models._shared.policy import DiffusersPolicy
from ddpo.parallel.transfer import to_device
from ddpo.plugins.ranges import NonNegativeInt
from ddpo.samplers import NoiseSchedule
from ddpo.samplers._diffusers import rectified_flow


class FlowPolicy(DiffusersPolicy):
    """A policy whose transformer predicts the velocity of a rectified flow.

    `max_sequence_length` is the number of tokens that the T5 reads, and pads to; null: as many as
    the pipeline's own call takes, 256 of Stable Diffusion 3 and 512 of FLUX.
    """

    denoiser, trial_sampler = "transformer", "flow_euler"
    # a block has attention of its own for the text, beside the picture's
    lora_targets = (
        *DiffusersPolicy.lora_targets,
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
    t5_name: str
    usual_length: int
    uniform_levels: bool
    """Whether the pipeline's own call passes the scheduler evenly spaced noise levels."""

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        max_sequence_length: NonNegativeInt | None = None,
        **options: Any,
    ) -> None:
        given = max_sequence_length
        self.max_sequence_length = self.usual_length if given is None else given
        super().__init__(pretrained, *args, **options)
        # training with a text encoder encodes anew each time, and T5 is never trained
        self.t5 = self.text_encoders.get(self.t5_name)

    def longest(self) -> tuple[Any, int]:
        if self.t5_name not in self.text_encoders:
            return super().longest()
        tokenizer = getattr(self.pipeline, self.t5_name.replace("text_encoder", "tokenizer"))
        return tokenizer, self.max_sequence_length

    def _schedule(self) -> NoiseSchedule:
        patch = self.layout().patch
        _, height, width = self.latent_shape
        tokens = (height // patch) * (width // patch)
        return rectified_flow(self.pipeline.scheduler.config, tokens, self.uniform_levels)

    def call_options(self, trial: Trial) -> dict[str, Any]:
        options = super().call_options(trial)
        return {**options, "max_sequence_length": self.max_sequence_length}

    def _t5(self, texts: Sequence[str]) -> Float[Tensor, "N L D"]:
        """The T5's last layer, in the precision of the rest."""
        encoder = self.text_encoders[self.t5_name]
        tokenizer = getattr(self.pipeline, self.t5_name.replace("text_encoder", "tokenizer"))
        ids = to_device(tokens(tokenizer, texts, self.max_sequence_length), self.device)
        # it overflows in fp16 where autocast rounds what its files keep in fp32
        with self._resident.here(encoder), torch.no_grad():
            return encoder(ids)[0].to(self.dtype)

"""Ways to need less memory: networks that leave the device, 4 bits, pictures decoded in parts."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ddpo.errors import UserError

NF4_BITS = 4.127
"""Bits per weight: 4, and per block of 64 a scale in 8 bits; per 256 of these one in 32."""


class Resident:
    """Which networks stay on the device, and which only come to it to compute."""

    def __init__(self, device: torch.device, stay: Iterable[nn.Module]) -> None:
        self.device, self._stay = device, set[int]()
        for module in stay:
            module.to(device)
            self._stay.add(id(module))

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._stay

    @contextmanager
    def here(self, module: nn.Module, argument: Tensor | None = None) -> Iterator[None]:
        """Within it the module is on the device.

        It stays there as long as a graph of the argument needs it.
        """
        if module in self or self.device.type == "cpu":  # where those that leave the device are
            yield
            return
        module.to(self.device)
        try:
            yield
        finally:
            graph = argument is not None and argument.requires_grad and torch.is_grad_enabled()
            if not graph:
                module.to("cpu")


BACKEND = "inductor"
"""What compiles; it needs a C++ compiler, and on a GPU Triton."""

SHAPES = 256
"""Compiled variants of a block's code: one by width, rows of a call, and adapter on or off."""


def compile_blocks(network: Any) -> None:
    """Compile each repeated block of a denoiser when it is first called at a shape.

    Raises UserError for a network without such blocks.
    """
    if not getattr(network, "_repeated_blocks", None):
        raise UserError(
            f"model.compile: {type(network).__name__} has no blocks that repeat; set it to false"
        )
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    network.compile_repeated_blocks(backend=BACKEND, dynamic=False)


def prepare_vae(vae: Any, slicing: bool, tiling: bool) -> None:
    """Whether it decodes picture by picture, or large ones in tiles."""
    if slicing:
        vae.enable_slicing()
    if tiling:
        vae.enable_tiling()


def check_quantize(quantize: str | None, whole: bool, loras: Sequence[str]) -> None:
    """Raises UserError where a quantized denoiser cannot be: before it is loaded."""
    if quantize is None:
        return
    if whole:
        raise UserError(
            f"model.quantize: {quantize} holds a frozen denoiser, and lora: null trains it; "
            "take a LoRA, or leave model.quantize out"
        )
    if loras:
        raise UserError(
            f"model.quantize: {quantize} weights cannot take up model.loras; leave one of them out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantize: {quantize} needs bitsandbytes, which is not installed; "
            "pip install 'ddpo[bitsandbytes]'"
        )


def quantized(pipeline_class: Any, denoiser: str, place: str, dtype: torch.dtype) -> Any:
    """The denoiser with its linear layers in 4 bits (NF4, Dettmers et al. 2023), frozen.

    Raises UserError without a GPU.
    """
    import diffusers

    if not torch.cuda.is_available():
        raise UserError("model.quantize: nf4 needs a GPU, and there is none; leave it out")

    settings = diffusers.BitsAndBytesConfig(  # pyright: ignore[reportPrivateImportUsage]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    name = pipeline_class.load_config(place)[denoiser][1]
    return getattr(diffusers, name).from_pretrained(
        place, subfolder=denoiser, quantization_config=settings, dtype=dtype
    )


def saved_by_nf4(network: nn.Module) -> int:
    """Bytes that the frozen linear layers of a network take less in NF4."""
    layers = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    weights = (layer.weight for layer in layers if not layer.weight.requires_grad)
    return sum(weight.nbytes - round(weight.numel() * NF4_BITS / 8) for weight in weights)

"""LoRA adapters in any module, by peft's own functions.

The methods of the same names that diffusers and transformers give their modules first ask for a
version of peft, and transformers 5.24.0 asked for one that was not out yet. Nothing here needs more
than peft does.
"""

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

NAME = "default"


def attach(module: nn.Module, config: LoraConfig) -> None:
    """Put a fresh, active adapter, to be trained, into the layers that `config` names."""
    inject_adapter_in_model(config, module, NAME)
    # by this flag diffusers and transformers know that they fuse, unload and save a module with
    # adapters
    module._hf_peft_config_loaded = True  # pyright: ignore[reportArgumentType]


def switch(module: nn.Module, on: bool) -> None:
    """Compute with the adapter or without."""
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(on)

"""A masked model's trained weights as peft and transformers read them, and read back by these."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ddpo.models import Trial
from ddpo.models._shared import adapters
from ddpo.models.masked.language import Language, load
from ddpo.parallel.seeds import generator

PREFIX = "base_model.model."
"""Of a weight's name in a peft folder."""


def save_adapter(model: Any, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, for PeftModel.from_pretrained."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{PREFIX}{name}": value.detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    config = deepcopy(model.peft_config[adapters.NAME])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def merged(model: nn.Module) -> Any:
    """A copy whose adapters are part of the weights."""
    copy: Any = deepcopy(model)
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()  # pyright: ignore[reportCallIssue]
            parent, _, own = name.rpartition(".")
            setattr(copy.get_submodule(parent), own, layer.get_base_layer())
    copy._hf_peft_config_loaded = False
    if hasattr(copy, "peft_config"):
        del copy.peft_config
    return copy


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, the adapters added to them."""
    return {name: weight.detach().cpu() for name, weight in merged(model).named_parameters()}


def save_whole(language: Language, folder: Path) -> None:
    """The network with its adapter merged, and its tokenizer, for `from_pretrained`."""
    merged(language.model).save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)


@torch.no_grad()
def read_back(
    file_format: str,
    folder: Path,
    pretrained: str,
    trial: Trial,
    ids: Int[Tensor, " A1"],
    around: tuple[list[int], list[int]],
    length: int,
) -> tuple[Float[Tensor, "B L A"], dict[str, Tensor]]:
    """The trial's sequences and the merged weights, fresh from the base model.

    A plain loop of MDLM's ancestral sampling on the tokens of transformers' network.
    """
    whole = file_format == "merged"
    model = load(str(folder) if whole else pretrained, () if whole else (str(folder),)).model.eval()
    size, steps = (len(trial.keys), length), trial.num_steps
    shape = (steps + 1, length, len(ids))
    noise = [torch.randn(shape, generator=generator(*key)) for key in trial.keys]
    uniform = torch.special.ndtr(torch.stack(noise).double())
    ids, mask = ids.cpu(), int(ids[-1])
    first, last = (torch.tensor(end, dtype=torch.long).expand(size[0], -1) for end in around)
    tokens = torch.full(size, mask)
    for step in range(steps):
        logits = model(input_ids=torch.cat([first, tokens, last], dim=1)).logits.double()
        chances = logits[:, first.shape[1] : first.shape[1] + length, ids[:-1]].log_softmax(-1)
        letters = (chances - (-uniform[:, step + 1, :, 1:].log()).log()).argmax(-1)
        left = steps - step
        appears = uniform[:, step + 1, :, 0] >= (left - 1) / left
        tokens = torch.where((tokens == mask) & appears, ids[letters], tokens)
    numbers = (tokens[..., None] == ids[:-1]).long().argmax(-1)
    return F.one_hot(numbers, len(ids) - 1).float(), {
        name: weight.detach() for name, weight in model.named_parameters()
    }

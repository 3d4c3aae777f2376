"""The head of LAION's aesthetic predictor and of ImageReward: five linear layers in a row."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


class Affine:
    """f(x) = w.

    X + b, the product of the layers `layers.N.weight` and `layers.N.bias` in the order of N.

    Published as 768-1024-128-64-16-1 with N = 0, 2, 4, 6, 7: dropout (off when scoring) stood in
    between, no other function. Raises ValueError where the layers do not lead from `width` features
    to one number.
    """

    def __init__(self, state: Mapping[str, Tensor], width: int, device: torch.device | str) -> None:
        numbers = sorted(int(key.split(".")[1]) for key in state if key.endswith(".weight"))
        weight = torch.eye(width, dtype=torch.float64)
        bias = torch.zeros(width, dtype=torch.float64)
        for number in numbers:
            layer = state[f"layers.{number}.weight"].double()
            if layer.shape[1] != len(weight):
                raise ValueError(
                    f"layers.{number} takes {layer.shape[1]} numbers and gets {len(weight)}"
                )
            weight, bias = layer @ weight, layer @ bias + state[f"layers.{number}.bias"].double()
        if not numbers or len(weight) != 1:
            raise ValueError("its layers do not end in one number")
        self.weight, self.bias = weight[0].float().to(device), bias[0].float().to(device)

    def __call__(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        return features.float() @ self.weight + self.bias

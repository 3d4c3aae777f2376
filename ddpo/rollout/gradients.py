"""The gradient of each image's log-probability, collected while the image is sampled.

The first update after a rollout is made at the weights that sampled: every ratio is 1, nothing is
clipped, and the gradient of a loss is

    sum over images i of c_i G_i,    G_i = grad of sum over trained steps t of
                                           log p(x_{t-1}^i | x_t^i)

with c_i the derivative of the loss with respect to one of the log-probabilities of image i, the
same for each of its steps. G_i needs no reward, so that each step's graph is gone before the next
step begins: no second forward pass, at the memory of one step and of one gradient per image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ddpo.errors import UserError

Layers = Mapping[str, nn.Linear]


def trained_layers(
    networks: Sequence[nn.Module], parameters: Mapping[str, nn.Parameter]
) -> Layers | None:
    """The linear layers whose weights are all that is trained, by the parameters' names.

    None where something else is trained, too: convolutions, biases, norms.
    """
    owners = {
        id(layer.weight): layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    }
    layers = {name: owners.get(id(parameter)) for name, parameter in parameters.items()}
    return None if None in layers.values() else layers  # pyright: ignore[reportReturnType]


class ImageGradients:
    """Sums over steps of the gradients of log-probabilities, one per image and trained weight.

    layers   whose weights are trained, as `trained_layers` gives them
    columns  the steps that are trained on
    scale    by which log-probabilities are multiplied first, and the sums with them: it lifts the
             gradients that flow through the network into the range of half precision
    """

    def __init__(self, layers: Layers, columns: Bool[Tensor, " T"], scale: float = 1.0) -> None:
        self.layers, self.scale = layers, scale
        self.columns: list[bool] = columns.tolist()
        self._parts: dict[str, list[Tensor]] = {name: [] for name in layers}

    def begin(self, images: int) -> None:
        """A chunk of so many images."""
        for name, layer in self.layers.items():
            weight = layer.weight
            zeros = torch.zeros(images, *weight.shape, dtype=torch.float32, device=weight.device)
            self._parts[name].append(zeros)

    def end(self, genuine: int) -> None:
        """Of the chunk, only the first `genuine` images are kept."""
        for parts in self._parts.values():
            parts[-1] = parts[-1][:genuine]

    def keep(self, chunks: int) -> None:
        """Of the chunks, only the first so many: another was begun in vain."""
        for parts in self._parts.values():
            del parts[chunks:]

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it, gradients are enabled, and those of the layers' weights are told apart.

        Autograd leaves the weights themselves alone: it would add the images up.
        """
        handles = [
            layer.register_forward_hook(self._listen(name)) for name, layer in self.layers.items()
        ]
        for layer in self.layers.values():
            layer.weight.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for layer in self.layers.values():
                layer.weight.requires_grad_(True)
            for handle in handles:
                handle.remove()

    def backward(self, logp: Float[Tensor, " B"]) -> None:
        """Add the gradients of a step's log-probabilities, one per image."""
        (logp.sum() * self.scale).backward()

    def _listen(self, name: str) -> Callable[..., None]:
        total = self._parts[name][-1]

        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if not output.requires_grad:  # the first layer with an adapter: here the graph begins
                output.requires_grad_()
            x = inputs[0].detach()
            if len(x) not in (len(total), 2 * len(total)):
                raise UserError(
                    f"trainer.while_sampling: {name} is called with {len(x)} rows for "
                    f"{len(total)} images, which cannot be told apart; set it to false"
                )
            output.register_hook(lambda gradient: _add(total, gradient, x))

        return hook

    def weighted(self, coefficients: Float[Tensor, " B"]) -> dict[str, Float[Tensor, "..."]]:
        """Sum over images of their coefficient times their gradient, by parameter."""
        return {
            name: torch.einsum("b,b...->...", coefficients.to(parts[0]), torch.cat(parts))
            for name, parts in self._parts.items()
        }


def _add(
    total: Float[Tensor, "B out in"], gradient: Float[Tensor, "..."], x: Float[Tensor, "..."]
) -> None:
    """Each image's outer product of output gradient and input, summed over its tokens.

    With guidance a call has every image twice, first all without their prompts, then all with.
    """
    images = len(total)
    for half, inputs in zip(gradient.split(images), x.split(images), strict=True):
        outer = half.reshape(images, -1, half.shape[-1]).transpose(1, 2)
        tokens = inputs.reshape(images, -1, inputs.shape[-1])
        total.baddbmm_(outer.to(total), tokens.to(total))

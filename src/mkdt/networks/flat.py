"""Parameters and buffers as flat vectors, and networks as functions of a parameter vector."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


def flatten(module: nn.Module) -> Tensor:
    """Copy all parameters to a vector float32 [P], in the order of ``named_parameters()``."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def flatten_state(module: nn.Module) -> Tensor:
    """Copy parameters and floating-point buffers (running statistics) to float32 [S], in the order of ``state_dict()``."""
    return torch.cat(
        [value.detach().reshape(-1) for value in module.state_dict().values() if value.is_floating_point()]
    )


def load_state(module: nn.Module, flat: Tensor) -> None:
    """Copy a vector of ``flatten_state`` back into the module.

    Raises:
        RuntimeError: the vector has another length.
    """
    values = [value for value in module.state_dict().values() if value.is_floating_point()]
    with torch.no_grad():
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))


def flat_forward(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``forward(theta, images)``, the output of the module with the vector ``theta`` [P] as its parameters."""
    names = [name for name, _ in module.named_parameters()]
    shapes = [parameter.shape for parameter in module.parameters()]
    sizes = [parameter.numel() for parameter in module.parameters()]

    def forward(theta: Tensor, images: Tensor) -> Tensor:
        parts = theta.split(sizes)
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cast(Tensor, functional_call(module, weights, (images,)))

    return forward


def flat_mse(student: nn.Module) -> LossFn:
    """Return ``loss(theta, images, targets)``, the mean squared error of the student with parameters ``theta`` [P].

    The mean runs over images and target dimensions (paper, section 4, the knowledge distillation objective).
    """
    forward = flat_forward(student)

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(forward(theta, images), targets)

    return loss

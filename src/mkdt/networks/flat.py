"""Parameters and buffers as flat vectors, and networks as functions of them."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


def flatten(module: nn.Module) -> Tensor:
    """A copy of all parameters, float32 [P], in ``named_parameters()`` order."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def flatten_state(module: nn.Module) -> Tensor:
    """A copy of parameters and floating buffers (running statistics), float32 [S], in ``state_dict()`` order."""
    return torch.cat(
        [value.detach().reshape(-1) for value in module.state_dict().values() if value.is_floating_point()]
    )


def load_state(module: nn.Module, flat: Tensor) -> None:
    """Copy a vector of ``flatten_state`` back into the module."""
    values = [value for value in module.state_dict().values() if value.is_floating_point()]
    with torch.no_grad():
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))


def flat_forward(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """``forward(theta, images)``: the output of the module whose parameters are the vector ``theta``."""
    names = [name for name, _ in module.named_parameters()]
    shapes = [parameter.shape for parameter in module.parameters()]
    sizes = [parameter.numel() for parameter in module.parameters()]

    def forward(theta: Tensor, images: Tensor) -> Tensor:
        parts = theta.split(sizes)
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cast(Tensor, functional_call(module, weights, (images,)))

    return forward


def flat_mse(student: nn.Module) -> LossFn:
    """``loss(theta, images, targets)``: mean squared error of the student whose parameters are the vector ``theta``.

    The mean runs over images and target dimensions (paper, section 4: the KD objective).
    """
    forward = flat_forward(student)

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(forward(theta, images), targets)

    return loss

"""Optimizers of the teacher."""

import math

import torch
from torch import nn

from mkdt.teacher.optimizers import Lars


def test_lars_equals_a_transcription_of_its_equations() -> None:
    """You et al. (2017): matrices change by trust * (gradient + decay * w), biases by the plain learning rate."""
    lr, momentum, decay, trust = 0.5, 0.9, 0.01, 0.001
    matrix, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))
    zero = nn.Parameter(torch.zeros(2, 2))  # its norm is 0, so it uses the plain learning rate
    optimizer = Lars([matrix, bias, zero], lr, momentum=momentum, weight_decay=decay)
    values = [parameter.detach().clone() for parameter in (matrix, bias, zero)]
    speeds = [torch.zeros_like(value) for value in values]
    for _ in range(4):
        for k, parameter in enumerate((matrix, bias, zero)):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            update = gradient + decay * values[k]
            if values[k].ndim > 1 and values[k].norm() > 0:
                update = trust * math.sqrt(float((values[k] ** 2).sum()) / float((update**2).sum())) * update
            speeds[k] = momentum * speeds[k] + update
            values[k] = values[k] - lr * speeds[k]
        optimizer.step()
        for parameter, value in zip((matrix, bias, zero), values, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)

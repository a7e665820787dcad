"""Optimizers of the teacher and the schedule of their learning rate."""

import math
from collections.abc import Callable

import torch
from torch import nn


class Lars(torch.optim.SGD):
    """SGD with layer-wise adaptive rates (LARS; You et al., 2017) for weight matrices and kernels.

    Biases and norms use the plain learning rate.
    """

    TRUST = 0.001  # trust coefficient published for Barlow Twins and SimCLR

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients, which are rescaled in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.ndim < 2:
                    continue
                size, update = parameter.norm(), (parameter.grad + group["weight_decay"] * parameter).norm()
                if size > 0 and update > 0:
                    # SGD adds the weight decay itself, so scale gradient and decay and subtract the decay again.
                    trust = self.TRUST * size / update
                    decay = group["weight_decay"] * parameter
                    parameter.grad.copy_(trust * (parameter.grad + decay) - decay)
        super().step(closure)


def build_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Build the optimizer ``adamw``, ``sgd`` or ``lars`` (without weight decay of biases and norms)."""
    parameters = list(model.parameters())
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Lars(groups, lr, momentum=0.9)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the factor in (0, 1] of the learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

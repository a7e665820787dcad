"""Precision of arithmetic: float32, TF32 (products and convolutions with a mantissa of 10 bits) or bfloat16 (7 bits).

In bfloat16 are only forward passes through ``forward``, and what autograd makes of them. Weights, losses, optimisers and all else
stay in float32, products and convolutions among them in TF32. Distillation calls networks without ``forward``: its hypergradient
has products of many small terms.
"""

from typing import cast

import torch
from torch import Tensor, nn

_current = "float32"


def available(wanted: str, device: torch.device) -> str:
    """Return the precision that ``compute.precision`` means on a device: ``float32``, ``tf32`` or ``bf16``.

    ``auto`` is ``tf32`` on a GPU that has it, else ``float32``. What a device does not have is ``float32`` there.
    """
    if device.type == "cpu":
        return "bf16" if wanted == "bf16" else "float32"
    if wanted == "float32" or not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"  # the same GPUs have TF32 and bfloat16
    return "tf32" if wanted == "auto" else wanted


def compute_in(precision: str) -> None:
    """Compute in ``float32``, ``tf32`` or ``bf16`` from now on, in this process."""
    global _current
    _current = precision
    # Convolutions take TF32 by default, products do not: one key decides for both.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"


def current() -> str:
    """Return the precision that this process computes in."""
    return _current


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """Apply a network in the current precision; its output is float32."""
    if _current != "bf16":
        return cast(Tensor, network(images))
    with torch.autocast(images.device.type, torch.bfloat16):
        return cast(Tensor, network(images)).float()

"""Small labelled data sets, and the settings that score them."""

from typing import Any

import torch
from torch import Tensor

from mkdt.evaluate.labels import Downstream

PROBE: dict[str, Any] = {
    "label_fractions": [0.1, 0.5],
    "label_draws": 2,
    "selection_draws": 2,
    "l2": 1e-3,
    "standardise": True,
    "knn": None,
    "finetune": None,
}


def labelled(name: str = "toy", classes: int = 4, count: int = 80, seed: int = 0, noise: float = 0.5) -> Downstream:
    """Images 1x4x4 in clouds around the picture of their class."""
    stream = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, 4, 4, generator=stream)

    def part(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % classes
        return centres[labels] + noise * torch.randn(n, 1, 4, 4, generator=stream), labels

    return Downstream(name, part(count), part(40), part(60))

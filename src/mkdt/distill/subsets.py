"""Real subsets: random images, and the images that the experts find hardest.

A new subset method is a function ``{method}_subset`` with the signature of these, in a file of ``mkdt.extensions``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.distill.source import Source


def random_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Draw ``count`` distinct rows, int64, by (seed, distill_seed)."""
    stream = seeding.generator(seed, "random subset", distill_seed)
    return torch.randperm(len(source.images), generator=stream)[: settings["count"]].clone()


def high_loss_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Choose the ``count`` rows with the highest loss after epoch 1, averaged over all experts (paper, section 4.2).

    Returns:
        int64 [count], highest loss first; equal losses keep the order of the rows. The seeds have no effect.
    """
    mean = torch.stack(list(source.losses)).double().mean(0)
    return torch.sort(mean, descending=True, stable=True).indices[: settings["count"]].clone()

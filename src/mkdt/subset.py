"""Real subsets: a random one, and the images that the experts find hardest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mkdt import seeding

# What a real subset stores as its step size, which the paper's protocol pre-trains with: the published start value.
STEP_SIZE = 0.1


def random_subset(total: int, count: int, seed: int, distill_seed: int) -> Tensor:
    """``count`` distinct rows of ``range(total)``, int64, drawn by (seed, distill_seed)."""
    return torch.randperm(total, generator=seeding.generator(seed, "random subset", distill_seed))[:count].clone()


def high_loss_subset(losses: Sequence[Tensor], count: int) -> Tensor:
    """The ``count`` rows with the highest loss after epoch 1, averaged over all experts (paper, section 4.2).

    Args:
        losses: one float32 [n] an expert.

    Returns:
        int64 [count], hardest first; equal losses keep the order of the rows.
    """
    mean = torch.stack(list(losses)).double().mean(0)
    return torch.sort(mean, descending=True, stable=True).indices[:count].clone()

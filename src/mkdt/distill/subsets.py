"""Real subsets: what a method may look at, a random one, and the images that the experts find hardest.

A new subset method is a function ``{method}_subset`` with the signature of these, in a file of ``mkdt.extensions``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.artifacts import Artifact

# What a real subset stores as its step size, which the paper's protocol pre-trains with: the published start value.
STEP_SIZE = 0.1


@dataclass(frozen=True)
class Source:
    """What a method may look at: no labels.

    Attributes:
        images: uint8 [n,C,H,W].
        mean, std: float32 [C], what the teacher's input is normalised with.
        targets: float32 [n,D], the teacher's representations.
        losses: for each expert float32 [n], each image's loss after epoch 1; empty for methods without experts.
        teacher: the backbone, for methods that ask it anew.
        device: where to compute.
        experts: their files, with ``trajectory`` float32 [epochs + 1,P]; empty for methods without experts.
    """

    images: Tensor
    mean: Tensor
    std: Tensor
    targets: Tensor
    losses: Sequence[Tensor] = ()
    teacher: nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experts: Sequence[Artifact] = ()


def random_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """``count`` distinct rows, int64, drawn by (seed, distill_seed)."""
    stream = seeding.generator(seed, "random subset", distill_seed)
    return torch.randperm(len(source.images), generator=stream)[: settings["count"]].clone()


def high_loss_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """The ``count`` rows with the highest loss after epoch 1, averaged over all experts (paper, section 4.2).

    Returns:
        int64 [count], hardest first; equal losses keep the order of the rows. The seeds decide nothing.
    """
    mean = torch.stack(list(source.losses)).double().mean(0)
    return torch.sort(mean, descending=True, stable=True).indices[: settings["count"]].clone()

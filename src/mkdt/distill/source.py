"""The data that a method may use."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from mkdt.artifacts import Artifact


def _empty() -> Tensor:
    return torch.empty(0)


class Space(Protocol):
    """What a ``TargetSpace`` does; a method that does not use it does not depend on its code."""

    def apply(self, representations: Tensor) -> Tensor:
        """Map representations float32 [n,D] to targets float32 [n,K]."""


@dataclass(frozen=True)
class Source:
    """The data that a method may use; there are no labels. What the method did not ask for is empty.

    Attributes:
        images: uint8 [n,C,H,W], the training images.
        mean: float32 [C], which normalises images for the teacher; without the teacher, that of the images.
        std: float32 [C], likewise.
        targets: float32 [n,D], the teacher's representations of the images, in the space of the targets.
        losses: float32 [n] for each expert, the loss of each image after the first epoch.
        teacher: the backbone that made the targets, for methods that encode other images with it.
        space: maps the teacher's representations to targets; None where they are the targets.
        device: where to compute.
        experts: the experts' files, each with ``trajectory`` float32 [epochs+1,P].
    """

    images: Tensor = field(default_factory=_empty)
    mean: Tensor = field(default_factory=_empty)
    std: Tensor = field(default_factory=_empty)
    targets: Tensor = field(default_factory=_empty)
    losses: Sequence[Tensor] = ()
    teacher: nn.Module | None = None
    space: Space | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experts: Sequence[Artifact] = ()

"""Students (a backbone with a linear head) and the projector of self-supervised learning."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from mkdt import seeding
from mkdt.networks.backbones import Spec, build_backbone


class Projector(nn.Sequential):
    """The head of SSL: linear, batch norm, ReLU for each hidden width, then a linear layer without bias.

    Without ``running_statistics`` its weights are its whole state, as trajectories need; training does not change.
    """

    def __init__(self, widths: list[int], *, running_statistics: bool = True) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            norm = nn.BatchNorm1d(outputs, track_running_stats=running_statistics)
            layers += [nn.Linear(inputs, outputs, bias=False), norm, nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-2], widths[-1], bias=False))


class Student(nn.Module):
    """A backbone and a linear head that maps its features to the teacher's representation."""

    def __init__(self, backbone: nn.Module, targets: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(cast(int, backbone.dimension), targets)

    def forward(self, images: Tensor) -> Tensor:
        """Predict representations [n, targets] of images [n,C,H,W]."""
        return cast(Tensor, self.head(self.backbone(images)))


def build_student(
    spec: Spec, channels: int, size: int, targets: int, seed: int, purpose: str, *identity: int
) -> Student:
    """Build a student whose initial weights depend only on its architecture, ``seed``, ``purpose`` and ``identity``."""
    with seeding.global_stream(seed, purpose, *identity):
        return Student(build_backbone(spec, channels, size), targets)

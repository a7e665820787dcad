"""Students (a backbone with a linear head) and the projector of self-supervised learning."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.errors import UserError
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

    def __init__(self, backbone: nn.Module, targets: int, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, targets)

    def forward(self, images: Tensor) -> Tensor:
        """Predict representations [n, targets] of images [n,C,H,W]."""
        return cast(Tensor, self.head(self.backbone(images)))


def feature_size(backbone: nn.Module, example: Tensor) -> int:
    """Return the number of features of a backbone of one's own.

    Args:
        backbone: maps images float32 [n,C,H,W] to features float32 [n,D].
        example: one image, [1,C,H,W], on the backbone's device.

    Raises:
        UserError: the backbone returns anything but one vector an image.
    """
    training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(example)
    backbone.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
        given = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"the backbone returned {given} of one image: expected features [1, D]; replace its last layers."
        )
    return int(features.shape[1])


def student_of(backbone: nn.Module, example: Tensor, targets: int, seed: int) -> Student:
    """Put a head on a backbone of one's own, whose weights stay as they are.

    Args:
        backbone: maps images float32 [n,C,H,W] to features float32 [n,D].
        example: some images, from which D is found; they are on the backbone's device.
        targets: outputs of the head.
        seed: of the head's initial weights.

    Raises:
        UserError: as ``feature_size``.
    """
    features = feature_size(backbone, example[:1])
    with seeding.global_stream(seed, "student head"):
        return Student(backbone, targets, features)


def build_student(
    spec: Spec, channels: int, size: int, targets: int, seed: int, purpose: str, *identity: int
) -> Student:
    """Build a student whose initial weights depend only on its architecture, ``seed``, ``purpose`` and ``identity``."""
    with seeding.global_stream(seed, purpose, *identity):
        backbone = build_backbone(spec, channels, size)
        return Student(backbone, targets, cast(int, backbone.dimension))

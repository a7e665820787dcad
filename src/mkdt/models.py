"""Backbones and heads: the ConvNet student, ResNets, the projector, and their parameters as flat vectors."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mkdt import seeding

Spec = Mapping[str, Any]
LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class ConvNet(nn.Module):
    """The usual student of dataset distillation: ``depth`` blocks of conv 3x3, norm, ReLU, 2x2 average pool.

    With instance norm (GroupNorm with one channel a group, as in the published code) it has no running
    statistics, so its weights alone are its state.
    """

    def __init__(self, channels: int, size: int, *, depth: int, width: int, norm: str) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(channels if block == 0 else width, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.dimension = width * (size // 2**depth) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 [n, dimension], of images [n,C,H,W]."""
        return cast(Tensor, self.blocks(images).flatten(1))


def _norm(name: str, width: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(width)
    if name == "instance":
        return nn.GroupNorm(width, width)
    if name == "group":
        return nn.GroupNorm(min(32, width), width)
    return nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., 2016); torchvision's parameter names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Feature map [n,outputs,H/stride,W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(images))


class ResNet(nn.Module):
    """A ResNet for small images: 3x3 stride-1 first convolution, no max-pool, one stage an entry of ``blocks``.

    ``blocks=[2, 2, 2, 2], width=64`` is the ResNet-18 of the paper (512-d).
    """

    def __init__(self, channels: int, size: int, *, blocks: list[int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layers = []
            for block in range(count):
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.dimension = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 [n, dimension], averaged over positions."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            hidden = getattr(self, f"layer{stage + 1}")(hidden)
        return hidden.mean((2, 3))


class Projector(nn.Sequential):
    """The SSL head: linear, batch norm, ReLU for each hidden width, then a linear layer without bias."""

    def __init__(self, widths: list[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-2], widths[-1], bias=False))


class Student(nn.Module):
    """A backbone and the linear head that maps its features to the teacher's representation."""

    def __init__(self, backbone: nn.Module, targets: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(cast(int, backbone.dimension), targets)

    def forward(self, images: Tensor) -> Tensor:
        """Predicted representations [n, targets]."""
        return cast(Tensor, self.head(self.backbone(images)))


def build_backbone(spec: Spec, channels: int, size: int) -> nn.Module:
    """A fresh backbone from its config entry (``architecture`` and its arguments).

    Its initial weights come from torch's global generator; see ``build_student`` for a named stream.
    """
    arguments = {key: value for key, value in spec.items() if key != "architecture"}
    if spec["architecture"] == "resnet18":
        return ResNet(channels, size, blocks=[2, 2, 2, 2], width=64)
    classes: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "resnet": ResNet}
    return classes[spec["architecture"]](channels, size, **arguments)


def build_student(spec: Spec, channels: int, size: int, targets: int, seed: int, purpose: str, *who: int) -> Student:
    """A student whose initial weights are a function of (seed, purpose, who) alone."""
    with seeding.global_stream(seed, purpose, *who):
        return Student(build_backbone(spec, channels, size), targets)


def flatten(module: nn.Module) -> Tensor:
    """A copy of all parameters, float32 [P], in ``named_parameters()`` order."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def flatten_state(module: nn.Module) -> Tensor:
    """A copy of parameters and floating buffers (running statistics), float32 [S], in ``state_dict()`` order."""
    return torch.cat(
        [value.detach().reshape(-1) for value in module.state_dict().values() if value.is_floating_point()]
    )


def load_state(module: nn.Module, flat: Tensor) -> None:
    """Copy a vector of ``flatten_state`` back into the module."""
    values = [value for value in module.state_dict().values() if value.is_floating_point()]
    with torch.no_grad():
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))


def flat_mse(student: nn.Module) -> LossFn:
    """``loss(theta, images, targets)``: mean squared error of the student whose parameters are the vector ``theta``.

    The mean runs over images and target dimensions (paper, section 4: the KD objective).
    """
    names = [name for name, _ in student.named_parameters()]
    shapes = [parameter.shape for parameter in student.parameters()]
    sizes = [parameter.numel() for parameter in student.parameters()]

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        parts = theta.split(sizes)
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.mse_loss(functional_call(student, weights, (images,)), targets)

    return loss

"""Backbones: networks that map images [n,C,H,W] to features [n, dimension]; the ConvNet, ResNets and others."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from mkdt.errors import UserError

Spec = Mapping[str, Any]


class ConvNet(nn.Module):
    """The usual student of dataset distillation: ``depth`` blocks of conv 3x3, norm, ReLU, 2x2 average pool.

    With instance norm (GroupNorm with one channel per group, as in the published code) it has no running statistics, so
    its weights are its whole state.
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
        """Compute features float32 [n, dimension] of images [n,C,H,W]."""
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
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., 2016), with the parameter names of torchvision."""

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
        """Compute the feature map [n,outputs,H/stride,W/stride] of [n,inputs,H,W]."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(images))


class ResNet(nn.Module):
    """A ResNet for small images: first convolution 3x3 with stride 1, no max-pool, one stage per entry of ``blocks``.

    ``blocks=[2, 2, 2, 2], width=64`` is the ResNet-18 of the paper, with 512 features.
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
        """Compute features float32 [n, dimension], averaged over positions."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            hidden = getattr(self, f"layer{stage + 1}")(hidden)
        return hidden.mean((2, 3))


class FromLayers(nn.Module):
    """A backbone from a sequence of layers; the last feature map is flattened, or averaged over positions."""

    def __init__(self, layers: nn.Module, dimension: int, *, average: bool = False) -> None:
        super().__init__()
        self.layers, self.dimension, self.average = layers, dimension, average

    def forward(self, images: Tensor) -> Tensor:
        """Compute features float32 [n, dimension]."""
        hidden = self.layers(images)
        return cast(Tensor, hidden.mean((2, 3)) if self.average else hidden.flatten(1))


def alexnet(channels: int, size: int) -> nn.Module:
    """Build AlexNet for small images as in KRR-ST (Lee et al., 2024) and, without batch norm, Zhao et al. (2021).

    It has five convolutions with batch norm and three 2x2 max-pools, so images must be at least 8x8.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for outputs, kernel, pool in [(128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)]:
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pool
        inputs = outputs
    return FromLayers(nn.Sequential(*layers), inputs * (size // 8) ** 2)


def vgg11(channels: int, size: int) -> nn.Module:
    """Build the convolutions of torchvision's VGG-11 with batch norm, as in KRR-ST.

    It has five max-pools, so images must be at least 32x32.
    """
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["A"], batch_norm=True)
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return FromLayers(layers, 512 * (size // 32) ** 2)


def mobilenet(channels: int, size: int) -> nn.Module:
    """Build torchvision's MobileNetV2 with the first two strides set to 1 for small images.

    KRR-ST uses the same strides but narrower blocks.
    """
    from torchvision.models import MobileNetV2

    blocks = [  # expansion, channels, repetitions, stride: Sandler et al. (2018), table 2, with 1 for the first stride of 2
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    layers = MobileNetV2(num_classes=1, inverted_residual_setting=blocks).features
    layers[0][0] = nn.Conv2d(channels, 32, 3, 1, 1, bias=False)
    return FromLayers(layers, 1280, average=True)


def torchvision_resnet(channels: int, size: int, *, name: str, kernel: int, padding: int, max_pool: bool) -> nn.Module:
    """Build torchvision's ResNet ``name`` without classifier, for published weights.

    Args:
        channels: channels of the images.
        size: not used; the network takes any size.
        name: a ResNet of torchvision, such as ``resnet18``.
        kernel: size of the first convolution: 7 (stride 2), or 3 (stride 1) for small images.
        padding: padding of the first convolution.
        max_pool: whether the max-pool after the first convolution is kept.
    """
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    model.conv1 = nn.Conv2d(channels, 64, kernel, 2 if kernel == 7 else 1, padding, bias=False)
    if not max_pool:
        model.maxpool = nn.Identity()
    model.dimension, model.fc = model.fc.in_features, nn.Identity()
    return cast(nn.Module, model)


def timm_model(channels: int, size: int, *, name: str, any_size: bool) -> nn.Module:
    """Build a model of the timm library without classifier, with random weights.

    Args:
        channels: channels of the images.
        size: not used; timm knows the size of its models.
        name: a model of ``timm.list_models()``.
        any_size: whether a vision transformer interpolates its position embedding to images of another size.

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("timm is not installed: pip install -e '.[timm]' in the environment of the jobs.") from error
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    try:
        try:
            model = timm.create_model(name, **arguments, **({"dynamic_img_size": True} if any_size else {}))
        except TypeError:  # convolutional networks take images of any size and do not have this argument
            model = timm.create_model(name, **arguments)
    except RuntimeError as error:
        raise UserError(
            f"timm has no model '{name}' ({str(error).splitlines()[0]}); see timm.list_models()."
        ) from error
    model.dimension = model.num_features
    return cast(nn.Module, model)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "resnet": ResNet,
    "resnet10": partial(ResNet, blocks=[1, 1, 1, 1], width=64),
    "resnet18": partial(ResNet, blocks=[2, 2, 2, 2], width=64),
    "vgg11": vgg11,
    "alexnet": alexnet,
    "mobilenet": mobilenet,
    "torchvision_resnet": torchvision_resnet,
    "timm": timm_model,
}


def build_backbone(spec: Spec, channels: int, size: int) -> nn.Module:
    """Build a backbone from its config entry (``architecture`` and its arguments), for images [n,channels,size,size].

    The initial weights come from torch's global generator; ``students.build_student`` uses a named random stream.
    """
    name, arguments = spec["architecture"], {key: value for key, value in spec.items() if key != "architecture"}
    build = BUILDERS.get(name) or import_module(f"mkdt.extensions.{name}").build
    return build(channels, size, **arguments)

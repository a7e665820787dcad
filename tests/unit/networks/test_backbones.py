"""Backbones: dimensions of their features and numbers of their parameters."""

from typing import Any

import pytest
import torch
from torch import nn

from mkdt.networks.backbones import build_backbone


@pytest.mark.parametrize(
    ("spec", "channels", "size", "dimension"),
    [
        ({"architecture": "resnet18"}, 3, 32, 512),
        ({"architecture": "convnet", "depth": 3, "width": 128, "norm": "instance"}, 3, 32, 2048),
        ({"architecture": "convnet", "depth": 4, "width": 128, "norm": "instance"}, 3, 64, 2048),
        ({"architecture": "resnet", "blocks": [1, 1], "width": 8}, 1, 8, 16),
    ],
)
def test_feature_dimensions_are_those_of_the_paper(
    spec: dict[str, Any], channels: int, size: int, dimension: int
) -> None:
    """ResNet-18 has 512 features; the ConvNet has 128 x 4 x 4 at the image sizes of the paper."""
    backbone = build_backbone(spec, channels, size).eval()
    assert backbone.dimension == dimension
    assert backbone(torch.zeros(2, channels, size, size)).shape == (2, dimension)


def test_resnet18_has_the_parameters_of_the_published_one() -> None:
    """Compare with torchvision's ResNet-18 without classifier and with a 3x3 first convolution."""
    from torchvision.models import resnet18

    published = resnet18()
    published.conv1, published.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    backbone = build_backbone({"architecture": "resnet18"}, 3, 32)
    ours, theirs = dict(backbone.named_parameters()), dict(published.named_parameters())
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}
    published.maxpool = nn.Identity()
    published.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(images), published.eval()(images), rtol=1e-4, atol=1e-4)


BACKBONES = [
    ("resnet10", 8, 512),
    ("resnet18", 8, 512),
    ("vgg11", 32, 512),
    ("vgg11", 64, 2048),
    ("alexnet", 8, 192),
    ("alexnet", 32, 3072),
    ("mobilenet", 8, 1280),
]


@pytest.mark.parametrize(("name", "size", "dimension"), BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backbone_has_features_of_its_stated_dimension(
    name: str, size: int, dimension: int, channels: int
) -> None:
    """Heads are built from `dimension`, for grey and colour images."""
    backbone = build_backbone({"architecture": name}, channels, size).eval()
    assert backbone.dimension == dimension
    with torch.no_grad():
        assert backbone(torch.zeros(2, channels, size, size)).shape == (2, dimension)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # convolutions, biases and norms, counted by hand from the published tables
    [
        ("alexnet", (5 * 5 * 3 * 128) + (5 * 5 * 128 * 192) + 9 * (192 * 256 + 256 * 192 + 192 * 192) + 3 * 960),
        ("vgg11", 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + 3 * 2752),
        # torchvision's block counts [1, 1, 1, 1] with a 3x3 first convolution, without 10 classes
        ("resnet10", 4_903_242 - 5130),
        ("mobilenet", 3_504_872 - 1_281_000),  # torchvision's MobileNetV2 without its classifier
    ],
)
def test_backbones_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """A missing layer would not change the shape of the features."""
    backbone = build_backbone({"architecture": name}, 3, 32)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


def test_mobilenet_does_not_reduce_small_images_to_one_pixel() -> None:
    """The strides for ImageNet would reduce a 32x32 image to one pixel."""
    images = torch.zeros(1, 3, 32, 32)
    mobilenet = build_backbone({"architecture": "mobilenet"}, 3, 32).eval()
    assert mobilenet.layers(images).shape[-2:] == (4, 4)

"""Sizes of networks against the real ones."""

from typing import Any

import pytest
import torch
from configs import with_sections as config

from mkdt.config import network_sizes
from mkdt.config.architectures import network
from mkdt.distill.mtt_ssl import build_ssl_student
from mkdt.networks.backbones import build_backbone
from mkdt.networks.students import build_student


@pytest.mark.parametrize(
    ("spec", "channels", "size"),
    [
        ({"architecture": "convnet", "depth": 2, "width": 32, "norm": "instance"}, 1, 8),
        ({"architecture": "convnet", "depth": 3, "width": 16, "norm": "none"}, 3, 28),
        ({"architecture": "convnet", "depth": 4, "width": 8, "norm": "batch"}, 3, 64),
        ({"architecture": "resnet", "blocks": [1, 2, 1], "width": 8}, 1, 28),
        ({"architecture": "resnet10"}, 3, 32),
        ({"architecture": "resnet18", "blocks": [1], "width": 8}, 3, 32),  # left over from the default's entry
    ],
)
def test_sizes_are_those_of_the_network(spec: dict[str, Any], channels: int, size: int) -> None:
    """Parameters and features are what torch counts on the real thing; the graph is not underestimated."""
    expected = network_sizes.backbone_size(spec, channels, size)
    model = build_backbone(network(spec), channels, size)
    features = model(torch.zeros(2, channels, size, size))
    assert expected.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert expected.features == features.shape[1]
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = model(torch.zeros(16, channels, size, size))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    saved = sum(storages.values()) - weights
    assert graph.requires_grad
    assert 0.75 * saved < 4 * 16 * expected.activations < 2.5 * saved


@pytest.mark.parametrize("architecture", ["vgg11", "alexnet", "mobilenet"])
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64), (3, 40)])
def test_sizes_of_fixed_networks_scale_with_the_area(architecture: str, channels: int, size: int) -> None:
    """Tabulated at 3x32x32; elsewhere a per cent or two off (the first layer's channels, what a pool cuts off)."""
    expected = network_sizes.backbone_size({"architecture": architecture}, channels, size)
    model = build_backbone({"architecture": architecture}, channels, size)
    features = model(torch.zeros(2, channels, size, size))
    assert expected.features == features.shape[1]
    assert expected.parameters == pytest.approx(sum(parameter.numel() for parameter in model.parameters()), rel=0.005)


def test_a_student_has_its_head() -> None:
    """The head maps to the teacher's dimension."""
    settings = config()
    size = network_sizes.student_size(settings, "convnet")
    model = build_student(settings["students"]["convnet"], 1, 8, network_sizes.targets_dimension(settings), 0, "test")
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_an_ssl_student_has_its_projector() -> None:
    """Its trajectories and steps are priced by it."""
    settings = config(mtt_ssl={"projector": [48, 40, 24]})
    model = build_ssl_student(settings["students"]["convnet"], 1, 8, [48, 40, 24], 0, "test")
    assert network_sizes.ssl_student_size(settings).parameters == sum(p.numel() for p in model.parameters())

"""Students and the projector."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mkdt.networks.flat import flatten, flatten_state
from mkdt.networks.students import Projector, build_student

SPECS: list[dict[str, Any]] = [
    {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"},
    {"architecture": "convnet", "depth": 3, "width": 4, "norm": "batch"},
    {"architecture": "convnet", "depth": 1, "width": 4, "norm": "none"},
    {"architecture": "resnet", "blocks": [1, 1], "width": 4},
]


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_students_for_distillation_have_no_buffers(norm: str) -> None:
    """The weights are the whole state, because a trajectory stores nothing else."""
    student = build_student({"architecture": "convnet", "depth": 2, "width": 4, "norm": norm}, 3, 16, 5, 0, "test")
    assert list(student.buffers()) == []
    assert torch.equal(flatten(student), flatten_state(student))


def test_instance_norm_normalises_each_image_and_channel_separately() -> None:
    """The gradient of an image does not depend on the other images of its batch."""
    student = build_student(SPECS[0], 1, 8, 3, 0, "test").train()
    images = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(student(images)[2:3], student(images[2:3]))
    torch.testing.assert_close(student.backbone(images * 7), student.backbone(images), rtol=0.1, atol=0.1)


def test_initial_weights_depend_on_seed_purpose_and_identity_only() -> None:
    """Fault of the public code: students were seeded by the clock."""
    torch.manual_seed(1)
    first = build_student(SPECS[0], 1, 8, 3, 0, "student weights", 2)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(flatten(first), flatten(build_student(SPECS[0], 1, 8, 3, 0, "student weights", 2)))
    assert torch.equal(before, torch.get_rng_state())
    for identity in ((1, "student weights", 2), (0, "expert weights", 2), (0, "student weights", 3)):
        assert not torch.equal(flatten(first), flatten(build_student(SPECS[0], 1, 8, 3, *identity)))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.get("norm") != "batch"])
def test_students_can_be_differentiated_twice(spec: dict[str, Any]) -> None:
    """The hypergradient needs second derivatives through every layer that are not zero."""
    student = build_student(spec, 1, 8, 3, 0, "test").eval()
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    targets = torch.randn(4, 3, requires_grad=True)
    weights = list(student.parameters())
    gradients = torch.autograd.grad(F.mse_loss(student(images), targets), weights, create_graph=True)
    square = sum(gradient.square().sum() for gradient in gradients)
    for mixed in torch.autograd.grad(square, [images, targets, weights[0]]):
        assert bool(mixed.isfinite().all())
        assert float(mixed.abs().max()) > 0


def test_the_projector_ends_in_a_plain_linear_layer() -> None:
    """Barlow Twins and SimCLR compare its outputs, so neither norm nor ReLU follows the last layer."""
    projector = Projector([6, 5, 4])
    assert projector(torch.randn(3, 6)).shape == (3, 4)
    assert isinstance(projector[-1], nn.Linear)
    assert [type(layer).__name__ for layer in list(projector)[:-1]] == ["Linear", "BatchNorm1d", "ReLU"]

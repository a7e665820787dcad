"""Backbones and heads, and their parameters as flat vectors."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mkdt.networks import students
from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flat_mse, flatten, flatten_state, load_state
from mkdt.networks.students import build_student

SPECS: list[dict[str, Any]] = [
    {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"},
    {"architecture": "convnet", "depth": 3, "width": 4, "norm": "batch"},
    {"architecture": "convnet", "depth": 1, "width": 4, "norm": "none"},
    {"architecture": "resnet", "blocks": [1, 1], "width": 4},
]


def test_vectors_follow_the_order_of_named_parameters() -> None:
    """Expert files are vectors: any other order would match convolutions against heads."""
    student = build_student(SPECS[1], 1, 8, 3, 0, "test")
    parts = flatten(student).split([parameter.numel() for _, parameter in student.named_parameters()])
    for part, (_, parameter) in zip(parts, student.named_parameters(), strict=True):
        assert torch.equal(part, parameter.detach().reshape(-1))


@pytest.mark.parametrize("module", [nn.Linear(2, 1, bias=False), nn.Linear(2, 3)])
def test_flatten_copies(module: nn.Module) -> None:
    """Fault of the public code: snapshots aliased the live weights on CPU, so all epochs were the last."""
    vector, state = flatten(module), flatten_state(module)
    kept = vector.clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert torch.equal(vector, kept)
    assert torch.equal(state, kept)
    assert not vector.requires_grad


@pytest.mark.parametrize("spec", SPECS)
def test_a_loaded_state_gives_the_same_outputs_in_eval_mode(spec: dict[str, Any]) -> None:
    """A snapshot must hold the running statistics too, or the probe sees another network."""
    trained, fresh = (build_student(spec, 1, 8, 3, seed, "test") for seed in (0, 1))
    images = torch.randn(5, 1, 8, 8)
    trained.train()(images * 3 + 1)  # moves running statistics
    assert not torch.allclose(trained.eval()(images), fresh.eval()(images))
    vector = flatten_state(trained)
    load_state(fresh, vector)
    assert torch.equal(trained(images), fresh(images))
    assert torch.equal(flatten_state(fresh), vector)


def test_a_vector_of_another_architecture_is_refused() -> None:
    """Silently loading half of it would be worse than an error."""
    student, other = build_student(SPECS[0], 1, 8, 3, 0, "test"), build_student(SPECS[2], 1, 8, 3, 0, "test")
    with pytest.raises(RuntimeError, match="split"):
        load_state(student, flatten_state(other))


def test_flat_mse_equals_the_loss_of_the_module_and_its_gradient() -> None:
    """Experts are trained through the module, distillation through the vector: one function."""
    student = build_student(SPECS[0], 1, 8, 3, 0, "test")
    images, targets = torch.randn(4, 1, 8, 8), torch.randn(4, 3)
    loss = F.mse_loss(student(images), targets)
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(student.parameters()))])
    theta = flatten(student).requires_grad_()
    template = build_student(SPECS[0], 1, 8, 3, 99, "other weights")
    flat = flat_mse(template)(theta, images, targets)
    torch.testing.assert_close(flat, loss)
    torch.testing.assert_close(torch.autograd.grad(flat, theta)[0], gradient)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_students_for_distillation_have_no_buffers(norm: str) -> None:
    """The weights alone must be the state, or a trajectory would not describe the student."""
    student = build_student({"architecture": "convnet", "depth": 2, "width": 4, "norm": norm}, 3, 16, 5, 0, "test")
    assert list(student.buffers()) == []
    assert torch.equal(flatten(student), flatten_state(student))


def test_instance_norm_normalises_each_image_and_channel_alone() -> None:
    """If images of a batch influenced each other, a row's gradient would depend on its batch."""
    student = build_student(SPECS[0], 1, 8, 3, 0, "test").train()
    images = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(student(images)[2:3], student(images[2:3]))
    torch.testing.assert_close(student.backbone(images * 7), student.backbone(images), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("spec", "channels", "size", "dimension"),
    [
        ({"architecture": "resnet18"}, 3, 32, 512),
        ({"architecture": "convnet", "depth": 3, "width": 128, "norm": "instance"}, 3, 32, 2048),
        ({"architecture": "convnet", "depth": 4, "width": 128, "norm": "instance"}, 3, 64, 2048),
        ({"architecture": "resnet", "blocks": [1, 1], "width": 8}, 1, 8, 16),
    ],
)
def test_feature_dimensions_are_the_papers(spec: dict[str, Any], channels: int, size: int, dimension: int) -> None:
    """ResNet-18 gives 512 features; the ConvNet 128 x 4 x 4 at the paper's sizes."""
    backbone = build_backbone(spec, channels, size).eval()
    assert backbone.dimension == dimension
    assert backbone(torch.zeros(2, channels, size, size)).shape == (2, dimension)


def test_resnet18_has_the_parameters_of_the_published_one() -> None:
    """11 168 832: torchvision's ResNet-18 without classifier, with a 3x3 first convolution."""
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


def test_initial_weights_are_a_function_of_the_identity_alone() -> None:
    """Fault of the public code: the clock seeded students. Same identity, same weights, always."""
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
    """The hypergradient needs second derivatives through every layer, not zeros."""
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
    """Barlow Twins and SimCLR compare its raw outputs: no norm or ReLU after the last layer."""
    projector = students.Projector([6, 5, 4])
    assert projector(torch.randn(3, 6)).shape == (3, 4)
    assert isinstance(projector[-1], nn.Linear)
    assert [type(layer).__name__ for layer in list(projector)[:-1]] == ["Linear", "BatchNorm1d", "ReLU"]


STUDENTS = [
    ("resnet10", 8, 512),
    ("resnet18", 8, 512),
    ("vgg11", 32, 512),
    ("vgg11", 64, 2048),
    ("alexnet", 8, 192),
    ("alexnet", 32, 3072),
    ("mobilenet", 8, 1280),
]


@pytest.mark.parametrize(("name", "size", "dimension"), STUDENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_student_gives_features_of_its_stated_dimension(
    name: str, size: int, dimension: int, channels: int
) -> None:
    """Heads are built from `dimension`; grey sources have one channel."""
    backbone = build_backbone({"architecture": name}, channels, size).eval()
    assert backbone.dimension == dimension
    with torch.no_grad():
        assert backbone(torch.zeros(2, channels, size, size)).shape == (2, dimension)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # conv weights, biases and norms, counted by hand from the published tables
    [
        ("alexnet", (5 * 5 * 3 * 128) + (5 * 5 * 128 * 192) + 9 * (192 * 256 + 256 * 192 + 192 * 192) + 3 * 960),
        ("vgg11", 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + 3 * 2752),
        (
            "resnet10",
            4_903_242 - 5130,
        ),  # torchvision's block counts [1, 1, 1, 1] with a 3x3 first convolution, 10 classes
        ("mobilenet", 3_504_872 - 1_281_000),  # torchvision's MobileNetV2 without its classifier
    ],
)
def test_students_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """A layer left out would still give features of the right shape."""
    backbone = build_backbone({"architecture": name}, 3, 32)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


def test_students_from_torchvision_keep_small_images_large() -> None:
    """The stride-2 stem of the ImageNet forms would leave a 32x32 image one pixel."""
    images = torch.zeros(1, 3, 32, 32)
    mobilenet = build_backbone({"architecture": "mobilenet"}, 3, 32).eval()
    assert mobilenet.layers(images).shape[-2:] == (4, 4)

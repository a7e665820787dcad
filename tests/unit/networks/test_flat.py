"""Parameters and states as flat vectors."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mkdt.networks.flat import flat_mse, flatten, flatten_state, load_state
from mkdt.networks.students import build_student

SPECS: list[dict[str, Any]] = [
    {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"},
    {"architecture": "convnet", "depth": 3, "width": 4, "norm": "batch"},
    {"architecture": "convnet", "depth": 1, "width": 4, "norm": "none"},
    {"architecture": "resnet", "blocks": [1, 1], "width": 4},
]


def test_vectors_follow_the_order_of_named_parameters() -> None:
    """Expert files are such vectors, so the order of the parameters must not change."""
    student = build_student(SPECS[1], 1, 8, 3, 0, "test")
    parts = flatten(student).split([parameter.numel() for _, parameter in student.named_parameters()])
    for part, (_, parameter) in zip(parts, student.named_parameters(), strict=True):
        assert torch.equal(part, parameter.detach().reshape(-1))


@pytest.mark.parametrize("module", [nn.Linear(2, 1, bias=False), nn.Linear(2, 3)])
def test_flatten_returns_a_copy(module: nn.Module) -> None:
    """Fault of the public code: snapshots shared memory with the weights on CPU, so all epochs equalled the last."""
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
    """The state includes the running statistics."""
    trained, fresh = (build_student(spec, 1, 8, 3, seed, "test") for seed in (0, 1))
    images = torch.randn(5, 1, 8, 8)
    trained.train()(images * 3 + 1)  # changes the running statistics
    assert not torch.allclose(trained.eval()(images), fresh.eval()(images))
    vector = flatten_state(trained)
    load_state(fresh, vector)
    assert torch.equal(trained(images), fresh(images))
    assert torch.equal(flatten_state(fresh), vector)


def test_a_vector_of_another_architecture_is_refused() -> None:
    """A vector of another length is not loaded in part."""
    student, other = build_student(SPECS[0], 1, 8, 3, 0, "test"), build_student(SPECS[2], 1, 8, 3, 0, "test")
    with pytest.raises(RuntimeError, match="split"):
        load_state(student, flatten_state(other))


def test_flat_mse_equals_the_loss_of_the_module_and_its_gradient() -> None:
    """Experts are trained with the module, distillation uses the vector; both compute the same loss."""
    student = build_student(SPECS[0], 1, 8, 3, 0, "test")
    images, targets = torch.randn(4, 1, 8, 8), torch.randn(4, 3)
    loss = F.mse_loss(student(images), targets)
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(student.parameters()))])
    theta = flatten(student).requires_grad_()
    template = build_student(SPECS[0], 1, 8, 3, 99, "other weights")
    flat = flat_mse(template)(theta, images, targets)
    torch.testing.assert_close(flat, loss)
    torch.testing.assert_close(torch.autograd.grad(flat, theta)[0], gradient)

"""Compare the hypergradient with an independent plain unroll and with finite differences."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matching import match_trajectory
from torch import Tensor

from mkdt.networks.flat import LossFn, flat_mse, flatten
from mkdt.networks.students import build_student


@dataclass
class Case:
    """One matching problem in float64."""

    loss_fn: LossFn
    theta0: Tensor
    target: Tensor
    images: Tensor
    targets: Tensor
    lr: float
    batches: list[Tensor]

    def match(self, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute loss and gradients by the library."""
        return match_trajectory(
            self.loss_fn,
            self.theta0,
            self.target,
            self.images,
            self.targets,
            self.lr,
            self.batches,
            **options,
        )


def two_layers(inputs: int, hidden: int, outputs: int) -> LossFn:
    """Return the loss of a small network with dense second derivatives, as a function of one parameter vector."""

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        first, second = theta.split([inputs * hidden, hidden * outputs])
        guess = torch.tanh(images.flatten(1) @ first.view(inputs, hidden)) @ second.view(hidden, outputs)
        return ((guess - targets) ** 2).mean()

    return loss


def make_case(
    m: int, channels: int, size: int, outputs: int, batches: list[list[int]], lr: float = 0.3, seed: int = 0
) -> Case:
    """Make random tensors for given shapes and batches."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    inputs, hidden = channels * size * size, 3
    count = inputs * hidden + hidden * outputs
    return Case(
        two_layers(inputs, hidden, outputs),
        normal(count),
        normal(count),
        normal(m, channels, size, size),
        normal(m, outputs),
        lr,
        [torch.tensor(rows) for rows in batches],
    )


def plain_unroll(case: Case, momentum: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute loss and gradients with all steps in one graph, as the paper's equation says."""
    images, targets = case.images.clone().requires_grad_(), case.targets.clone().requires_grad_()
    lr = torch.tensor(case.lr, dtype=torch.float64, requires_grad=True)
    theta, velocity = case.theta0.clone().requires_grad_(), torch.zeros_like(case.theta0)
    for rows in case.batches:
        inner = case.loss_fn(theta, images[rows], targets[rows])
        (step,) = torch.autograd.grad(inner, theta, create_graph=True)
        velocity = momentum * velocity + step
        theta = theta - lr * velocity
    loss = ((theta - case.target) ** 2).sum() / ((case.theta0 - case.target) ** 2).sum()
    return loss.detach(), *torch.autograd.grad(loss, [images, targets, lr])


def plain_loss(case: Case, images: Tensor, targets: Tensor, lr: float, momentum: float) -> float:
    """Compute the matching loss only, for finite differences."""
    leaf = torch.nn.Parameter(case.theta0.clone())
    optimizer = torch.optim.SGD([leaf], lr, momentum=momentum)
    for rows in case.batches:
        optimizer.zero_grad()
        case.loss_fn(leaf, images[rows], targets[rows]).backward()
        optimizer.step()
    theta = leaf.detach()
    return float(((theta - case.target) ** 2).sum() / ((case.theta0 - case.target) ** 2).sum())


def error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest entry."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw shapes and batches: of different sizes, with a row twice in a batch, with unused rows."""
    m = draw(st.integers(1, 5))
    batches = draw(st.lists(st.lists(st.integers(0, m - 1), min_size=1, max_size=4), min_size=1, max_size=5))
    return make_case(
        m,
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        batches,
        draw(st.floats(0.01, 0.5)),
        draw(st.integers(0, 1000)),
    )


@given(case=cases(), retain=st.integers(0, 8), momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_loss_and_gradients_equal_the_plain_unroll(case: Case, retain: int, momentum: float) -> None:
    """The gradient is exact for any number of kept graphs."""
    for got, wanted in zip(case.match(retain=retain, momentum=momentum), plain_unroll(case, momentum), strict=True):
        assert got.shape == wanted.shape
        assert error(got, wanted) < 1e-10


@given(case=cases())
def test_unused_rows_have_no_gradient(case: Case) -> None:
    """A gradient at a row that no step used would belong to another row."""
    _, d_images, d_targets, _ = case.match()
    unused = sorted(set(range(len(case.images))) - set(torch.cat(case.batches).tolist()))
    assert not d_images[unused].any()
    assert not d_targets[unused].any()


def test_a_row_twice_in_a_batch_counts_twice() -> None:
    """Assignment instead of accumulation would lose one of them; rows also recur over the steps."""
    case = make_case(3, 1, 2, 2, [[0, 0, 1], [1, 0], [1, 1]])
    for got, wanted in zip(case.match(), plain_unroll(case), strict=True):
        assert error(got, wanted) < 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("retain", [0, 2])
def test_gradients_equal_central_differences(retain: int, momentum: float) -> None:
    """Moving a value changes the loss as the gradient says; the loss here is from torch's own SGD."""
    case = make_case(3, 1, 2, 2, [[0, 1], [2, 1], [0, 0, 2]])
    _, d_images, d_targets, d_lr = case.match(retain=retain, momentum=momentum)
    width = 1e-5

    def slope(name: str, k: int) -> float:
        ends = []
        for sign in (1, -1):
            values = {"images": case.images.clone(), "targets": case.targets.clone()}
            values[name].view(-1)[k] += sign * width
            ends.append(plain_loss(case, values["images"], values["targets"], case.lr, momentum))
        return (ends[0] - ends[1]) / (2 * width)

    for name, got in (("images", d_images), ("targets", d_targets)):
        wanted = torch.tensor([slope(name, k) for k in range(got.numel())], dtype=torch.float64)
        assert error(got.view(-1), wanted) < 1e-5
    ends = [plain_loss(case, case.images, case.targets, case.lr + sign * width, momentum) for sign in (1, -1)]
    assert float(d_lr) == pytest.approx((ends[0] - ends[1]) / (2 * width), rel=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_the_real_student_equals_the_plain_unroll(norm: str) -> None:
    """Second derivatives of convolution, norm and pooling are exact too."""
    spec = {"architecture": "convnet", "depth": 2, "width": 3, "norm": norm}
    student = build_student(spec, 2, 8, 2, 0, "test").double()
    stream = torch.Generator().manual_seed(1)
    theta0 = flatten(student)
    images = torch.randn(4, 2, 8, 8, generator=stream, dtype=torch.float64)
    targets = torch.randn(4, 2, generator=stream, dtype=torch.float64)
    target = theta0 + 0.1 * torch.randn(len(theta0), generator=stream, dtype=torch.float64)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3]), torch.tensor([2, 0])]
    case = Case(flat_mse(student), theta0, target, images, targets, 0.1, batches)
    for retain in (0, 3):
        for got, wanted in zip(case.match(retain=retain), plain_unroll(case), strict=True):
            assert error(got, wanted) < 1e-10


@given(case=cases(), retain=st.integers(0, 8))
def test_fixed_targets_have_zero_gradient_and_change_no_other(case: Case, retain: int) -> None:
    """`learn_targets: false` saves work and does not change other results."""
    loss, d_images, d_targets, d_lr = case.match(retain=retain)
    fixed = case.match(retain=retain, learn_targets=False)
    assert not fixed[2].any()
    assert fixed[2].shape == d_targets.shape
    for got, wanted in ((fixed[0], loss), (fixed[1], d_images), (fixed[3], d_lr)):
        assert error(got, wanted) < 1e-12


@pytest.mark.parametrize("retain", [0, 1, 9])
def test_inputs_are_left_as_they_were(retain: int) -> None:
    """theta0 and target are rows of a memory-mapped expert; images and targets are the set itself."""
    case = make_case(3, 1, 2, 2, [[0, 1], [2]])
    names = ("theta0", "target", "images", "targets")
    before = {name: getattr(case, name).clone() for name in names}
    lr = torch.tensor(case.lr, dtype=torch.float64, requires_grad=True)
    results = match_trajectory(
        case.loss_fn, case.theta0, case.target, case.images, case.targets, lr, case.batches, retain=retain
    )
    for name in names:
        assert torch.equal(getattr(case, name), before[name])
        assert getattr(case, name).grad is None
    assert lr.grad is None
    assert float(lr.detach()) == case.lr
    assert not any(result.requires_grad for result in results)


def test_without_kept_graphs_memory_does_not_grow_with_the_steps() -> None:
    """Autograd keeps the tensors of one step at any time, for any N."""

    class Box:
        """Holds one tensor that autograd saved."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def most_alive(steps: int, retain: int) -> int:
        alive: weakref.WeakSet[Box] = weakref.WeakSet()
        most = 0

        def pack(tensor: Tensor) -> Box:
            nonlocal most
            box = Box(tensor)
            alive.add(box)
            most = max(most, len(alive))
            return box

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            make_case(3, 1, 2, 2, [[0, 1]] * steps).match(retain=retain)
        return most

    gc.collect()
    gc.disable()  # a graph must be freed by itself, at once
    try:
        assert most_alive(12, 0) == most_alive(3, 0)
        assert most_alive(12, 12) > 2 * most_alive(3, 3)  # shows that kept graphs are counted
    finally:
        gc.enable()


def test_impossible_requests_are_refused() -> None:
    """Each would otherwise give NaN, or a set that never changes."""
    case = make_case(2, 1, 1, 1, [[0]])
    with pytest.raises(ValueError, match="retain"):
        case.match(retain=-1)
    case.batches = []
    with pytest.raises(ValueError, match="at least one batch"):
        case.match()
    case.batches, case.target = [torch.tensor([0])], case.theta0.clone()
    with pytest.raises(ValueError, match="no length"):
        case.match()

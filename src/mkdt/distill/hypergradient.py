"""The exact hypergradient of an outer loss, with the graph of one inner step in memory instead of all.

A student takes N steps theta_{i+1} = theta_i - a g_i with g_i = grad l(theta_i; X_i, Y_i). The outer loss L is a function
of theta_N: the distance to an expert's weights (trajectory matching), or the loss on real images (unrolled
distillation). It may also be a sum over several numbers of steps. Its gradient comes from one backward sweep over the
steps. With lam = dL/dtheta_{i+1}, each step needs only the product of lam with second derivatives of l at theta_i:

    dL/da -= <g_i, s>,   dL/dX_i = -a d<g_i, s>/dX,   dL/dY_i = -a d<g_i, s>/dY,   lam <- lam - a H_i s

Without momentum s = lam. With momentum mu, theta_{i+1} = theta_i - a v_{i+1} and v_{i+1} = mu v_i + g_i; then
s <- lam + mu s is the sum of all gradients that reach g_i through later velocities. A velocity v_0 before the first step
adds -mu <v_0, s> to dL/da.

The forward pass stores the N parameter vectors, not the graphs. The sweep rebuilds the graph of each step, uses it once
and drops it. The graph of the last step is always kept, because the sweep starts with it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mkdt.distill.compiled_step import CompiledStep
from mkdt.networks.flat import LossFn

# theta, float [P] -> the loss (a scalar) and its gradient, float [P]. It must not keep theta.
OuterLoss = Callable[[Tensor], tuple[Tensor, Tensor]]


class Hypergradient(NamedTuple):
    """The outer loss (a scalar) and its gradients by images [m,C,H,W], targets [m,D] and step size (a scalar)."""

    loss: Tensor
    images: Tensor
    targets: Tensor
    step_size: Tensor


class Step:
    """One inner step with its graph: the gradient g_i, and the leaves by which g_i can be differentiated.

    Args:
        loss_fn: ``loss_fn(theta, images, targets)``, a twice differentiable scalar.
        theta: float [P], the student's weights.
        images, targets: float [b,C,H,W] and [b,D], the batch of the step.
        learn_targets: whether ``products`` differentiates by the targets.
    """

    def __init__(self, loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, learn_targets: bool) -> None:
        self.theta = theta.detach().requires_grad_()
        self.images = images.detach().requires_grad_()
        self.targets = targets.detach().requires_grad_(learn_targets)
        loss = loss_fn(self.theta, self.images, self.targets)
        (self.gradient,) = torch.autograd.grad(loss, self.theta, create_graph=True)

    def products(self, vector: Tensor, by_theta: bool = True) -> list[Tensor]:
        """Differentiate <g_i, vector> by theta (if asked for), images and, if they are learned, targets."""
        leaves = [self.theta] * by_theta + [self.images] + [self.targets] * self.targets.requires_grad
        return list(torch.autograd.grad(self.gradient, leaves, grad_outputs=vector, materialize_grads=True))


class _Unroll:
    """The N inner steps: ``gradient`` goes forward through them, ``products`` goes back."""

    def __init__(
        self,
        loss_fn: LossFn,
        theta0: Tensor,
        images: Tensor,
        targets: Tensor,
        batches: Sequence[Tensor],
        retain: int,
        learn_targets: bool,
        compiled: CompiledStep | None,
    ) -> None:
        self._loss_fn, self._learn_targets, self._compiled = loss_fn, learn_targets, compiled
        self._images, self._targets, self._batches = images, targets, batches
        first_kept = len(batches) if compiled else len(batches) - max(1, min(retain, len(batches)))
        # One block for all vectors: single ones, between the large short-lived tensors of the steps, would leave holes
        # that the allocator cannot use again.
        self._thetas = theta0.new_empty(first_kept, len(theta0))
        self._kept: list[Step] = []

    def gradient(self, i: int, theta: Tensor) -> Tensor:
        """Return g_i at ``theta``, float [P], and store what ``products`` needs."""
        if i >= len(self._thetas):
            self._kept.append(self._step(i, theta))
            return self._kept[-1].gradient.detach()
        self._thetas[i] = theta
        images, targets = self._batch(i)
        if self._compiled:
            return self._compiled.gradient(theta, images, targets)
        leaf = theta.detach().requires_grad_()
        return torch.autograd.grad(self._loss_fn(leaf, images.detach(), targets.detach()), leaf)[0]

    def products(self, i: int, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return g_i, and <g_i, vector> differentiated by theta (but for i = 0), images and, if learned, targets."""
        if self._compiled:
            gradient, products = self._compiled.sweep(self._thetas[i], *self._batch(i), vector)
            return gradient, products if i else products[1:]
        step = self._kept.pop() if self._kept else self._step(i, self._thetas[i])
        return step.gradient.detach(), step.products(vector, by_theta=i > 0)

    def _batch(self, i: int) -> tuple[Tensor, Tensor]:
        return self._images[self._batches[i]], self._targets[self._batches[i]]

    def _step(self, i: int, theta: Tensor) -> Step:
        return Step(self._loss_fn, theta, *self._batch(i), self._learn_targets)


def unroll(
    loss_fn: LossFn,
    theta0: Tensor,
    outer: Mapping[int, OuterLoss],
    images: Tensor,
    targets: Tensor,
    lr: Tensor | float,
    batches: Sequence[Tensor],
    *,
    retain: int = 0,
    learn_targets: bool = True,
    momentum: float = 0.0,
    velocity: Tensor | None = None,
    compiled: CompiledStep | None = None,
) -> Hypergradient:
    """Compute an outer loss of N SGD steps from ``theta0``, and its exact gradients.

    Args:
        loss_fn: ``loss_fn(theta, images, targets)``, a twice differentiable scalar.
        theta0: float [P], the student's weights before the first step.
        outer: by number of steps from 1 to N the outer loss there, N among them; their sum is differentiated.
        images: float [m,C,H,W], the synthetic images.
        targets: float [m,D], the synthetic targets.
        lr: the step size a > 0.
        batches: N int64 index tensors into the synthetic set, one for each step; rows may recur.
        retain: number of last steps that keep their graph. 0 needs the memory of one step; N needs the memory of the
            plain unroll, and saves one forward and backward pass for each step. The results agree up to rounding.
        learn_targets: if false, the gradient of ``targets`` is zero and costs nothing.
        momentum: of the inner SGD, in [0, 1) (heavy ball without dampening, as in ``torch.optim.SGD``).
        velocity: float [P], the momentum buffer before the first step, a constant; None for zeros.
        compiled: the same ``loss_fn`` and ``learn_targets``, compiled; all steps are then rebuilt, as with retain 0.

    Raises:
        ValueError: no batch is given, ``retain`` is negative, or ``outer`` has no loss after N steps.
    """
    steps = len(batches)
    if steps == 0 or retain < 0:
        raise ValueError(f"unroll needs at least one batch and retain >= 0, got {steps} and {retain}")
    if steps not in outer or not set(outer) <= set(range(1, steps + 1)):
        raise ValueError(f"outer losses must be of steps 1 to {steps} and of the last one, got {sorted(outer)}")
    lr = torch.as_tensor(lr, dtype=theta0.dtype, device=theta0.device).detach()

    inner = _Unroll(loss_fn, theta0, images, targets, batches, retain, learn_targets, compiled)
    start = torch.zeros_like(theta0) if velocity is None else velocity.detach()
    theta, velocity = theta0.detach(), start
    total, pulls = torch.zeros_like(lr), dict[int, Tensor]()
    for i in range(steps):
        gradient = inner.gradient(i, theta)
        velocity = momentum * velocity + gradient if momentum else gradient
        theta = theta - lr * velocity
        if i + 1 in outer:
            loss, pulls[i + 1] = outer[i + 1](theta)
            total = total + loss

    lam, reach = torch.zeros_like(theta), torch.zeros_like(theta)
    d_images, d_targets, d_lr = torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(lr)
    for i in reversed(range(steps)):
        if i + 1 in pulls:
            lam = lam + pulls.pop(i + 1)
        reach = lam + momentum * reach if momentum else lam
        gradient, products = inner.products(i, reach)
        d_lr -= torch.dot(gradient, reach)
        if i > 0:
            lam = lam - lr * products.pop(0)
        # index_add_ and not assignment: a batch may contain a row twice.
        for sum_, product in zip((d_images, d_targets), products, strict=False):  # no product if targets are fixed
            sum_.index_add_(0, batches[i], product * -lr)
    d_lr -= momentum * torch.dot(start, reach)  # the steps that the first velocity takes
    return Hypergradient(total, d_images, d_targets, d_lr)


def distance_to(target: Tensor, theta0: Tensor) -> OuterLoss:
    """Return the matching loss ||theta - target||^2 / ||theta0 - target||^2 (paper, equation 5).

    Args:
        target: float [P], the expert's weights M epochs later.
        theta0: float [P], the expert's weights at the start epoch.

    Raises:
        ValueError: ``theta0`` equals ``target``.
    """
    distance = (theta0 - target).square().sum()
    if distance == 0:
        raise ValueError("theta0 equals target: this piece of the trajectory has no length")

    def outer(theta: Tensor) -> tuple[Tensor, Tensor]:
        offset = theta - target
        return offset.square().sum() / distance, 2 * offset / distance

    return outer

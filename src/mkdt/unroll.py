"""The hypergradient of trajectory matching, exact, without keeping the unrolled graph.

With theta_{i+1} = theta_i - a g_i and g_i = grad l(theta_i; X_i, Y_i), the matching loss is
L = ||theta_N - target||^2 / ||theta_0 - target||^2. Its gradient needs one backward sweep over the steps, and
at each step only the product of lam = dL/dtheta_{i+1} with the second derivatives of l at theta_i. So the
forward pass keeps the N parameter vectors and nothing else; a step's graph is rebuilt when the sweep reaches
it, used once and dropped.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Step:
    """One inner step with its graph: its gradient g_i and the leaves that g_i can be differentiated by."""

    def __init__(self, loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, learn_targets: bool) -> None:
        self.theta = theta.detach().requires_grad_()
        self.images = images.detach().requires_grad_()
        self.targets = targets.detach().requires_grad_(learn_targets)
        loss = loss_fn(self.theta, self.images, self.targets)
        (self.gradient,) = torch.autograd.grad(loss, self.theta, create_graph=True)

    def products(self, lam: Tensor) -> list[Tensor]:
        """<g_i, lam> differentiated by theta, images and, where they are learned, targets."""
        leaves = [self.theta, self.images] + ([self.targets] if self.targets.requires_grad else [])
        return list(torch.autograd.grad(self.gradient, leaves, grad_outputs=lam, materialize_grads=True))


def match_trajectory(
    loss_fn: LossFn,
    theta0: Tensor,
    target: Tensor,
    images: Tensor,
    targets: Tensor,
    lr: Tensor | float,
    batches: Sequence[Tensor],
    *,
    retain: int = 0,
    learn_targets: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matching loss of N plain SGD steps from ``theta0``, and its exact gradients (paper, equation 5).

    Args:
        loss_fn: ``loss_fn(theta, images, targets)``, a twice differentiable scalar.
        theta0: float [P], the expert's weights at the start epoch.
        target: float [P], the expert's weights M epochs later; must differ from ``theta0``.
        images: float [m,C,H,W], the synthetic images.
        targets: float [m,D], the synthetic targets.
        lr: the step size a > 0.
        batches: N int64 index tensors into the synthetic set, one an inner step; rows may recur.
        retain: how many of the last steps keep their graph: 0 needs the memory of one step, N is the plain
            unroll's memory and saves one forward and backward pass a step. The results agree up to rounding.
        learn_targets: without it the gradient of ``targets`` is zero and costs nothing.

    Returns:
        ``(loss, d_images, d_targets, d_lr)``: a scalar, the shapes of ``images`` and ``targets``, a scalar.

    Raises:
        ValueError: no batch is given, ``retain`` is negative, or ``theta0`` equals ``target``.
    """
    steps = len(batches)
    if steps == 0 or retain < 0:
        raise ValueError(f"match_trajectory needs at least one batch and retain >= 0, got {steps} and {retain}")
    distance = (theta0 - target).square().sum()
    if distance == 0:
        raise ValueError("theta0 equals target: this piece of the trajectory has no length")
    lr = torch.as_tensor(lr, dtype=theta0.dtype, device=theta0.device).detach()

    first_kept = steps - min(retain, steps)
    thetas: list[Tensor] = []
    kept: list[_Step] = []
    theta = theta0.detach()
    for i, rows in enumerate(batches):
        if i < first_kept:
            thetas.append(theta)
            leaf = theta.detach().requires_grad_()
            loss = loss_fn(leaf, images[rows].detach(), targets[rows].detach())
            (gradient,) = torch.autograd.grad(loss, leaf)
        else:
            kept.append(_Step(loss_fn, theta, images[rows], targets[rows], learn_targets))
            gradient = kept[-1].gradient.detach()
        theta = theta - lr * gradient

    offset = theta - target
    loss = offset.square().sum() / distance
    lam = 2 * offset / distance

    d_images, d_targets, d_lr = torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(lr)
    for i in range(steps - 1, -1, -1):
        rows = batches[i]
        step = kept.pop() if kept else _Step(loss_fn, thetas.pop(), images[rows], targets[rows], learn_targets)
        d_lr -= torch.dot(step.gradient.detach(), lam)
        by_theta, by_images, *by_targets = step.products(lam)
        # index_add_, not assignment: the gradient stays exact if a batch names a row twice.
        d_images.index_add_(0, rows, by_images * -lr)
        for by in by_targets:
            d_targets.index_add_(0, rows, by * -lr)
        lam = lam - lr * by_theta
    return loss, d_images, d_targets, d_lr

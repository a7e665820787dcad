"""The hypergradient of trajectory matching, exact, without keeping the unrolled graph.

With theta_{i+1} = theta_i - a g_i and g_i = grad l(theta_i; X_i, Y_i), the matching loss is
L = ||theta_N - target||^2 / ||theta_0 - target||^2. Its gradient needs one backward sweep over the steps, and
at each step only the product of lam = dL/dtheta_{i+1} with the second derivatives of l at theta_i:

    dL/da -= <g_i, s>,   dL/dX_i = -a d<g_i, s>/dX,   dL/dY_i = -a d<g_i, s>/dY,   lam <- lam - a H_i s

where s is lam itself, or with momentum mu, theta_{i+1} = theta_i - a v_{i+1} and v_{i+1} = mu v_i + g_i, the
sum s <- lam + mu s of what reaches g_i through all later velocities. So the forward pass keeps the N parameter
vectors and nothing else; a step's graph is rebuilt when the sweep reaches it, used once and dropped. Nothing is gained
by rebuilding the last step's, since the sweep begins with it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from mkdt.distill.compiled_step import CompiledStep

LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Step:
    """One inner step with its graph: its gradient g_i and the leaves that g_i can be differentiated by."""

    def __init__(self, loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, learn_targets: bool) -> None:
        self.theta = theta.detach().requires_grad_()
        self.images = images.detach().requires_grad_()
        self.targets = targets.detach().requires_grad_(learn_targets)
        loss = loss_fn(self.theta, self.images, self.targets)
        (self.gradient,) = torch.autograd.grad(loss, self.theta, create_graph=True)

    def products(self, lam: Tensor, by_theta: bool = True) -> list[Tensor]:
        """<g_i, lam> differentiated by theta (where asked for), images and, where they are learned, targets."""
        leaves = [self.theta] * by_theta + [self.images] + [self.targets] * self.targets.requires_grad
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
    retain: int | Literal["auto"] = 0,
    learn_targets: bool = True,
    momentum: float = 0.0,
    compiled: CompiledStep | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matching loss of N SGD steps from ``theta0``, and its exact gradients (paper, equation 5).

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
            ``"auto"`` keeps as many as half of the free memory holds (``choose_retain``).
        learn_targets: without it the gradient of ``targets`` is zero and costs nothing.
        momentum: of the inner SGD (heavy ball, no dampening, as in ``torch.optim.SGD``), in [0, 1).
        compiled: the same ``loss_fn`` and ``learn_targets``, compiled; every step is then rebuilt, as with ``retain=0``.

    Returns:
        ``(loss, d_images, d_targets, d_lr)``: a scalar, the shapes of ``images`` and ``targets``, a scalar.

    Raises:
        ValueError: no batch is given, ``retain`` is negative, or ``theta0`` equals ``target``.
    """
    steps = len(batches)
    if compiled is not None:
        retain = 0
    elif retain == "auto":
        retain = choose_retain(loss_fn, theta0, images, targets, batches, learn_targets) if batches else 0
    if steps == 0 or retain < 0:
        raise ValueError(f"match_trajectory needs at least one batch and retain >= 0, got {steps} and {retain}")
    distance = (theta0 - target).square().sum()
    if distance == 0:
        raise ValueError("theta0 equals target: this piece of the trajectory has no length")
    lr = torch.as_tensor(lr, dtype=theta0.dtype, device=theta0.device).detach()

    first_kept = steps if compiled else steps - max(1, min(retain, steps))
    # One block for all vectors: between the big short-lived tensors of the steps, single ones would leave holes that
    # the allocator cannot give out again.
    thetas = theta0.new_empty(first_kept, len(theta0))
    kept: list[_Step] = []
    theta, velocity = theta0.detach(), torch.zeros_like(theta0)
    for i, rows in enumerate(batches):
        if i < first_kept:
            thetas[i] = theta
            gradient = (
                compiled.gradient(theta, images[rows], targets[rows])
                if compiled
                else _gradient(loss_fn, theta, images[rows], targets[rows])
            )
        else:
            kept.append(_Step(loss_fn, theta, images[rows], targets[rows], learn_targets))
            gradient = kept[-1].gradient.detach()
        velocity = momentum * velocity + gradient if momentum else gradient
        theta = theta - lr * velocity

    offset = theta - target
    loss = offset.square().sum() / distance
    lam = 2 * offset / distance
    reach = torch.zeros_like(lam)

    d_images, d_targets, d_lr = torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(lr)
    for i in range(steps - 1, -1, -1):
        rows = batches[i]
        reach = lam + momentum * reach if momentum else lam
        by_theta: Tensor | None = None
        if compiled:
            gradient, (by_theta, by_images, *by_targets) = compiled.sweep(thetas[i], images[rows], targets[rows], reach)
        else:
            step = kept.pop() if kept else _Step(loss_fn, thetas[i], images[rows], targets[rows], learn_targets)
            gradient = step.gradient.detach()
            products = step.products(reach, by_theta=i > 0)  # nothing comes before theta_0
            by_theta = products.pop(0) if i > 0 else None
            by_images, *by_targets = products
            del step  # before the next one is built
        d_lr -= torch.dot(gradient, reach)
        # index_add_, not assignment: the gradient stays exact if a batch names a row twice.
        d_images.index_add_(0, rows, by_images * -lr)
        for by in by_targets:
            d_targets.index_add_(0, rows, by * -lr)
        if by_theta is not None:
            lam = lam - lr * by_theta
    return loss, d_images, d_targets, d_lr


def _gradient(loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    leaf = theta.detach().requires_grad_()
    return torch.autograd.grad(loss_fn(leaf, images.detach(), targets.detach()), leaf)[0]


def bytes_per_step(
    loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, rows: Tensor, learn_targets: bool = True
) -> int:
    """Memory that the graph of one kept step holds, in bytes: every tensor saved for backward, counted once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step = _Step(loss_fn, theta, images[rows], targets[rows], learn_targets)
    return sum(storages.values()) + step.gradient.nbytes


def free_bytes(device: torch.device) -> int:
    """Memory that is free for this process on a device; on the CPU also within its control group's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = psutil.virtual_memory().available
    root, own = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
    groups = (
        [line[3:].lstrip("/") for line in own.read_text().splitlines() if line.startswith("0::")]
        if own.is_file()
        else []
    )
    for group in groups:  # version 2: the job's own group and each above it may set a limit
        for folder in (root / group, *(root / group).parents):
            limit, used = folder / "memory.max", folder / "memory.current"
            if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def choose_retain(
    loss_fn: LossFn,
    theta: Tensor,
    images: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    learn_targets: bool = True,
    share: float = 0.5,
) -> int:
    """How many graphs fit: ``retain="auto"``.

    Args:
        loss_fn, theta, images, targets, batches, learn_targets: as for ``match_trajectory``.
        share: of the free memory that kept graphs may take; the rest is for the backward sweep, whose peak is
            that of a few steps, and for other jobs.

    Returns:
        the number of last steps whose graph can be kept, 0 to N.
    """
    largest = max(batches, key=len)
    need = bytes_per_step(loss_fn, theta, images, targets, largest, learn_targets)
    vectors = (len(batches) + 4) * theta.nbytes
    return max(0, min(len(batches), int((share * free_bytes(theta.device) - vectors) // need)))

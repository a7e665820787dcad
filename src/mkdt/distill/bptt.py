"""Distillation method ``bptt``: differentiate the distillation loss on real images through the student's training.

A fresh student takes N steps of SGD on the synthetic set, with momentum and the learned rate. The outer loss is its mean
squared error to the targets of a batch of real images (paper, section 4, the knowledge distillation objective). It needs
no experts: what trajectory matching stands in for is differentiated itself, exactly and at constant memory
(``mkdt.distill.hypergradient``).

With ``window`` an iteration stops after a random number of steps and differentiates the last ones only (RaT-BPTT, Feng,
Vedantam and Kempe, ICLR 2024, arXiv 2311.07025). With ``losses_at`` the loss also counts after fewer steps.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.data.pixels import normalise
from mkdt.distill.hypergradient import Hypergradient, OuterLoss
from mkdt.distill.outer_loop import LearnedSet, learn_set
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.unroller import Unroller, inner_batches
from mkdt.networks.backbones import Spec
from mkdt.networks.flat import LossFn, flat_mse, flatten
from mkdt.networks.students import build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report


class Draw(NamedTuple):
    """The random choices of one iteration: rows (int64) of each student step, of the real batch, and the window.

    ``free`` is the number of first steps that are not differentiated.
    """

    rows: list[Tensor]
    real: Tensor
    free: int


def longest_at(iteration: int, settings: Mapping[str, Any]) -> int:
    """Return the largest number of steps that may be drawn; with ``curriculum`` it grows linearly from ``window``."""
    steps, window = settings["steps"], settings["window"]
    if window is None or not settings["curriculum"]:
        return int(steps)
    return int(window + iteration * (steps - window) // max(1, settings["iterations"] - 1))


def draw_iteration(
    views: int, images: int, settings: Mapping[str, Any], iteration: int, stream: torch.Generator
) -> Draw:
    """Draw what one iteration uses, of so many rows of the set and so many real images."""
    window, steps = settings["window"], longest_at(iteration, settings)
    if window is not None:
        steps = int(torch.randint(window, steps + 1, (), generator=stream))
    rows = list(islice(inner_batches(views, settings["batch"], stream), steps))
    real = torch.randperm(images, generator=stream)[: settings["outer_batch"]]
    return Draw(rows, real, 0 if window is None else steps - window)


def outer_losses(
    loss_fn: LossFn, images: Tensor, targets: Tensor, steps: int, losses_at: list[int]
) -> dict[int, OuterLoss]:
    """Return the mean loss on real images after each of the numbers of steps, as ``unroll`` takes it.

    Args:
        loss_fn: ``loss_fn(theta, images, targets)``.
        images, targets: float [b,C,H,W] and [b,D], the real batch.
        steps: the last number of steps.
        losses_at: further ones.
    """
    wanted = {*losses_at, steps}

    def outer(theta: Tensor) -> tuple[Tensor, Tensor]:
        leaf = theta.detach().requires_grad_()
        loss = loss_fn(leaf, images, targets) / len(wanted)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    return dict.fromkeys(sorted(wanted), outer)


def free_steps(
    loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, lr: Tensor, momentum: float, rows: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Take steps that are not differentiated; return weights and velocity, float [P]."""
    velocity = torch.zeros_like(theta)
    for batch in rows:
        leaf = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, images[batch], targets[batch]), leaf)
        velocity = momentum * velocity + gradient
        theta = theta - lr * velocity
    return theta, velocity


def bptt_set(
    initial: SyntheticSet,
    source: Source,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    seed: int,
    distill_seed: int,
    device: torch.device,
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[SyntheticSet, Tensor]:
    """Learn images, targets and step size so that a student trained on them predicts the teacher on real images.

    Args:
        initial: the subset that the synthetic set starts from; its mean and std normalise the real images too.
        source: its images and targets.
        student: the config entry of the network that is trained; without running statistics.
        settings: the section ``bptt`` of the config.
        seed, distill_seed: with the settings they decide all draws.
        device, state, report, checkpoint: as for ``learn_set``.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: as ``learn_set``.
    """
    channels, size, outputs = *initial.images.shape[1:3], initial.targets.shape[1]

    def fresh(purpose: str, *identity: int) -> torch.nn.Module:
        return build_student(student, channels, size, outputs, seed, purpose, *identity)

    loss_fn = flat_mse(fresh("template").to(device))
    unroller = Unroller(loss_fn, settings, settings["retain"])
    mean, std = initial.mean.to(device), initial.std.to(device)

    def gradient_at(iteration: int, learned: LearnedSet) -> tuple[Hypergradient, dict[str, float]]:
        stream = seeding.generator(seed, "bptt", distill_seed, iteration)
        draw = draw_iteration(len(initial.targets), len(source.images), settings, iteration, stream)
        theta, velocity = flatten(fresh("bptt student", distill_seed, iteration)).to(device), None
        rows = [batch.to(device) for batch in draw.rows]
        if draw.free:
            images, free = initial.decoded(learned.images), rows[: draw.free]
            lr, momentum = learned.step_size, settings["momentum"]
            theta, velocity = free_steps(loss_fn, theta, images, learned.targets, lr, momentum, free)
        real = normalise(source.images[draw.real].to(device), mean, std)
        wanted = source.targets[draw.real].to(device)
        outer = outer_losses(loss_fn, real, wanted, len(rows) - draw.free, settings["losses_at"])
        gradient = unroller.gradient(
            theta,
            outer,
            learned.images,
            learned.targets,
            learned.step_size,
            rows[draw.free :],
            initial.decoded,
            velocity,
        )
        return gradient, {"steps": len(rows)}

    return learn_set(
        initial,
        settings,
        gradient_at,
        unroller,
        device=device,
        name="bptt",
        keys=("bptt.image_lr", "bptt.target_lr", "bptt.step_size.initial", "bptt.step_size.lr"),
        least_loss=0.0,
        state=state,
        report=report,
        checkpoint=checkpoint,
    )

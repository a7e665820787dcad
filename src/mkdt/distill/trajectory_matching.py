"""Distillation: move the synthetic set so that training on it follows the experts' trajectories."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.distill.compiled_step import CompiledStep
from mkdt.distill.hypergradient import choose_retain, match_trajectory
from mkdt.distill.synthetic_set import SyntheticSet, first_images, moments
from mkdt.errors import UserError
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.flat import LossFn
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

SMALLEST_STEP_SIZE = 1e-6  # held above this in both spaces: float32's exp reaches zero too
MOMENTUM = 0.5  # paper, appendix: SGD momentum of images, targets and step size
# Per image of the set: 10 is the rate that sets of 14 digits had; docs/studies/what_matters.md has others at 7 to 140.
TARGET_RATE_PER_IMAGE = 10 / 14

# (images, rows of each step, iteration) -> the views of all steps, and for each step the rows of its views.
ViewsFn = Callable[[Tensor, list[Tensor], int], tuple[Tensor, list[Tensor]]]


def start_epochs_at(iteration: int, settings: Mapping[str, Any]) -> int:
    """How many start epochs may be drawn at an iteration: all, or with ``curriculum`` a linearly growing number."""
    limit: int = settings["start_epochs"]
    if not settings["curriculum"]:
        return limit
    return min(limit, 1 + iteration * limit // max(1, settings["iterations"]))


def target_rate(count: int, settings: Mapping[str, Any]) -> float:
    """The targets' learning rate in a set of ``count`` images: the config's number or, with ``auto``, one that grows with it.

    An inner step's loss is a mean over its rows, so the gradient of a single target is divided by the number of images.
    """
    rate: float | str = settings["target_lr"]
    return TARGET_RATE_PER_IMAGE * count if isinstance(rate, str) else rate


def inner_batches(size: int, batch: int, stream: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row indices; every row is used once before any is used again."""
    while True:
        yield from seeding.batches(size, batch, stream)


def match_experts(
    initial: SyntheticSet,
    experts: Sequence[Artifact],
    loss_fn: LossFn,
    settings: Mapping[str, Any],
    *,
    seed: int,
    distill_seed: int,
    device: torch.device,
    views: ViewsFn | None = None,
    key: str = "distill.image_lr",
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> tuple[SyntheticSet, Tensor]:
    """Trajectory matching (paper, algorithm 1): expert and start epoch at random, N steps, match M epochs later.

    Args:
        initial: the subset that the synthetic set starts from.
        experts: their files, each with ``trajectory`` [E+1,P]; two rows are read an iteration.
        loss_fn: of flat weights, what the experts were trained by.
        settings: the ``distill`` section of the config.
        seed, distill_seed: with the settings they decide every draw.
        device: where to compute.
        views: what ``loss_fn`` sees of the images in their place, drawn before the steps; it then has no targets to
            learn (``learn_targets: false``). None for the images themselves.
        key: of the config, that a gradient which is not finite asks to lower first.
        state: what ``checkpoint`` was given before an interruption.
        report: called every iteration with ``loss``, ``step_size``, ``image_gradient`` (norm), ``expert`` and
            ``start_epoch``; at intervals also with ``pictures``, the set as uint8 [m,C,H,W].
        checkpoint: called before each update with a function that returns the state, once its loss is known to be good:
            what is kept is never a set that has exploded.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the first one (or 1,
            the loss of a student that stays where it is, if the first is less).
        UserError: an expert did not move over the epochs that are to be matched.
    """
    compiled = CompiledStep(loss_fn, settings["learn_targets"]) if settings["compile"] else None

    log_space = settings["step_size"]["space"] == "log"
    start = settings["step_size"]["initial"]
    images = initial.images.clone().to(device)
    targets = initial.targets.clone().to(device)
    step_parameter = torch.tensor(math.log(start) if log_space else start, device=device)
    optimizer = _optimizer(images, targets, step_parameter, settings)
    pictured = set(moments(settings))
    history = [first_images(images)]
    first, retain, start_loss = 0, settings["retain"], 0.0
    if state is not None:
        first, retain, start_loss = state["iteration"], state["retain"], state["start_loss"]
        for tensor, saved in zip((images, targets, step_parameter), state["set"], strict=True):
            tensor.copy_(saved)
        for part, saved in zip(optimizer, state["optimizer"], strict=True):
            part.load_state_dict(saved)
        history = list(state["history"])

    def current_state(iteration: int) -> dict[str, Any]:
        return {
            "iteration": iteration,
            "retain": retain,
            "start_loss": start_loss,
            "set": [images, targets, step_parameter],
            "optimizer": [part.state_dict() for part in optimizer],
            "history": torch.stack(history),
        }

    for iteration in range(first, settings["iterations"]):
        stream = seeding.generator(seed, "distill", distill_seed, iteration)
        expert = int(torch.randint(len(experts), (), generator=stream))
        epoch = int(torch.randint(start_epochs_at(iteration, settings), (), generator=stream))
        rows = [
            batch.to(device)
            for batch in islice(inner_batches(len(images), settings["batch"], stream), settings["steps"])
        ]
        step_size = step_parameter.exp() if log_space else step_parameter.clone()
        theta0 = experts[expert].row("trajectory", epoch).to(device)
        target = experts[expert].row("trajectory", epoch + settings["match_epochs"]).to(device)
        if torch.equal(theta0, target):
            raise UserError(
                f"distill: expert {expert} did not move from epoch {epoch} on: raise experts.lr or distill.match_epochs."
            )
        # The views do not depend on the weights: drawn first, their gradient is pulled back to the images at the end.
        leaf, seen, wanted = images, images, targets
        if views is not None:
            leaf = images.detach().requires_grad_()
            seen, rows = views(leaf, rows, iteration)
            wanted = targets.new_empty(len(seen), 0)
        # Once: kept and rebuilt graphs differ in the last bits, so a resumed run keeps the number.
        if retain == "auto" and compiled is None:
            retain = choose_retain(loss_fn, theta0, seen.detach(), wanted, rows, settings["learn_targets"])
        loss, d_images, d_targets, d_step = match_trajectory(
            loss_fn,
            theta0,
            target,
            seen.detach(),
            wanted,
            step_size,
            rows,
            retain=retain,
            learn_targets=settings["learn_targets"],
            momentum=settings["momentum"],
            compiled=compiled,
        )
        if views is not None:
            (d_images,) = torch.autograd.grad(seen, leaf, d_images)
        norm = torch.linalg.vector_norm(d_images)
        checks = torch.stack([loss, norm, torch.linalg.vector_norm(d_targets), d_step.abs()])
        start_loss = start_loss or max(1.0, float(loss))
        if not bool(torch.isfinite(checks).all()) or diverged(float(loss), start_loss):
            raise Diverged(
                f"distill: diverged, with a loss of {float(loss):.3g} ({start_loss:.3g} at the start) or a gradient that is "
                f"not finite, at iteration {iteration} (expert {expert}, start epoch {epoch}, step size "
                f"{float(step_size):.3g}); the last resume point is from before: lower {key} or distill.step_size.lr."
            )
        checkpoint(partial(current_state, iteration))
        images.grad, targets.grad = d_images, d_targets if settings["learn_targets"] else None
        step_parameter.grad = d_step * step_size if log_space else d_step
        for part in optimizer:
            part.step()
        step_parameter.clamp_(min=math.log(SMALLEST_STEP_SIZE) if log_space else SMALLEST_STEP_SIZE)

        values = {
            "loss": float(loss),
            "step_size": float(step_parameter.exp() if log_space else step_parameter),
            "image_gradient": float(norm),
            "expert": expert,
            "start_epoch": epoch,
        }
        if settings["retain"] == "auto" and compiled is None:
            values["retain"] = retain
        if iteration + 1 in pictured:
            history.append(first_images(images))
            report(iteration + 1, values, pictures=replace(initial, images=images.cpu()).pixels())
        else:
            report(iteration + 1, values)

    if not all(bool(part.isfinite().all()) for part in (images, targets, step_parameter)):
        raise Diverged(
            f"distill: the last update gave values that are not finite: lower {key} or distill.step_size.lr."
        )
    final = replace(
        initial,
        images=images.cpu().clone(),
        targets=targets.cpu().clone(),
        step_size=(step_parameter.exp() if log_space else step_parameter).cpu().clone(),
    )
    return final, torch.stack(history).cpu()


def _optimizer(
    images: Tensor, targets: Tensor, step_parameter: Tensor, settings: Mapping[str, Any]
) -> list[torch.optim.Optimizer]:
    """One optimiser for the images (the config's choice), one for the rest (SGD, as in the paper)."""
    kind, lr = settings["image_optimizer"], settings["image_lr"]
    if kind == "adam":
        for_images: torch.optim.Optimizer = torch.optim.Adam([images], lr)
    else:
        for_images = torch.optim.SGD([images], lr, momentum=MOMENTUM)
    groups = [{"params": [step_parameter], "lr": settings["step_size"]["lr"]}]
    if settings["learn_targets"]:
        groups.append({"params": [targets], "lr": target_rate(len(targets), settings)})
    return [for_images, torch.optim.SGD(groups, momentum=MOMENTUM)]

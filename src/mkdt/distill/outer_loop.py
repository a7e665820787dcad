"""The outer loop of distillation: update a synthetic set by hypergradients, with checks, resume states and history."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mkdt.distill.hypergradient import Hypergradient
from mkdt.distill.synthetic_set import History, SyntheticSet
from mkdt.distill.unroller import Unroller
from mkdt.networks.divergence import Diverged, diverged
from mkdt.progress import Checkpoint, Report

SMALLEST_STEP_SIZE = 1e-6  # a lower bound in log space too, because float32's exp reaches zero
MOMENTUM = 0.5  # paper, appendix: SGD momentum of images, targets and step size
# For each image of the set: a rate of 10 for 14 digits. docs/studies/what_matters.md compares rates at 7 to 140 images.
TARGET_RATE_PER_IMAGE = 10 / 14

# (iteration, set) -> the hypergradient, and values to report.
GradientFn = Callable[[int, "LearnedSet"], tuple[Hypergradient, dict[str, float]]]


def target_rate(count: int, settings: Mapping[str, Any]) -> float:
    """Return the learning rate of ``count`` targets; ``auto`` is proportional to their number.

    The loss of a step is a mean over its rows, so the gradient of one target is divided by the number of rows.
    """
    rate: float | str = settings["target_lr"]
    return TARGET_RATE_PER_IMAGE * count if isinstance(rate, str) else rate


class LearnedSet:
    """The images, targets and step size that are learned, with their optimisers.

    One optimiser moves the images (``image_optimizer``), another moves step size and targets (``target_optimizer``; SGD
    in the paper). With ``schedule: cosine`` all rates fall to zero over the run.
    """

    def __init__(self, initial: SyntheticSet, settings: Mapping[str, Any], device: torch.device) -> None:
        """Copy images and targets of ``initial``; the step size starts from the settings."""
        self.images, self.targets = (part.clone().to(device) for part in (initial.images, initial.targets))
        self._learn_targets, self._log_space = settings["learn_targets"], settings["step_size"]["space"] == "log"
        start = settings["step_size"]["initial"]
        self._parameter = torch.tensor(math.log(start) if self._log_space else start, device=device)
        groups: list[dict[str, Any]] = [{"params": [self._parameter], "lr": settings["step_size"]["lr"]}]
        if self._learn_targets:
            groups.append({"params": [self.targets], "lr": target_rate(len(self.targets), settings)})
        self._optimizers = [
            _optimizer(settings["image_optimizer"], [{"params": [self.images], "lr": settings["image_lr"]}]),
            _optimizer(settings["target_optimizer"], groups),
        ]
        self._cosine, self._iterations = settings["schedule"] == "cosine", settings["iterations"]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
        self._decay = settings["average"]
        self._average = [part.clone() for part in self._values()] if self._decay else []

    def _values(self) -> list[Tensor]:
        return [self.images, self.targets, self._parameter]

    @property
    def step_size(self) -> Tensor:
        """The step size, float32 []."""
        return self._as_step_size(self._parameter)

    def _as_step_size(self, parameter: Tensor) -> Tensor:
        return parameter.exp() if self._log_space else parameter.clone()

    def update(self, gradient: Hypergradient, iteration: int) -> None:
        """Take one step against the gradient; the step size stays at or above ``SMALLEST_STEP_SIZE``."""
        self.images.grad = gradient.images
        self.targets.grad = gradient.targets if self._learn_targets else None
        self._parameter.grad = gradient.step_size * self.step_size if self._log_space else gradient.step_size
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                share = (1 + math.cos(math.pi * iteration / self._iterations)) / 2 if self._cosine else 1.0
                group["lr"] = rate * share
            optimizer.step()
        self._parameter.clamp_(min=math.log(SMALLEST_STEP_SIZE) if self._log_space else SMALLEST_STEP_SIZE)
        for mean, value in zip(self._average, self._values(), strict=False):  # no averages without the setting
            mean.lerp_(value, 1 - self._decay)

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs to continue."""
        return {
            "set": self._values(),
            "average": self._average,
            "optimizer": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        for tensor, saved in zip([*self._values(), *self._average], [*state["set"], *state["average"]], strict=True):
            tensor.copy_(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizer"], strict=True):
            optimizer.load_state_dict(saved)

    def is_finite(self) -> bool:
        """Return whether all values are finite."""
        return all(bool(part.isfinite().all()) for part in self._values())

    def as_set(self, initial: SyntheticSet) -> SyntheticSet:
        """Return ``initial`` with the learned values, or with their ``average``, copied to the CPU."""
        images, targets, parameter = self._average or self._values()
        values = (part.cpu().clone() for part in (images, targets, self._as_step_size(parameter)))
        images, targets, step_size = values
        return replace(initial, images=images, targets=targets, step_size=step_size)


def _optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM)


def learn_set(
    initial: SyntheticSet,
    settings: Mapping[str, Any],
    gradient_at: GradientFn,
    unroller: Unroller,
    *,
    device: torch.device,
    name: str,
    keys: tuple[str, ...],
    least_loss: float,
    state: dict[str, Any] | None,
    report: Report,
    checkpoint: Checkpoint,
) -> tuple[SyntheticSet, Tensor]:
    """Update a set by the hypergradient of each iteration.

    Args:
        initial: the subset that the synthetic set starts from.
        settings: ``iterations``, ``pictures`` and what ``LearnedSet`` reads.
        gradient_at: computes the hypergradient of an iteration.
        unroller: the one that ``gradient_at`` uses; how many graphs it keeps belongs to the resume state.
        device: where to compute.
        name: of the method, for messages.
        keys: config keys of rates and step sizes, for messages.
        least_loss: a loss of ``divergence.EXPLODED`` times this never counts as diverged.
        state: a state that was given to ``checkpoint``, to continue from.
        report: called after each iteration with ``loss``, ``step_size``, ``image_gradient`` (norm) and the values of
            ``gradient_at``; at intervals also with the set as pictures.
        checkpoint: called before each update, after the loss was found good: the saved set has never diverged.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the larger of the
            first one and ``least_loss``.
    """
    learned = LearnedSet(initial, settings, device)
    first, start_loss = 0, 0.0
    if state is not None:
        first, start_loss, unroller.retain = state["iteration"], state["start_loss"], state["retain"]
        learned.load(state)
    history = History(initial, settings, state)

    def current_state(iteration: int) -> dict[str, Any]:
        own = {"iteration": iteration, "retain": unroller.retain, "start_loss": start_loss}
        return own | learned.state() | {"history": history.frames()}

    for iteration in range(first, settings["iterations"]):
        gradient, values = gradient_at(iteration, learned)
        loss, norm = float(gradient.loss), torch.linalg.vector_norm(gradient.images)
        start_loss = start_loss or max(least_loss, loss)
        checks = [gradient.loss, norm, torch.linalg.vector_norm(gradient.targets), gradient.step_size.abs()]
        if not bool(torch.stack(checks).isfinite().all()) or diverged(loss, start_loss):
            drawn = "".join(f"{key.replace('_', ' ')} {value}, " for key, value in values.items())
            raise Diverged(
                f"{name}: diverged at iteration {iteration} ({drawn}step size {float(learned.step_size):.3g}): the loss "
                f"is {loss:.3g} ({start_loss:.3g} at the start), or a gradient is not finite. The last resume point is "
                f"from before: lower {' or '.join(keys)}."
            )
        checkpoint(partial(current_state, iteration))
        learned.update(gradient, iteration)
        own = {"loss": loss, "step_size": float(learned.step_size), "image_gradient": float(norm)}
        kept = {"retain": int(unroller.retain)} if unroller.chooses else {}
        report(iteration + 1, own | values | kept, history.record(iteration + 1, learned.images))

    if not learned.is_finite():
        raise Diverged(
            f"{name}: diverged in the last update, to values that are not finite: lower {' or '.join(keys)}."
        )
    return learned.as_set(initial), history.frames()

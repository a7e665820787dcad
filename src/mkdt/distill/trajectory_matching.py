"""Trajectory matching: learn a synthetic set so that training on it follows the experts' trajectories."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.distill.compiled_step import CompiledStep
from mkdt.distill.graph_memory import choose_retain
from mkdt.distill.hypergradient import Hypergradient, match_trajectory
from mkdt.distill.synthetic_set import History, SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.flat import LossFn
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

SMALLEST_STEP_SIZE = 1e-6  # a lower bound in log space too, because float32's exp reaches zero
MOMENTUM = 0.5  # paper, appendix: SGD momentum of images, targets and step size
# For each image of the set: a rate of 10 for 14 digits. docs/studies/what_matters.md compares rates at 7 to 140 images.
TARGET_RATE_PER_IMAGE = 10 / 14

# (images, rows of each step, iteration) -> the views of all steps, and for each step the rows of its views.
ViewsFn = Callable[[Tensor, list[Tensor], int], tuple[Tensor, list[Tensor]]]


class Draw(NamedTuple):
    """The random choices of one iteration: an expert, its start epoch, and the rows (int64) of each student step."""

    expert: int
    epoch: int
    rows: list[Tensor]


def start_epochs_at(iteration: int, settings: Mapping[str, Any]) -> int:
    """Return how many start epochs may be drawn: all, or with ``curriculum`` a number that grows linearly."""
    limit: int = settings["start_epochs"]
    if not settings["curriculum"]:
        return limit
    return min(limit, 1 + iteration * limit // max(1, settings["iterations"]))


def inner_batches(size: int, batch: int, stream: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of row indices without end; every row is used once before any is used again."""
    while True:
        yield from seeding.batches(size, batch, stream)


def draw_iteration(
    experts: int, images: int, settings: Mapping[str, Any], iteration: int, stream: torch.Generator
) -> Draw:
    """Draw what one iteration uses, of so many experts and images."""
    expert = int(torch.randint(experts, (), generator=stream))
    epoch = int(torch.randint(start_epochs_at(iteration, settings), (), generator=stream))
    return Draw(expert, epoch, list(islice(inner_batches(images, settings["batch"], stream), settings["steps"])))


def target_rate(count: int, settings: Mapping[str, Any]) -> float:
    """Return the targets' learning rate in a set of ``count`` images; ``auto`` grows with the set.

    The loss of a step is a mean over its rows, so the gradient of one target is divided by the number of images.
    """
    rate: float | str = settings["target_lr"]
    return TARGET_RATE_PER_IMAGE * count if isinstance(rate, str) else rate


class LearnedSet:
    """The images, targets and step size that are learned, with their optimisers.

    One optimiser moves the images (``image_optimizer``), another moves step size and targets (SGD, as in the paper).
    """

    def __init__(self, initial: SyntheticSet, settings: Mapping[str, Any], device: torch.device) -> None:
        """Copy images and targets of ``initial``; the step size starts from the settings."""
        self.images, self.targets = (part.clone().to(device) for part in (initial.images, initial.targets))
        self._learn_targets, self._log_space = settings["learn_targets"], settings["step_size"]["space"] == "log"
        start = settings["step_size"]["initial"]
        self._parameter = torch.tensor(math.log(start) if self._log_space else start, device=device)
        if settings["image_optimizer"] == "adam":
            for_images: torch.optim.Optimizer = torch.optim.Adam([self.images], settings["image_lr"])
        else:
            for_images = torch.optim.SGD([self.images], settings["image_lr"], momentum=MOMENTUM)
        groups = [{"params": [self._parameter], "lr": settings["step_size"]["lr"]}]
        if self._learn_targets:
            groups.append({"params": [self.targets], "lr": target_rate(len(self.targets), settings)})
        self._optimizers = [for_images, torch.optim.SGD(groups, momentum=MOMENTUM)]

    @property
    def step_size(self) -> Tensor:
        """The step size, float32 []."""
        return self._parameter.exp() if self._log_space else self._parameter.clone()

    def update(self, gradient: Hypergradient) -> None:
        """Take one step against the gradient; the step size stays at or above ``SMALLEST_STEP_SIZE``."""
        self.images.grad = gradient.images
        self.targets.grad = gradient.targets if self._learn_targets else None
        self._parameter.grad = gradient.step_size * self.step_size if self._log_space else gradient.step_size
        for optimizer in self._optimizers:
            optimizer.step()
        self._parameter.clamp_(min=math.log(SMALLEST_STEP_SIZE) if self._log_space else SMALLEST_STEP_SIZE)

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs to continue."""
        return {
            "set": [self.images, self.targets, self._parameter],
            "optimizer": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        for tensor, saved in zip((self.images, self.targets, self._parameter), state["set"], strict=True):
            tensor.copy_(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizer"], strict=True):
            optimizer.load_state_dict(saved)

    def is_finite(self) -> bool:
        """Return whether all values are finite."""
        return all(bool(part.isfinite().all()) for part in (self.images, self.targets, self._parameter))

    def as_set(self, initial: SyntheticSet) -> SyntheticSet:
        """Return ``initial`` with the learned values, copied to the CPU."""
        images, targets, step_size = (part.cpu().clone() for part in (self.images, self.targets, self.step_size))
        return replace(initial, images=images, targets=targets, step_size=step_size)


class Matcher:
    """The gradient of one iteration, with the graphs that the settings ``retain`` and ``compile`` ask for.

    Args:
        loss_fn, views: as for ``match_experts``.
        settings: ``retain``, ``compile``, ``learn_targets`` and ``momentum``.
        retain: the setting ``retain``, or the number that an earlier job chose for ``auto``.
    """

    def __init__(self, loss_fn: LossFn, views: ViewsFn | None, settings: Mapping[str, Any], retain: int | str) -> None:
        self._loss_fn, self._views, self._settings, self.retain = loss_fn, views, settings, retain
        self._compiled = CompiledStep(loss_fn, settings["learn_targets"]) if settings["compile"] else None
        self.chooses = settings["retain"] == "auto" and self._compiled is None

    def gradient(
        self, theta0: Tensor, target: Tensor, learned: LearnedSet, rows: list[Tensor], iteration: int
    ) -> Hypergradient:
        """Compute the hypergradient for a student that starts at ``theta0``, float [P] (``match_trajectory``)."""
        images, targets = learned.images, learned.targets
        if self._views is None:
            return self._match(theta0, target, images, targets, learned.step_size, rows)
        # The views do not depend on the weights: draw them first, and pull their gradient back to the images later.
        leaf = images.detach().requires_grad_()
        views, rows = self._views(leaf, rows, iteration)
        nothing = targets.new_empty(len(views), 0)
        match = self._match(theta0, target, views.detach(), nothing, learned.step_size, rows)
        (by_images,) = torch.autograd.grad(views, leaf, match.images)
        return match._replace(images=by_images)

    def _match(
        self, theta0: Tensor, target: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, rows: list[Tensor]
    ) -> Hypergradient:
        learn_targets = self._settings["learn_targets"]
        # Choose once: kept and rebuilt graphs differ in the last bits, so a resumed run keeps the number.
        if self.retain == "auto" and self._compiled is None:
            self.retain = choose_retain(self._loss_fn, theta0, images, targets, rows, learn_targets)
        return match_trajectory(
            self._loss_fn,
            theta0,
            target,
            images,
            targets,
            step_size,
            rows,
            retain=0 if self._compiled else int(self.retain),
            learn_targets=learn_targets,
            momentum=self._settings["momentum"],
            compiled=self._compiled,
        )


def _expert_weights(
    experts: Sequence[Artifact], draw: Draw, settings: Mapping[str, Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the drawn expert's weights at the start epoch and ``match_epochs`` later, float32 [P]."""
    epochs = draw.epoch, draw.epoch + settings["match_epochs"]
    theta0, target = (experts[draw.expert].row("trajectory", epoch).to(device) for epoch in epochs)
    if torch.equal(theta0, target):
        raise UserError(
            f"distill: the weights of expert {draw.expert} did not change after epoch {draw.epoch}: raise experts.lr "
            "or distill.match_epochs."
        )
    return theta0, target


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
    """Learn a synthetic set by trajectory matching (paper, algorithm 1).

    Each iteration draws an expert and a start epoch. A student takes N steps on the set from the expert's weights, and
    is compared with the expert M epochs later.

    Args:
        initial: the subset that the synthetic set starts from.
        experts: their files, each with ``trajectory`` [E+1,P]; each iteration reads two rows.
        loss_fn: the loss that the experts were trained by, ``loss_fn(theta, images, targets)``.
        settings: the ``distill`` section of the config.
        seed, distill_seed: with the settings they decide all draws.
        device: where to compute.
        views: makes views of the images, which ``loss_fn`` then sees in their place. There are no targets to learn
            then (``learn_targets: false``). None for the images themselves.
        key: the config key that a message about divergence names first.
        state: a state that was given to ``checkpoint``, to continue from.
        report: called after each iteration with ``loss``, ``step_size``, ``image_gradient`` (norm), ``expert`` and
            ``start_epoch``; at intervals also with the set as pictures.
        checkpoint: called before each update, after the loss was found good: the saved set has never diverged.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the first one (or 1,
            the loss of a student that does not move, if the first is less).
        UserError: an expert's weights did not change over the epochs to be matched.
    """
    learned = LearnedSet(initial, settings, device)
    first, start_loss, retain = 0, 0.0, settings["retain"]
    if state is not None:
        first, start_loss, retain = state["iteration"], state["start_loss"], state["retain"]
        learned.load(state)
    matcher = Matcher(loss_fn, views, settings, retain)
    history = History(initial, settings, state)

    def current_state(iteration: int) -> dict[str, Any]:
        own = {"iteration": iteration, "retain": matcher.retain, "start_loss": start_loss}
        return own | learned.state() | {"history": history.frames()}

    for iteration in range(first, settings["iterations"]):
        stream = seeding.generator(seed, "distill", distill_seed, iteration)
        draw = draw_iteration(len(experts), len(initial), settings, iteration, stream)
        theta0, target = _expert_weights(experts, draw, settings, device)
        rows = [batch.to(device) for batch in draw.rows]
        gradient = matcher.gradient(theta0, target, learned, rows, iteration)
        loss, norm = float(gradient.loss), torch.linalg.vector_norm(gradient.images)
        start_loss = start_loss or max(1.0, loss)
        checks = [gradient.loss, norm, torch.linalg.vector_norm(gradient.targets), gradient.step_size.abs()]
        if not bool(torch.stack(checks).isfinite().all()) or diverged(loss, start_loss):
            raise Diverged(
                f"distill: diverged at iteration {iteration} (expert {draw.expert}, start epoch {draw.epoch}, step size "
                f"{float(learned.step_size):.3g}): the loss is {loss:.3g} ({start_loss:.3g} at the start), or a gradient "
                f"is not finite. The last resume point is from before: lower {key} or distill.step_size.lr."
            )
        checkpoint(partial(current_state, iteration))
        learned.update(gradient)
        values = {
            "loss": loss,
            "step_size": float(learned.step_size),
            "image_gradient": float(norm),
            "expert": draw.expert,
            "start_epoch": draw.epoch,
        }
        if matcher.chooses:
            values["retain"] = int(matcher.retain)
        report(iteration + 1, values, history.record(iteration + 1, learned.images))

    if not learned.is_finite():
        raise Diverged(
            f"distill: diverged in the last update, to values that are not finite: lower {key} or distill.step_size.lr."
        )
    return learned.as_set(initial), history.frames()

"""Distillation method ``krr_st``: kernel ridge regression on the features of a pool of students.

Lee et al., "Self-supervised dataset distillation for transfer learning", ICLR 2024 (arXiv 2310.06511). A student that
is trained on the synthetic images X and targets Y should predict the teacher's representations of real images. The
optimal last layer has a closed form. With the features f of a student and an appended one for the bias,

    prediction(x) = f(x) f(X)^T (f(X) f(X)^T + lambda I)^-1 Y,    lambda = 1e-6 trace(f(X) f(X)^T)

The loss is the mean squared error of the predictions to the targets of a batch of real images. AdamW moves X and Y
only. The students are trained on X and Y by MSE, each for some hundred steps, and then replaced by fresh ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data.pixels import normalise
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import History, SyntheticSet
from mkdt.networks.backbones import Spec
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.precision import forward
from mkdt.networks.students import Student, build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

RIDGE = 1e-6  # published: lambda as a share of the kernel's trace
MOMENTUM = 0.9  # published: SGD of the students in the pool
LAST_SHARE = 1e-3  # published: the learning rate falls linearly to this share of its start


def krr_loss(features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor) -> Tensor:
    """Compute the mean squared error on real images of kernel ridge regression on the set (their equation 7).

    The system is solved in float64: with this ridge its condition number is about m / RIDGE, too large for float32.

    Args:
        features: float [m,F], of the synthetic images; differentiated.
        targets: float [m,D], the synthetic targets; differentiated.
        real_features: float [b,F].
        real_targets: float [b,D].

    Returns:
        float64 [].
    """
    ours, real = (torch.cat([part, part.new_ones(len(part), 1)], 1).double() for part in (features, real_features))
    kernel = ours @ ours.T
    ridge = RIDGE * kernel.detach().trace()
    system = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    prediction = real @ ours.T @ torch.linalg.solve(system, targets.double())
    return F.mse_loss(prediction, real_targets.double())


@dataclass
class _Member:
    """A student of the pool: how often its place was filled anew, and the steps that it was trained."""

    student: Student
    optimizer: torch.optim.Optimizer
    generation: int
    steps: int = 0


class Pool:
    """Students that are trained on the synthetic set, each at another number of steps.

    Args:
        build: makes the student of a place and a generation.
        settings: the section ``krr_st`` of the config.
    """

    def __init__(self, build: Callable[[int, int], Student], settings: Mapping[str, Any]) -> None:
        self._build, self._settings = build, settings
        self._members: list[_Member] = []

    def __len__(self) -> int:
        return len(self._members)

    def _fresh(self, place: int, generation: int) -> _Member:
        student = self._build(place, generation)
        lr, decay = self._settings["student_lr"], self._settings["student_weight_decay"]
        optimizer = torch.optim.SGD(student.parameters(), lr, momentum=MOMENTUM, weight_decay=decay)
        return _Member(student, optimizer, generation)

    def add(self, images: Tensor, targets: Tensor, steps: int) -> None:
        """Add a student, trained for ``steps`` steps."""
        self._members.append(self._fresh(len(self), 0))
        for _ in range(steps):
            self.train(len(self) - 1, images, targets)

    def student(self, place: int) -> Student:
        """Return the student of a place, in eval mode."""
        return self._members[place].student.eval()

    def train(self, place: int, images: Tensor, targets: Tensor) -> None:
        """Train a student for one step on the whole set, or replace it by a fresh one after ``student_steps``."""
        member = self._members[place]
        if member.steps >= self._settings["student_steps"]:
            self._members[place] = self._fresh(place, member.generation + 1)
            return
        member.student.train()
        loss = F.mse_loss(forward(member.student, images), targets)
        member.optimizer.zero_grad()
        loss.backward()
        member.optimizer.step()
        member.steps += 1

    def state(self) -> list[dict[str, Any]]:
        """Return what ``load`` needs to continue."""
        return [
            {
                "generation": member.generation,
                "steps": member.steps,
                "student": member.student.state_dict(),
                "optimizer": member.optimizer.state_dict(),
            }
            for member in self._members
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Fill an empty pool with what ``state`` returned."""
        for place, saved in enumerate(state):
            member = self._fresh(place, saved["generation"])
            member.student.load_state_dict(saved["student"])
            member.optimizer.load_state_dict(saved["optimizer"])
            member.steps = saved["steps"]
            self._members.append(member)


class _LearnedSet:
    """The images and targets that are learned, with their optimiser, whose rate falls linearly to ``LAST_SHARE``."""

    def __init__(self, initial: SyntheticSet, settings: Mapping[str, Any], device: torch.device) -> None:
        self.images, self.targets = (
            part.clone().to(device).requires_grad_() for part in (initial.images, initial.targets)
        )
        self._initial, self._settings = initial, settings
        decay = settings["weight_decay"]
        self._optimizer = torch.optim.AdamW([self.images, self.targets], settings["lr"], weight_decay=decay)

    def values(self) -> tuple[Tensor, Tensor]:
        """Return images and targets without gradients; they share the memory of the learned ones."""
        return self.images.detach(), self.targets.detach()

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the images in all views and their targets, without gradients."""
        images, targets = self.values()
        return self._initial.decoded(images), targets

    def update(self, iteration: int, by_images: Tensor, by_targets: Tensor) -> None:
        """Take one step against the gradients."""
        self.images.grad, self.targets.grad = by_images, by_targets
        share = 1 - (1 - LAST_SHARE) * iteration / self._settings["iterations"]
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings["lr"] * share
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return what ``load`` needs to continue."""
        return {"set": list(self.values()), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        for tensor, saved in zip(self.values(), state["set"], strict=True):
            tensor.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])


def krr_st_set(
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
    """Learn images and targets from which ridge regression predicts the teacher (their algorithm 1).

    Args:
        initial: the subset that the synthetic set starts from; its mean and std normalise the real images too, and its
            step size is kept.
        source: its images and targets.
        student: the config entry of the pool's students; batch norm is allowed, and the published choice.
        settings: the ``krr_st`` section of the config.
        seed, distill_seed: with the settings they decide all draws.
        device: where to compute.
        state: a state that was given to ``checkpoint``, to continue from.
        report: called after each iteration with ``loss`` and ``image_gradient`` (norm); at intervals also with the set
            as pictures.
        checkpoint: called after each student of the first pool, and before each update after the loss was found good.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the first one.
    """
    learned = _LearnedSet(initial, settings, device)

    def build(place: int, generation: int) -> Student:
        channels, size, outputs = *initial.images.shape[1:3], initial.targets.shape[1]
        who = distill_seed, place, generation
        return build_student(student, channels, size, outputs, seed, "krr student", *who).to(device)

    pool = Pool(build, settings)
    history = History(initial, settings, state)
    first, start_loss = 0, 0.0
    if state is not None:
        first, start_loss = state["iteration"], state["start_loss"]
        learned.load(state)
        pool.load(state["pool"])

    def current_state(iteration: int) -> dict[str, Any]:
        own = {"iteration": iteration, "start_loss": start_loss, "pool": pool.state()}
        return own | learned.state() | {"history": history.frames()}

    for place in range(len(pool), settings["students"]):
        stream = seeding.generator(seed, "krr pool", distill_seed, place)
        pool.add(*learned.pairs(), int(torch.randint(settings["student_steps"], (), generator=stream)))
        checkpoint(partial(current_state, 0))

    mean, std = initial.mean.to(device), initial.std.to(device)
    for iteration in range(first, settings["iterations"]):
        stream = seeding.generator(seed, "krr", distill_seed, iteration)
        place = int(torch.randint(len(pool), (), generator=stream))
        rows = torch.randperm(len(source.images), generator=stream)[: settings["batch"]]
        backbone = pool.student(place).backbone
        with torch.no_grad():
            real_features = backbone(normalise(source.images[rows].to(device), mean, std))
        features, real_targets = backbone(initial.decoded(learned.images)), source.targets[rows].to(device)
        loss = krr_loss(features, learned.targets, real_features, real_targets)
        gradients = torch.autograd.grad(loss, [learned.images, learned.targets])
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        value = float(loss.detach())
        start_loss = start_loss or value
        if not bool(torch.stack([loss.detach().float(), *norms]).isfinite().all()) or diverged(value, start_loss):
            raise Diverged(
                f"krr_st: diverged at iteration {iteration}: the loss is {value:.3g} ({start_loss:.3g} at the start), or "
                "a gradient is not finite. The last resume point is from before: lower krr_st.lr or krr_st.student_lr."
            )
        checkpoint(partial(current_state, iteration))
        learned.update(iteration, *gradients)
        pool.train(place, *learned.pairs())
        values = {"loss": value, "image_gradient": float(norms[0])}
        report(iteration + 1, values, history.record(iteration + 1, learned.images))

    images, targets = (part.cpu().clone() for part in learned.values())
    if not bool(images.isfinite().all() and targets.isfinite().all()):
        raise Diverged("krr_st: diverged in the last update, to values that are not finite: lower krr_st.lr.")
    return replace(initial, images=images, targets=targets), history.frames()

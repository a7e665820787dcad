"""Distillation method ``krr_st``: kernel ridge regression on the features of a pool of students.

Lee et al., "Self-supervised dataset distillation for transfer learning", ICLR 2024 (arXiv 2310.06511). The synthetic
images X and targets Y should be such that a student trained on them predicts the teacher's representation of real
images. Training the last layer to its end has a closed form: with the features f of a student, a one appended for the bias,

    prediction(x) = f(x) f(X)^T (f(X) f(X)^T + lambda I)^-1 Y,    lambda = 1e-6 trace(f(X) f(X)^T)

and the loss is the mean squared error of that to the targets of a batch of real images. Only X and Y are moved, by AdamW;
the students are trained on them by MSE, each a few hundred steps, and then begun anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data.pixels import normalise
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet, first_images, moments
from mkdt.networks.backbones import Spec
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.students import Student, build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

RIDGE = 1e-6  # published: lambda as a share of the kernel's trace
MOMENTUM = 0.9  # published: SGD of the students in the pool
LAST_SHARE = 1e-3  # published: the learning rate falls linearly to this share of its start


def krr_loss(features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor) -> Tensor:
    """Mean squared error of kernel ridge regression from the synthetic set to real images (their equation 7).

    Args:
        features: float [m,F], of the synthetic images; differentiated.
        targets: float [m,D], the synthetic targets; differentiated.
        real_features: float [b,F].
        real_targets: float [b,D].

    The system is solved in float64: with this ridge its condition number is about m / RIDGE, too much for float32.
    """
    ours, real = (torch.cat([part, part.new_ones(len(part), 1)], 1).double() for part in (features, real_features))
    kernel = ours @ ours.T
    ridge = RIDGE * kernel.detach().trace()
    system = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    prediction = real @ ours.T @ torch.linalg.solve(system, targets.double())
    return F.mse_loss(prediction, real_targets.double())


class Pool:
    """Students in training on the synthetic set, each at another number of steps."""

    def __init__(self, build: Callable[[int, int], Student], settings: Mapping[str, Any]) -> None:
        """Empty; ``build`` makes the student of a place and a generation, ``settings`` is the section ``krr_st``."""
        self._build, self._settings = build, settings
        self._members: list[tuple[Student, torch.optim.Optimizer]] = []
        self._generations: list[int] = []
        self._steps: list[int] = []

    def __len__(self) -> int:
        return len(self._members)

    def _fresh(self, place: int, generation: int) -> tuple[Student, torch.optim.Optimizer]:
        student = self._build(place, generation)
        lr, decay = self._settings["student_lr"], self._settings["student_weight_decay"]
        return student, torch.optim.SGD(student.parameters(), lr, momentum=MOMENTUM, weight_decay=decay)

    def add(self, images: Tensor, targets: Tensor, steps: int) -> None:
        """Another student, trained for ``steps`` steps."""
        self._members.append(self._fresh(len(self), 0))
        self._generations.append(0)
        self._steps.append(0)
        for _ in range(steps):
            self.train(len(self) - 1, images, targets)

    def student(self, place: int) -> Student:
        """The student of a place, in eval mode."""
        return self._members[place][0].eval()

    def train(self, place: int, images: Tensor, targets: Tensor) -> None:
        """One step on the whole synthetic set, or a fresh student where this one has had ``student_steps``."""
        if self._steps[place] >= self._settings["student_steps"]:
            self._generations[place] += 1
            self._steps[place] = 0
            self._members[place] = self._fresh(place, self._generations[place])
            return
        student, optimizer = self._members[place]
        student.train()
        loss = F.mse_loss(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self._steps[place] += 1

    def state(self) -> list[dict[str, Any]]:
        """All that is needed to go on."""
        return [
            {"generation": g, "steps": s, "student": student.state_dict(), "optimizer": optimizer.state_dict()}
            for g, s, (student, optimizer) in zip(self._generations, self._steps, self._members, strict=True)
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from what ``state`` gave."""
        for place, saved in enumerate(state):
            student, optimizer = self._fresh(place, saved["generation"])
            student.load_state_dict(saved["student"])
            optimizer.load_state_dict(saved["optimizer"])
            self._members.append((student, optimizer))
            self._generations.append(saved["generation"])
            self._steps.append(saved["steps"])


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
    """KRR-ST: move images and targets so that ridge regression on them predicts the teacher (their algorithm 1).

    Args:
        initial: the subset that the synthetic set starts from; its step size is kept.
        source: its images and targets.
        student: the config entry of the pool's students; batch norm is fine, it is the published choice.
        settings: the ``krr_st`` section of the config.
        seed, distill_seed: with the settings they decide every draw.
        device: where to compute.
        state: what ``checkpoint`` was given before an interruption.
        report: called every iteration with ``loss`` and ``image_gradient`` (norm); at intervals also with ``pictures``,
            the set as uint8 [m,C,H,W].
        checkpoint: called after each student of the first pool and before each update with a function that returns the
            state, once its loss is known to be good.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged: loss, gradient or set is not finite, or the loss is ``divergence.EXPLODED`` times the first one.
    """
    channels, size = initial.images.shape[1], initial.images.shape[2]
    real_targets, mean, std = (part.to(device) for part in (source.targets, initial.mean, initial.std))
    images = initial.images.clone().to(device).requires_grad_()
    targets = initial.targets.clone().to(device).requires_grad_()
    optimizer = torch.optim.AdamW([images, targets], settings["lr"], weight_decay=settings["weight_decay"])

    def build(place: int, generation: int) -> Student:
        who = (distill_seed, place, generation)
        return build_student(student, channels, size, targets.shape[1], seed, "krr student", *who).to(device)

    pool = Pool(build, settings)
    pictured = set(moments(settings))
    history = [first_images(images)]
    first, start_loss = 0, 0.0
    if state is not None:
        start_loss = state["start_loss"]
        first, history = state["iteration"], list(state["history"])
        for tensor, saved in zip((images, targets), state["set"], strict=True):
            tensor.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        pool.load(state["pool"])

    def current_state(iteration: int) -> dict[str, Any]:
        return {
            "iteration": iteration,
            "start_loss": start_loss,
            "set": [images.detach(), targets.detach()],
            "optimizer": optimizer.state_dict(),
            "pool": pool.state(),
            "history": torch.stack(history),
        }

    for place in range(len(pool), settings["students"]):
        stream = seeding.generator(seed, "krr pool", distill_seed, place)
        pool.add(images.detach(), targets.detach(), int(torch.randint(settings["student_steps"], (), generator=stream)))
        checkpoint(lambda: current_state(0))

    for iteration in range(first, settings["iterations"]):
        stream = seeding.generator(seed, "krr", distill_seed, iteration)
        place = int(torch.randint(len(pool), (), generator=stream))
        rows = torch.randperm(len(source.images), generator=stream)[: settings["batch"]]
        batch = normalise(source.images[rows].to(device), mean, std)
        backbone = pool.student(place).backbone
        with torch.no_grad():
            real_features = backbone(batch)
        loss = krr_loss(backbone(images), targets, real_features, real_targets[rows.to(device)])
        images.grad, targets.grad = torch.autograd.grad(loss, [images, targets])
        norm = torch.linalg.vector_norm(images.grad)
        checks = torch.stack([loss.detach().float(), norm, torch.linalg.vector_norm(targets.grad)])
        start_loss = start_loss or float(loss.detach())
        if not bool(torch.isfinite(checks).all()) or diverged(float(loss.detach()), start_loss):
            raise Diverged(
                f"krr_st: diverged, with a loss of {float(loss.detach()):.3g} ({start_loss:.3g} at the start) or a gradient "
                f"that is not finite, at iteration {iteration}; the last resume point is from before: lower krr_st.lr or "
                "krr_st.student_lr."
            )
        checkpoint(partial(current_state, iteration))
        share = 1 - (1 - LAST_SHARE) * iteration / settings["iterations"]
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * share
        optimizer.step()
        pool.train(place, images.detach(), targets.detach())

        values = {"loss": float(loss.detach()), "image_gradient": float(norm)}
        if iteration + 1 in pictured:
            history.append(first_images(images))
            report(iteration + 1, values, pictures=replace(initial, images=images.detach().cpu()).pixels())
        else:
            report(iteration + 1, values)

    if not all(bool(part.isfinite().all()) for part in (images, targets)):
        raise Diverged("krr_st: the last update gave values that are not finite: lower krr_st.lr.")
    final = replace(initial, images=images.detach().cpu().clone(), targets=targets.detach().cpu().clone())
    return final, torch.stack(history).cpu()

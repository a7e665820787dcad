"""Pre-training: regress a fresh student onto a set's targets; snapshots at every point of a grid of rates and steps."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.data.pixels import Images
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.backbones import Spec
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.flat import flatten_state, load_state
from mkdt.networks.precision import forward
from mkdt.networks.students import Student, build_student, student_of
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

SETTLE_IMAGES = 1024  # for the batch norm statistics of an untrained student
BATCH, MOMENTUM, WEIGHT_DECAY = 256, 0.9, 1e-4  # paper, appendix: pre-training of students


def _steps(
    model: Student,
    optimizer: torch.optim.Optimizer,
    images: Images,
    targets: Tensor,
    *,
    first: int,
    last: int,
    batch: int,
    seed: int,
) -> Iterator[tuple[int, Tensor]]:
    """Take SGD steps ``first`` to ``last - 1``; yield after each the number of steps done and its loss.

    The order of images is a function of (seed, epoch), so a run that starts at ``first`` continues another.
    """
    per_epoch = -(-len(images) // batch)
    model.train()
    for epoch in range(first // per_epoch, -(-last // per_epoch)):
        stream = seeding.generator(seed, "pretrain order", epoch)
        for i, rows in enumerate(seeding.batches(len(images), batch, stream)):
            step = epoch * per_epoch + i
            if not first <= step < last:
                continue
            rows = rows.to(images.device)
            loss = F.mse_loss(forward(model, images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield step + 1, loss.detach()


def _check_last_batch(model: nn.Module, count: int, batch: int) -> None:
    """Refuse a last batch of one image for batch norm; the config check cannot see the size of a set from a file."""
    if count % batch == 1 and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise UserError(
            f"pretrain.batch {batch} leaves a last batch of one image of a set of {count}, which is too few for the batch norm "
            "of the student: change pretrain.batch."
        )


def _settle(model: Student, images: Images, seed: int) -> None:
    """Give the batch norms of an untrained student the statistics of (a sample of) its images.

    With the initial statistics, mean 0 and variance 1, the features of a deep network vanish in eval mode: it would be no
    baseline for pre-training.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    order = torch.randperm(len(images), generator=seeding.generator(seed, "statistics"))[:SETTLE_IMAGES]
    for norm in norms:
        norm.momentum = None  # the mean over all batches, not a moving one
    model.train()
    with torch.no_grad():
        for rows in order.split(BATCH) if norms else ():
            if len(rows) > 1:
                forward(model.backbone, images[rows.to(images.device)])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def pretrain(
    training_set: SyntheticSet,
    student: Spec | nn.Module,
    *,
    steps: int,
    rate: float | None = None,
    batch: int = BATCH,
    momentum: float = MOMENTUM,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Student:
    """Pre-train a student on a synthetic set (paper, section 4.3).

    Args:
        training_set: from ``load_synthetic``.
        student: a network to build afresh, for example ``{"architecture": "convnet", "depth": 3, "width": 128, "norm":
            "instance"}``; or a module of your own that maps images float32 [n,C,H,W] to features [n,D]. The module is
            trained itself, not a copy.
        steps: number of SGD steps.
        rate: learning rate; None takes the learned step size.
        batch, momentum, weight_decay: of SGD; the defaults are the paper's.
        seed: decides initial weights (of a module of your own, those of the head alone) and the order of images.
        device: where to train.

    Returns:
        the student in eval mode; ``student.backbone(images)`` gives features for a probe.

    Raises:
        UserError: the module does not return one vector an image, or the last batch has one image and the student batch norm.
        Diverged: the loss or the weights are not finite, or the loss has exploded.
    """
    images, targets = training_set.decoded().to(device), training_set.targets.to(device)
    if isinstance(student, nn.Module):
        model = student_of(student.to(device), images, targets.shape[1], seed).to(device)
    else:
        model = build_student(student, images.shape[1], images.shape[2], targets.shape[1], seed, "student weights").to(
            device
        )
    if steps:
        _check_last_batch(model, len(images), batch)
    lr = float(training_set.step_size) if rate is None else rate
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    losses = [
        loss for _, loss in _steps(model, optimizer, images, targets, first=0, last=steps, batch=batch, seed=seed)
    ]
    if losses and (diverged(float(losses[-1]), float(losses[0])) or not flatten_state(model).isfinite().all()):
        raise Diverged(f"pretrain: diverged at a learning rate of {lr:g} in {steps} steps: lower rate.")
    if not steps:
        _settle(model, images, seed)
    return model.eval()


def grid_points(
    settings: Mapping[str, Any], method: str, images: int, step_size: float
) -> tuple[list[float], list[int]]:
    """Return the learning rates and the numbers of steps at which a method's students are kept.

    ``none`` is the untrained student. The ``paper`` protocol has one point: ``epochs`` epochs at the set's step size.
    """
    if method == "none":
        return [0.0], [0]
    if settings["protocol"] == "paper":
        return [step_size], [settings["epochs"] * -(-images // settings["batch"])]
    return settings["rates"], settings["steps"]


def pretrain_grid(
    images: Images,
    targets: Tensor,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    rates: Sequence[float],
    steps: Sequence[int],
    seed: int,
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> dict[str, Tensor]:
    """Pre-train one student at every learning rate and keep its weights at every number of steps.

    Args:
        images: float32 [m,C,H,W], normalised, on the device to train on.
        targets: float32 [m,D], on the same device.
        student: its config entry.
        settings: ``batch``, ``momentum``, ``weight_decay``.
        rates: learning rates; every one starts from the same initial weights and sees the same order.
        steps: numbers of steps, ascending; 0 is the untrained student, its batch norms with the images' statistics.
        seed: with the settings it decides everything.
        state: what ``checkpoint`` was given before an interruption.
        report: called at each point of the grid with its loss.
        checkpoint: called after each step with a function that returns the state.

    Returns:
        ``snapshots`` float32 [R,S,P] (parameters and running statistics, ``networks.flat.flatten_state``), ``losses``
        float32 [R,S] of the batch before each, ``valid`` bool [R,S] (false where training diverged: zeros there),
        ``rates`` float64 [R], ``steps`` int64 [S], ``shape`` int64 [3] (channels, size, D).

    Raises:
        UserError: the last batch has one image and the student batch norm, which needs two.
    """
    grid = _Grid(images, targets, student, settings, rates, steps, seed)
    first = 0
    if state is not None:
        first = state["done"]["rate"]
        grid.snapshots, grid.losses, grid.valid = (state[name].clone() for name in ("snapshots", "losses", "valid"))
    for r in range(first, len(rates)):
        grid.train(r, state if r == first else None, report, checkpoint)
    return {
        "snapshots": grid.snapshots,
        "losses": grid.losses,
        "valid": grid.valid,
        "shape": torch.tensor(grid.shape),
        "rates": torch.tensor(rates, dtype=torch.float64),
        "steps": torch.tensor(steps, dtype=torch.int64),
    }


@dataclass
class _Grid:
    """Pre-training of one student at several learning rates; ``snapshots``, ``losses`` and ``valid`` so far."""

    images: Images
    targets: Tensor
    student: Spec
    settings: Mapping[str, Any]
    rates: Sequence[float]
    steps: Sequence[int]
    seed: int

    def __post_init__(self) -> None:
        self.shape = self.images.shape[1], self.images.shape[2], self.targets.shape[1]
        model = self._fresh()
        if self.steps[-1]:
            _check_last_batch(model, len(self.images), self.settings["batch"])
        self.snapshots = torch.zeros(len(self.rates), len(self.steps), len(flatten_state(model)))
        self.losses = torch.zeros(len(self.rates), len(self.steps))
        self.valid = torch.zeros(len(self.rates), len(self.steps), dtype=torch.bool)

    def _fresh(self) -> Student:
        return build_student(self.student, *self.shape, self.seed, "student weights").to(self.images.device)

    def train(self, r: int, state: Mapping[str, Any] | None, report: Report, checkpoint: Checkpoint) -> None:
        """Pre-train at the learning rate ``r``, from ``state`` if that is given; stop if it diverges."""
        model, settings = self._fresh(), self.settings
        momentum, weight_decay = settings["momentum"], settings["weight_decay"]
        optimizer = torch.optim.SGD(
            model.parameters(), self.rates[r], momentum=momentum, weight_decay=weight_decay, fused=True
        )
        first, last, start_loss = 0, self.steps[-1], 0.0
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first, start_loss = state["done"]["step"], state["done"]["start_loss"]
        elif self.steps[0] == 0:
            untrained = copy.deepcopy(model)
            _settle(untrained, self.images, self.seed)
            self.snapshots[r, 0], self.valid[r, 0] = flatten_state(untrained).cpu(), True
        order = {"first": first, "last": last, "batch": settings["batch"], "seed": self.seed}
        for step, loss in _steps(model, optimizer, self.images, self.targets, **order):
            if step == 1:
                start_loss = float(loss)
            if step in self.steps:
                flat, s = flatten_state(model), self.steps.index(step)
                if not torch.isfinite(flat).all() or diverged(float(loss), start_loss):
                    break
                self.snapshots[r, s], self.losses[r, s], self.valid[r, s] = flat.cpu(), loss.cpu(), True
                report(step, {f"loss/rate {self.rates[r]:g}": float(loss)})
            done = {"rate": r, "step": step, "start_loss": start_loss}
            checkpoint(partial(self._state, done, model, optimizer))

    def _state(self, done: dict[str, Any], model: Student, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "done": done,
            "snapshots": self.snapshots,
            "losses": self.losses,
            "valid": self.valid,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }


def snapshots(file: Artifact) -> Callable[[int, int], nn.Module | None]:
    """Read a file of ``pretrain_grid``: return a function from (rate index, step index) to the frozen backbone.

    The function returns None where pre-training diverged. Otherwise it replaces the weights of one module and returns it.
    """
    channels, size, dimension = file.tensor("shape").tolist()
    model = build_student(file.header["parameters"]["student"], channels, size, dimension, 0, "template")
    valid = file.tensor("valid")

    def restore(rate: int, step: int) -> nn.Module | None:
        if not valid[rate, step]:
            return None
        load_state(model, file.row("snapshots", rate)[step])
        return model.backbone.eval()

    return restore

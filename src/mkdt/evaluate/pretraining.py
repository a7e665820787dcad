"""Pre-training: a fresh student is regressed onto a set's targets, with a snapshot at every point of a grid."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mkdt.networks.divergence import diverged
from mkdt.networks.flat import flatten_state, load_state
from mkdt.networks.students import Student, build_student

SETTLE_IMAGES = 1024  # give the batch norms of an untrained student their statistics
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
    """SGD steps ``first`` to ``last - 1``; yields the number of steps done and the loss of the latest.

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
            loss = F.mse_loss(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield step + 1, loss.detach()


def _settle(model: Student, images: Images, seed: int) -> None:
    """Give the batch norms of an untrained student the statistics of (a sample of) its images.

    With those of a network that has seen nothing, 0 and 1, the features of a deep one vanish in eval mode: no
    pre-training would be no baseline.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    order = torch.randperm(len(images), generator=seeding.generator(seed, "statistics"))[:SETTLE_IMAGES]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
    model.train()
    with torch.no_grad():
        for rows in order.split(BATCH) if norms else ():
            if len(rows) > 1:
                model.backbone(images[rows.to(images.device)])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def pretrain(
    training_set: SyntheticSet,
    student: Spec,
    *,
    steps: int,
    rate: float | None = None,
    batch: int = BATCH,
    momentum: float = MOMENTUM,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Student:
    """Pre-train a fresh student on a synthetic set (paper, section 4.3).

    Args:
        training_set: from ``load_synthetic``.
        student: for example ``{"architecture": "convnet", "depth": 3, "width": 128, "norm": "instance"}``.
        steps: number of SGD steps.
        rate: learning rate; None takes the learned step size.
        batch, momentum, weight_decay: of SGD; the defaults are the paper's.
        seed: decides initial weights and order.

    Returns:
        the student in eval mode; ``student.backbone(images)`` gives features for a probe.
    """
    images, targets = training_set.images.to(device), training_set.targets.to(device)
    model = build_student(student, images.shape[1], images.shape[2], targets.shape[1], seed, "student weights")
    model.to(device)
    lr = float(training_set.step_size) if rate is None else rate
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    for _ in _steps(model, optimizer, images, targets, first=0, last=steps, batch=batch, seed=seed):
        pass
    if not steps:
        _settle(model, images, seed)
    return model.eval()


def grid(settings: Mapping[str, Any], method: str, images: int, step_size: float) -> tuple[list[float], list[int]]:
    """Learning rates and numbers of steps of a method's grid.

    ``none`` is the untrained student; the ``paper`` protocol has one point, ``epochs`` epochs at the set's step size.
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
    report: Callable[..., None] = lambda step, values: None,
    checkpoint: Callable[..., None] = lambda make: None,
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
        ``snapshots`` float32 [R,S,P] (parameters and running statistics, ``models.flatten_state``), ``losses`` float32
        [R,S] of the batch before each, ``valid`` bool [R,S] (false where training diverged: zeros there), ``rates``
        float64 [R], ``steps`` int64 [S], ``shape`` int64 [3] (channels, size, D).

    Raises:
        UserError: the last batch has one image and the student batch norm, which needs two.
    """
    channels, size = images.shape[1], images.shape[2]

    def fresh() -> Student:
        model = build_student(student, channels, size, targets.shape[1], seed, "student weights")
        return model.to(images.device)

    done: dict[str, Any] = {"rate": 0, "step": 0}
    model = fresh()
    # The config is checked for this; the size of a set from a file is known only here.
    if (
        steps[-1]
        and len(images) % settings["batch"] == 1
        and any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    ):
        raise UserError(
            f"pretrain.batch {settings['batch']} leaves a last batch of one image of a set of {len(images)}, from which "
            f"the batch norm of a {student['architecture']} takes no statistics: change pretrain.batch."
        )
    width = len(flatten_state(model))
    snapshots = torch.zeros(len(rates), len(steps), width)
    losses = torch.zeros(len(rates), len(steps))
    valid = torch.zeros(len(rates), len(steps), dtype=torch.bool)
    if state is not None:
        done = dict(state["done"])
        snapshots, losses, valid = (state[name].clone() for name in ("snapshots", "losses", "valid"))
    for r in range(done["rate"], len(rates)):
        model = fresh()
        optimizer = torch.optim.SGD(
            model.parameters(),
            rates[r],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            fused=True,
        )
        if state is not None and r == state["done"]["rate"] and state["done"]["step"]:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        else:
            done = {"rate": r, "step": 0}
        if not done["step"] and steps[0] == 0:
            untrained = copy.deepcopy(model)
            _settle(untrained, images, seed)
            snapshots[r, 0], valid[r, 0] = flatten_state(untrained).cpu(), True
        walk = _steps(
            model, optimizer, images, targets, first=done["step"], last=steps[-1], batch=settings["batch"], seed=seed
        )
        for step, loss in walk:
            if step == 1:
                done["start_loss"] = float(loss)
            if step in steps:
                s = steps.index(step)
                flat = flatten_state(model)
                if not torch.isfinite(flat).all() or diverged(float(loss), done["start_loss"]):
                    break
                snapshots[r, s], losses[r, s], valid[r, s] = flat.cpu(), loss.cpu(), True
                report(step, {f"loss/rate {rates[r]:g}": float(loss)})
            done = {"rate": r, "step": step, "start_loss": done["start_loss"]}
            checkpoint(
                lambda done=done, model=model, optimizer=optimizer: {
                    "seed": seed,
                    "done": done,
                    "snapshots": snapshots,
                    "losses": losses,
                    "valid": valid,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    return {
        "snapshots": snapshots,
        "losses": losses,
        "valid": valid,
        "shape": torch.tensor([channels, size, targets.shape[1]]),
        "rates": torch.tensor(rates, dtype=torch.float64),
        "steps": torch.tensor(steps, dtype=torch.int64),
    }


def snapshots(file: Artifact) -> Callable[[int, int], nn.Module | None]:
    """Read a file of ``pretrain_grid``: a function from (rate index, step index) to the frozen backbone.

    It returns None where pre-training diverged, and one and the same module otherwise, its weights replaced.
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

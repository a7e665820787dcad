"""Experts: small students trained by plain MSE to the targets; their weights over the epochs are the trajectories."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from mkdt import seeding
from mkdt.data.pixels import Images, in_batches
from mkdt.networks.backbones import Spec
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.flat import flatten
from mkdt.networks.students import build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

LOSS_BATCH = 1024


def train_expert(
    images: Images,
    targets: Tensor,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    seed: int,
    expert: int,
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> dict[str, Tensor]:
    """Train one student on all images and record its trajectory (paper, section 4.1).

    Args:
        images: float32 [n,C,H,W], normalised, on the device to train on.
        targets: float32 [n,D], the teacher's representations, on the same device.
        student: the student's config entry.
        settings: ``epochs``, ``batch``, ``lr``, ``momentum``, ``weight_decay``.
        seed, expert: with the settings they decide every weight, whichever job asks.
        state, report, checkpoint: as for ``record_trajectory``.

    Returns:
        what ``record_trajectory`` does, and ``losses`` float32 [n], each image's MSE after the first epoch.

    Raises:
        Diverged: loss or weights are not finite, or an epoch ends at ``divergence.EXPLODED`` times the first step's loss.
    """
    channels, size = images.shape[1], images.shape[2]
    model = build_student(student, channels, size, targets.shape[1], seed, "expert weights", expert).to(images.device)
    recorded = record_trajectory(
        model,
        lambda rows, step: F.mse_loss(model(images[rows]), targets[rows]),
        len(images),
        settings,
        seed=seed,
        expert=expert,
        state=state,
        report=report,
        checkpoint=checkpoint,
    )
    if not settings["epochs"]:
        return recorded | {"losses": torch.empty(0)}
    vector_to_parameters(recorded["trajectory"][1].to(images.device), model.parameters())
    model.eval()
    pairs = zip(images.split(LOSS_BATCH), targets.split(LOSS_BATCH), strict=True)
    return recorded | {"losses": torch.cat([_losses(model, batch, wanted) for batch, wanted in pairs])}


def record_trajectory(
    model: nn.Module,
    loss_of: Callable[[Tensor, int], Tensor],
    count: int,
    settings: Mapping[str, Any],
    *,
    seed: int,
    expert: int,
    key: str = "experts.lr",
    whole_batches: bool = False,
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> dict[str, Tensor]:
    """Train a model by SGD and keep its weights after each epoch.

    Args:
        model: with its initial weights, on the device to train on; no running statistics.
        loss_of: the model's loss on rows (int64, on that device) at a step, counted from 0.
        count: number of rows.
        settings: ``epochs``, ``batch``, ``lr``, ``momentum``, ``weight_decay``.
        seed, expert: they decide the order of the rows.
        key: of the config, that a loss which is not finite asks to lower.
        whole_batches: whether a last smaller batch is left out.
        state: what ``checkpoint`` was given before an interruption.
        report: called with the epoch and its mean loss.
        checkpoint: called after each epoch with a function that returns the state.

    Returns:
        ``trajectory`` float32 [epochs+1,P], the weights at the start and after each epoch, copied; ``epoch_losses``
        float32 [epochs], the mean training loss of each epoch.

    Raises:
        Diverged: loss or weights are not finite, or an epoch ends at ``divergence.EXPLODED`` times the first step's loss.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(), settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    trajectory, start_loss = [flatten(model).cpu()], 0.0
    epoch_losses = torch.zeros(settings["epochs"])
    first, batch = 0, min(settings["batch"], count)
    per_epoch = count // batch if whole_batches else -(-count // batch)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, epoch_losses = state["epoch"], state["epoch_losses"].clone()
        trajectory, start_loss = list(state["trajectory"]), state["start_loss"]

    def current_state(epoch: int) -> dict[str, Any]:
        return {
            "expert": expert,
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "trajectory": torch.stack(trajectory),
            "epoch_losses": epoch_losses,
            "start_loss": start_loss,
        }

    for epoch in range(first, settings["epochs"]):
        total, seen = torch.zeros((), device=device), 0
        stream = seeding.generator(seed, "expert order", expert, epoch)
        for i, rows in enumerate(islice(seeding.batches(count, batch, stream), per_epoch)):
            loss = loss_of(rows.to(device), epoch * per_epoch + i)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
            seen += len(rows)
            start_loss = start_loss or float(loss.detach())
        mean = epoch_losses[epoch] = total.cpu() / seen
        trajectory.append(flatten(model).cpu())
        finite = math.isfinite(float(mean)) and bool(trajectory[-1].isfinite().all())
        if not finite or diverged(float(loss.detach()), start_loss):
            raise Diverged(
                f"expert {expert}: diverged in epoch {epoch + 1}, with a loss of {float(loss.detach()):.3g} "
                f"({start_loss:.3g} at the start): lower {key} ({settings['lr']})."
            )
        report(epoch + 1, {f"loss/{expert}": float(mean)})
        checkpoint(partial(current_state, epoch + 1))
    return {"trajectory": torch.stack(trajectory), "epoch_losses": epoch_losses}


def _losses(model: torch.nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """MSE of each image, float32 [n]."""
    return in_batches(lambda batch: (model(batch) - targets).square().mean(1), [images])

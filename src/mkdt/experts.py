"""Experts: small students trained by plain MSE to the targets; their weights over the epochs are the trajectories."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data import Images, in_batches
from mkdt.errors import UserError
from mkdt.models import Spec, build_student, flatten

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
    report: Callable[..., None] = lambda epoch, values: None,
    checkpoint: Callable[..., None] = lambda make: None,
) -> dict[str, Tensor]:
    """Train one student on all images and record its trajectory (paper, section 4.1).

    Args:
        images: float32 [n,C,H,W], normalised, on the device to train on.
        targets: float32 [n,D], the teacher's representations, on the same device.
        student: the student's config entry.
        settings: ``epochs``, ``batch``, ``lr``, ``momentum``, ``weight_decay``.
        seed, expert: with the settings they decide every weight, whichever job asks.
        state: what ``checkpoint`` was given before an interruption.
        report: called with the epoch and its mean loss.
        checkpoint: called after each epoch with a function that returns the state.

    Returns:
        ``trajectory`` float32 [epochs+1,P], the weights at the start and after each epoch, copied;
        ``losses`` float32 [n], each image's MSE after the first epoch; ``epoch_losses`` float32 [epochs], the mean
        training loss of each epoch.

    Raises:
        UserError: the loss is no longer finite.
    """
    channels, size = images.shape[1], images.shape[2]
    model = build_student(student, channels, size, targets.shape[1], seed, "expert weights", expert).to(images.device)
    optimizer = torch.optim.SGD(
        model.parameters(), settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    trajectory = [flatten(model).cpu()]
    losses, epoch_losses = torch.empty(0), torch.zeros(settings["epochs"])
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses, epoch_losses = state["epoch"], state["losses"], state["epoch_losses"].clone()
        trajectory = list(state["trajectory"])
    for epoch in range(first, settings["epochs"]):
        total = torch.zeros((), device=images.device)
        stream = seeding.generator(seed, "expert order", expert, epoch)
        for rows in seeding.batches(len(images), settings["batch"], stream):
            rows = rows.to(images.device)
            loss = F.mse_loss(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        mean = epoch_losses[epoch] = total.cpu() / len(images)
        if not math.isfinite(float(mean)):
            raise UserError(
                f"expert {expert}: the loss is not finite in epoch {epoch + 1}: lower experts.lr ({settings['lr']})."
            )
        trajectory.append(flatten(model).cpu())
        if epoch == 0:
            model.eval()
            pairs = zip(images.split(LOSS_BATCH), targets.split(LOSS_BATCH), strict=True)
            losses = torch.cat([_losses(model, batch, wanted) for batch, wanted in pairs])
            model.train()
        report(epoch + 1, {f"loss/{expert}": float(mean)})
        checkpoint(
            lambda epoch=epoch, losses=losses: {
                "expert": expert,
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "trajectory": torch.stack(trajectory),
                "losses": losses,
                "epoch_losses": epoch_losses,
            }
        )
    return {"trajectory": torch.stack(trajectory), "losses": losses, "epoch_losses": epoch_losses}


def _losses(model: torch.nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """MSE of each image, float32 [n]."""
    return in_batches(lambda batch: (model(batch) - targets).square().mean(1), [images])

"""Experts: small students trained by MSE to the targets. Their weights after each epoch are the trajectories."""

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
from mkdt.networks.batching import images_at_once
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.flat import flatten
from mkdt.networks.precision import forward
from mkdt.networks.students import build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report


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
        seed, expert: with the settings they decide all weights, whichever job trains the expert.
        state, report, checkpoint: as for ``record_trajectory``.

    Returns:
        what ``record_trajectory`` returns, and ``losses`` float32 [n], the MSE of each image after the first epoch.

    Raises:
        Diverged: loss or weights are not finite, or an epoch ends at ``divergence.EXPLODED`` times the first loss.
    """
    channels, size = images.shape[1], images.shape[2]
    model = build_student(student, channels, size, targets.shape[1], seed, "expert weights", expert).to(images.device)
    recorded = record_trajectory(
        model,
        lambda rows, step: F.mse_loss(forward(model, images[rows]), targets[rows]),
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
    batch = images_at_once(images.shape, images.device)
    pairs = zip(images.split(batch), targets.split(batch), strict=True)
    return recorded | {"losses": torch.cat([_losses(model, part, wanted) for part, wanted in pairs])}


def _losses(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Compute the MSE of each image, float32 [n] on the CPU."""
    return in_batches(lambda batch: (forward(model, batch) - targets).square().mean(1), [images])


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
    """Train a model by SGD and record its weights after each epoch.

    Args:
        model: with its initial weights, on the device to train on; without running statistics.
        loss_of: the model's loss on rows (int64, on that device) at a step, counted from 0.
        count: number of rows.
        settings: ``epochs``, ``batch``, ``lr``, ``momentum``, ``weight_decay``.
        seed, expert: they decide the order of the rows.
        key: the config key that a message about divergence names.
        whole_batches: whether a last smaller batch is left out.
        state: a state that was given to ``checkpoint``, to continue from.
        report: called after each epoch with its mean loss.
        checkpoint: called after each epoch.

    Returns:
        ``trajectory`` float32 [epochs+1,P], copies of the weights at the start and after each epoch; ``epoch_losses``
        float32 [epochs], the mean training loss of each epoch.

    Raises:
        Diverged: loss or weights are not finite, or an epoch ends at ``divergence.EXPLODED`` times the first loss.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(), settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    trajectory, epoch_losses = [flatten(model).cpu()], torch.zeros(settings["epochs"])
    first, start_loss = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        trajectory, epoch_losses = list(state["trajectory"]), state["epoch_losses"].clone()
        first, start_loss = state["epoch"], state["start_loss"]

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

    batch = min(settings["batch"], count)
    per_epoch = count // batch if whole_batches else -(-count // batch)
    for epoch in range(first, settings["epochs"]):
        stream = seeding.generator(seed, "expert order", expert, epoch)
        batches = [rows.to(device) for rows in islice(seeding.batches(count, batch, stream), per_epoch)]
        mean, last, start_loss = _train_epoch(optimizer, loss_of, batches, epoch * per_epoch, start_loss)
        epoch_losses[epoch] = mean
        trajectory.append(flatten(model).cpu())
        if not (math.isfinite(mean) and bool(trajectory[-1].isfinite().all())) or diverged(last, start_loss):
            raise Diverged(
                f"expert {expert}: diverged in epoch {epoch + 1}, with a loss of {last:.3g} ({start_loss:.3g} at the "
                f"start): lower {key} ({settings['lr']})."
            )
        report(epoch + 1, {f"loss/{expert}": mean})
        checkpoint(partial(current_state, epoch + 1))
    return {"trajectory": torch.stack(trajectory), "epoch_losses": epoch_losses}


def _train_epoch(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, int], Tensor],
    batches: list[Tensor],
    step: int,
    start_loss: float,
) -> tuple[float, float, float]:
    """Take one step for each batch, the first of which is number ``step``.

    Returns:
        the mean loss over rows, the loss of the last batch, and ``start_loss`` (if it is 0, the first loss that is not).
    """
    total = torch.zeros((), device=batches[0].device)
    for i, rows in enumerate(batches):
        loss = loss_of(rows, step + i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
        start_loss = start_loss or float(loss.detach())
    mean = total.cpu() / sum(len(rows) for rows in batches)
    return float(mean), float(loss.detach()), start_loss

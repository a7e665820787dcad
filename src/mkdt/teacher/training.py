"""The SSL teacher: trained by one of the losses of `ssl`, then asked once for every image's representation."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import evenly_spaced_rows
from mkdt.networks.backbones import build_backbone
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.students import Projector
from mkdt.teacher.distributed import ALONE, Processes
from mkdt.teacher.encoding import represent
from mkdt.teacher.ssl import LOSSES, build_views

Report = Callable[..., None]


Checkpoint = Callable[[Callable[[], dict[str, Any]]], None]


MONITOR_NEIGHBOURS = 5  # k of the k-NN that watches the representation


class Lars(torch.optim.SGD):
    """SGD with layer-wise adaptive rates (You et al., 2017) on weights; biases and norms take the plain rate, undecayed."""

    TRUST = 0.001  # Barlow Twins' and SimCLR's published trust coefficient

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.ndim < 2:
                    continue
                size, update = parameter.norm(), (parameter.grad + group["weight_decay"] * parameter).norm()
                if size > 0 and update > 0:
                    # Weight decay is added inside SGD: scale both parts by scaling the gradient around it.
                    trust = self.TRUST * size / update
                    decay = group["weight_decay"] * parameter
                    parameter.grad.copy_(trust * (parameter.grad + decay) - decay)
        super().step(closure)


def _optimizer(name: str, modules: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    parameters = list(modules.parameters())
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Lars(groups, lr, momentum=0.9)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero; a factor in (0, 1]."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_teacher(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    validation: tuple[Tensor, Tensor, Tensor] | None = None,
    monitor_every: int | None = None,
    state: dict[str, Any] | None = None,
    report: Report = lambda step, values: None,
    checkpoint: Checkpoint = lambda make: None,
    processes: Processes = ALONE,
) -> nn.Module:
    """Train a backbone by SSL on unlabelled images.

    Several processes that call it at once (``mkdt.teacher.distributed``) do together what one does: each has a share of every
    batch, and the loss and batch norm see the whole of it.

    Args:
        images: uint8 [n,C,H,W].
        mean, std: float32 [C], for normalisation after augmentation.
        settings: of the rule ``teacher`` (``config.settings``).
        seed: with the settings it decides every weight.
        device: where to train.
        validation: (labels of ``images``, validation images uint8, validation labels) for a k-NN accuracy at
            intervals; it is only watched, nothing is chosen by it.
        monitor_every: epochs between two looks at the representation; None looks at the end alone. It changes no weight.
        state: what ``checkpoint`` was given before an interruption.
        report: called with the epoch and its values: ``loss``, ``representation_std`` (0 when collapsed),
            ``off_diagonal`` (mean absolute correlation of two dimensions), ``lr`` and ``knn_accuracy`` (per cent).
        checkpoint: called after each epoch with a function that returns the state.
        processes: those that share the batches; ``batch`` must be divisible by their number. All but rank 0 do
            without ``validation``, ``report`` and ``checkpoint``.

    Returns:
        the backbone, in eval mode.

    Raises:
        Diverged: loss or weights are not finite, or an epoch's loss is ``divergence.EXPLODED`` times the first step's.
    """
    channels, size = images.shape[1], images.shape[2]
    with seeding.global_stream(seed, "teacher weights"):
        backbone = build_backbone(settings["backbone"], channels, size)
        model = nn.Sequential(backbone, Projector([backbone.dimension, *settings["projector"]]))  # type: ignore[list-item]
    model.to(device).train()
    trained = processes.replicate(model)
    views = build_views(settings["augment"], channels, size).to(device)
    method, options = settings["method"], settings["loss"]
    optimizer = _optimizer(settings["optimizer"], model, settings["lr"], settings["weight_decay"])
    images, mean, std = images.to(device), mean.to(device), std.to(device)
    # A smaller last batch would change the scale of Barlow Twins' statistics, so it is dropped, as is usual.
    batch = min(settings["batch"], len(images))
    per_epoch = len(images) // batch
    epochs, warmup = settings["epochs"], settings["warmup_epochs"] * per_epoch
    first, start_loss = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, start_loss = state["epoch"], state["start_loss"]

    for epoch in range(first, epochs):
        losses = []
        order = seeding.batches(len(images), batch, seeding.generator(seed, "teacher order", epoch))
        for i, rows in enumerate(_full(order, batch)):
            step = epoch * per_epoch + i
            lr = settings["lr"] * _schedule(step, epochs * per_epoch, warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            pixels = images[processes.share(rows).to(device)].float() / 255
            with torch.no_grad(), seeding.global_stream(seed, "teacher views", step):
                pair = torch.cat([views(pixels, batch, processes.rank * len(pixels)) for _ in range(2)])
                pair = (pair - mean[:, None, None]) / std[:, None, None]
            projections = trained(pair).chunk(2)
            loss = LOSSES[method](*map(processes.gather, projections), **options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values = {"loss": float(torch.stack(losses).mean()), "lr": lr}
        start_loss = start_loss or float(losses[0])
        finite = all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
        if not finite or diverged(values["loss"], start_loss):
            raise Diverged(
                f"teacher: diverged in epoch {epoch + 1}, with a loss of {values['loss']:.3g} ({start_loss:.3g} at the start): "
                f"lower teacher.lr ({settings['lr']})."
            )
        if processes.rank == 0 and (epoch + 1 == epochs or (monitor_every and (epoch + 1) % monitor_every == 0)):
            backbone.eval()
            values |= _monitor(backbone, images, mean, std, validation, device)
            backbone.train()
        report(epoch + 1, values)
        checkpoint(partial(_state, model, optimizer, epoch + 1, start_loss))
    return backbone.eval()


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, start_loss: float) -> dict[str, Any]:
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return states | {"epoch": epoch, "start_loss": start_loss}


def _full(order: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    return (rows for rows in order if len(rows) == batch)


def _monitor(
    backbone: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    validation: tuple[Tensor, Tensor, Tensor] | None,
    device: torch.device,
) -> dict[str, float]:
    """How the representation stands: its spread, its redundancy and a k-NN accuracy on the validation split."""
    sample = 5000  # enough for stable figures, and a bound on their cost
    rows = evenly_spaced_rows(torch.arange(len(images)), sample)  # sets that are published class by class keep all their classes
    features = represent(backbone, images[rows], mean, std, device)
    correlation = torch.corrcoef(features.T).nan_to_num()
    off = correlation - torch.diag(correlation.diagonal())
    values = {
        "representation_std": float(features.std(0).mean()),
        "off_diagonal": float(off.abs().sum() / max(1, off.numel() - len(off))),
    }
    if validation is not None:
        from sklearn.neighbors import KNeighborsClassifier

        labels, held_out, held_out_labels = validation
        knn = KNeighborsClassifier(MONITOR_NEIGHBOURS).fit(features.numpy(), labels[rows].numpy())
        rows = evenly_spaced_rows(torch.arange(len(held_out)), sample)
        guesses = represent(backbone, held_out[rows], mean, std, device).numpy()
        values["knn_accuracy"] = 100 * float(knn.score(guesses, held_out_labels[rows].numpy()))
    return values

"""Train the teacher: a backbone trained by self-supervised learning with one of the losses in `ssl`."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.networks.backbones import build_backbone
from mkdt.networks.divergence import Diverged, diverged
from mkdt.networks.precision import forward
from mkdt.networks.students import Projector
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report
from mkdt.teacher.distributed import ALONE, Processes
from mkdt.teacher.monitoring import representation_quality
from mkdt.teacher.optimizers import build_optimizer, warmup_cosine
from mkdt.teacher.ssl import LOSSES, build_views

OFFER_SECONDS = 10.0  # between two calls of `checkpoint` within an epoch


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
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
    processes: Processes = ALONE,
) -> nn.Module:
    """Train a backbone by SSL on unlabelled images.

    Several processes may call it together (``mkdt.teacher.distributed``). Each computes a share of every batch; loss
    and batch norm use the whole batch.

    Args:
        images: uint8 [n,C,H,W].
        mean, std: float32 [C], for normalisation after augmentation.
        settings: settings of the stage ``teacher`` (``config.slices.teacher``).
        seed: determines every weight together with the settings.
        device: device to train on.
        validation: labels of ``images`` int64 [n], validation images uint8 and their labels, for a k-NN accuracy that
            is only reported; nothing is selected by it.
        monitor_every: epochs between two measurements of the representation; None measures after the last epoch only.
            It changes no weight.
        state: the state given to ``checkpoint`` before an interruption.
        report: called after each epoch with ``loss`` and ``lr``, and when the representation is measured with the
            values of ``monitoring.representation_quality``.
        checkpoint: called after each epoch, and every ``OFFER_SECONDS`` within it, with a function that returns the state.
            Within an epoch it is called only where loss and weights have not diverged.
        processes: the processes that share the batches; their number must divide ``batch``. Ranks other than 0 are
            called without ``validation``, ``report`` and ``checkpoint``.

    Returns:
        the backbone, in eval mode.

    Raises:
        Diverged: loss or weights are not finite, or the loss of an epoch is ``divergence.EXPLODED`` times that of the
            first step.
    """
    training = _Training(images, mean, std, settings, seed, device, processes)
    epochs, first = settings["epochs"], 0
    if state is not None:
        first = training.load(state)
    for epoch in range(first, epochs):
        values = training.run_epoch(epoch, checkpoint)
        monitored = epoch + 1 == epochs or bool(monitor_every and (epoch + 1) % monitor_every == 0)
        if processes.rank == 0 and monitored:
            values |= training.measure(validation)
        report(epoch + 1, values)
        checkpoint(partial(training.state, epoch + 1))
    return training.backbone.eval()


class _Training:
    """Model, optimizer and images of one training on one device."""

    def __init__(
        self,
        images: Tensor,
        mean: Tensor,
        std: Tensor,
        settings: Mapping[str, Any],
        seed: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.settings, self.seed, self.device, self.processes = settings, seed, device, processes
        channels, size = images.shape[1], images.shape[2]
        with seeding.global_stream(seed, "teacher weights"):
            self.backbone = build_backbone(settings["backbone"], channels, size)
            projector = Projector([self.backbone.dimension, *settings["projector"]])  # type: ignore[list-item]
            self.model = nn.Sequential(self.backbone, projector)
        self.model.to(device).train()
        self.trained = processes.replicate(self.model)
        self.views = build_views(settings["augment"], channels, size).to(device)
        self.optimizer = build_optimizer(settings["optimizer"], self.model, settings["lr"], settings["weight_decay"])
        self.images, self.mean, self.std = images.to(device), mean.to(device), std.to(device)
        self.batch = min(settings["batch"], len(images))
        self.start_loss = 0.0
        self.losses: list[Tensor] = []  # of the steps of the current epoch

    def state(self, epoch: int) -> dict[str, Any]:
        """State to resume from after ``epoch`` epochs and the steps of ``losses``."""
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        return states | {"epoch": epoch, "losses": losses, "start_loss": self.start_loss}

    def load(self, state: Mapping[str, Any]) -> int:
        """Load a state and return its number of finished epochs."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.start_loss = state["start_loss"]
        self.losses = list(state["losses"].to(self.device))
        return int(state["epoch"])

    def run_epoch(self, epoch: int, checkpoint: Checkpoint) -> dict[str, float]:
        """Train the rest of one epoch and return its mean loss and its last learning rate.

        Raises:
            Diverged: as ``train_teacher``.
        """
        per_epoch = len(self.images) // self.batch
        steps, warmup = self.settings["epochs"] * per_epoch, self.settings["warmup_epochs"] * per_epoch
        order = seeding.batches(len(self.images), self.batch, seeding.generator(self.seed, "teacher order", epoch))
        # A smaller last batch would change the scale of the statistics of Barlow Twins, so it is dropped, as is usual.
        full_batches = [rows for rows in order if len(rows) == self.batch]
        done, offered = len(self.losses), time.monotonic()
        for step, rows in enumerate(full_batches[done:], epoch * per_epoch + done):
            if time.monotonic() - offered >= OFFER_SECONDS:
                offered = time.monotonic()
                # Whether an offer comes depends on the clock, so a state that has diverged is passed over, not raised.
                if self.losses and not self._diverged(self._mean_loss()):
                    checkpoint(partial(self.state, epoch))
            lr = self.settings["lr"] * warmup_cosine(step, steps, warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.losses.append(self._step(step, rows))
        loss = self._mean_loss()
        if self._diverged(loss):
            raise Diverged(
                f"teacher: diverged in epoch {epoch + 1}, with a loss of {loss:.3g} ({self.start_loss:.3g} at the start): "
                f"lower teacher.lr ({self.settings['lr']})."
            )
        self.losses = []
        return {"loss": loss, "lr": lr}

    def _mean_loss(self) -> float:
        return float(torch.stack(self.losses).mean())

    def _diverged(self, loss: float) -> bool:
        self.start_loss = self.start_loss or float(self.losses[0])
        finite = all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values())
        return not finite or diverged(loss, self.start_loss)

    def _step(self, step: int, rows: Tensor) -> Tensor:
        """Update the weights with the batch ``rows`` and return its loss."""
        pixels = self.images[self.processes.share(rows).to(self.device)].float() / 255
        with torch.no_grad(), seeding.global_stream(self.seed, "teacher views", step):
            first = self.processes.rank * len(pixels)
            pair = torch.cat([self.views(pixels, self.batch, first) for _ in range(2)])
            pair = (pair - self.mean[:, None, None]) / self.std[:, None, None]
        projections = forward(self.trained, pair).chunk(2)
        loss = LOSSES[self.settings["method"]](*map(self.processes.gather, projections), **self.settings["loss"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def measure(self, validation: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, float]:
        """Measure the representation in eval mode, then return to training mode."""
        self.backbone.eval()
        values = representation_quality(self.backbone, self.images, self.mean, self.std, validation, self.device)
        self.backbone.train()
        return values

"""Hypergradients of a set that is learned: its views, and the graphs that ``retain`` and ``compile`` ask for."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.distill.compiled_step import CompiledStep
from mkdt.distill.graph_memory import choose_retain
from mkdt.distill.hypergradient import Hypergradient, OuterLoss, unroll
from mkdt.networks.flat import LossFn


def inner_batches(size: int, batch: int, stream: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of row indices without end; every row is used once before any is used again."""
    while True:
        yield from seeding.batches(size, batch, stream)


class Unroller:
    """The gradient of one iteration.

    Args:
        loss_fn: the loss of the student's steps, as for ``unroll``.
        settings: ``retain``, ``compile``, ``learn_targets`` and ``momentum``.
        retain: the setting ``retain``, or the number that an earlier job chose for ``auto``.
    """

    def __init__(self, loss_fn: LossFn, settings: Mapping[str, Any], retain: int | str) -> None:
        self._loss_fn, self._settings, self.retain = loss_fn, settings, retain
        self._compiled = CompiledStep(loss_fn, settings["learn_targets"]) if settings["compile"] else None
        self.chooses = settings["retain"] == "auto" and self._compiled is None

    def gradient(
        self,
        theta0: Tensor,
        outer: Mapping[int, OuterLoss],
        images: Tensor,
        targets: Tensor,
        step_size: Tensor,
        rows: list[Tensor],
        decode: Callable[[Tensor], Tensor],
        velocity: Tensor | None = None,
    ) -> Hypergradient:
        """Compute the hypergradient of steps on views of the images.

        Args:
            theta0, outer, velocity: as for ``unroll``.
            images: float [m,C,H,W].
            targets: float [n,D], of the views.
            step_size: float [].
            rows: int64, the rows of the views in each step.
            decode: makes the n views of the images. They do not depend on the student's weights, so they are made once,
                and their gradient is pulled back to the images at the end.
        """
        leaf = images.detach().requires_grad_()
        seen = decode(leaf)
        views = seen.detach()
        learn_targets = self._settings["learn_targets"]
        # Choose once: kept and rebuilt graphs differ in the last bits, so a resumed run keeps the number.
        if self.retain == "auto" and self._compiled is None:
            self.retain = choose_retain(self._loss_fn, theta0, views, targets, rows, learn_targets)
        gradient = unroll(
            self._loss_fn,
            theta0,
            outer,
            views,
            targets,
            step_size,
            rows,
            retain=0 if self._compiled else int(self.retain),
            learn_targets=learn_targets,
            momentum=self._settings["momentum"],
            velocity=velocity,
            compiled=self._compiled,
        )
        if seen is leaf:
            return gradient
        (by_images,) = torch.autograd.grad(seen, leaf, gradient.images)
        return gradient._replace(images=by_images)

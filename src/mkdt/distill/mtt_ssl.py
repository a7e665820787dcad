"""Distillation method ``mtt_ssl``: match the trajectories of self-supervised training itself.

This is supervised trajectory matching (Cazenavette et al., CVPR 2022) with an SSL loss in place of the supervised one.
The paper shows that it fails (section 3), which is why MKDT uses a teacher. The experts are students with a projector,
trained by the teacher's SSL loss on random views. A student takes N steps of the same loss on views of the synthetic
images, and is compared with an expert M epochs later.

The views of a step do not depend on the weights. So the views of all N steps are drawn first, the matching loss is
differentiated by the views, and that gradient is pulled back through the augmentations once: the hypergradient is
exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import Normalised
from mkdt.distill.experts import record_trajectory
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.trajectory_matching import ViewsFn, match_experts
from mkdt.networks.backbones import Spec, build_backbone
from mkdt.networks.flat import LossFn, flat_forward
from mkdt.networks.precision import forward
from mkdt.networks.students import Projector
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report
from mkdt.teacher.ssl import LOSSES, Views, build_views


def build_ssl_student(
    student: Spec, channels: int, size: int, projector: list[int], seed: int, purpose: str, *who: int
) -> nn.Module:
    """Build a student with an SSL head, without running statistics; (seed, purpose, who) decide its weights."""
    with seeding.global_stream(seed, purpose, *who):
        backbone = build_backbone(student, channels, size)
        widths = [int(backbone.dimension), *projector]  # type: ignore[arg-type]
        return nn.Sequential(backbone, Projector(widths, running_statistics=False))


def draw_views(images: Tensor, views: Views, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Draw two random views of each image, differentiable by the images.

    kornia draws from torch's global generators: wrap calls in ``seeding.global_stream``.

    Args:
        images: float [n,C,H,W], normalised with ``mean`` and ``std`` [C], as the views are.
        views: the augmentation of pixels in [0, 1].
    """
    mean, std = mean[:, None, None], std[:, None, None]
    pixels = images * std + mean
    first, second = ((views(pixels) - mean) / std for _ in range(2))
    return first, second


def flat_ssl(module: nn.Module, settings: Mapping[str, Any]) -> LossFn:
    """Return ``loss(theta, views, _)``, the SSL loss of views [2n,C,H,W]: first views, then second views."""
    apply, loss, options = flat_forward(module), LOSSES[settings["method"]], settings["loss"]

    def of_views(theta: Tensor, views: Tensor, _: Tensor) -> Tensor:
        return loss(*apply(theta, views).chunk(2), **options)

    return of_views


def mtt_ssl_expert(
    source: Source,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    seed: int,
    expert: int,
    device: torch.device,
    state: dict[str, Any] | None = None,
    report: Report = no_report,
    checkpoint: Checkpoint = no_checkpoint,
) -> dict[str, Tensor]:
    """Train one student by SSL on all images and record its trajectory, projector included.

    Args:
        source: its images, and the mean and std of these images.
        student: the config entry of the student.
        settings: ``method`` and its ``loss`` options, ``augment``, ``projector``; ``epochs``, ``batch``, ``lr``,
            ``momentum``, ``weight_decay``. A last smaller batch is left out, as for the teacher.
        seed, expert: with the settings they decide all weights and views.
        device: where to compute.
        state, report, checkpoint: as for ``record_trajectory``.

    Returns:
        ``trajectory`` float32 [epochs+1,P] and ``epoch_losses`` float32 [epochs].

    Raises:
        Diverged: the loss is not finite, or ``divergence.EXPLODED`` times the first one.
    """
    images = Normalised(source.images, source.mean, source.std).to(device)
    channels, size = images.shape[1], images.shape[2]
    model = build_ssl_student(student, channels, size, settings["projector"], seed, "ssl expert weights", expert)
    model.to(device)
    views = build_views(settings["augment"], channels, size).to(device)
    mean, std = source.mean.to(device), source.std.to(device)
    loss, options = LOSSES[settings["method"]], settings["loss"]

    def loss_of(rows: Tensor, step: int) -> Tensor:
        with torch.no_grad(), seeding.global_stream(seed, "ssl expert views", expert, step):
            pair = torch.cat(draw_views(images[rows], views, mean, std))
        return loss(*forward(model, pair).chunk(2), **options)

    return record_trajectory(
        model,
        loss_of,
        len(images),
        settings,
        seed=seed,
        expert=expert,
        key="mtt_ssl.expert_lr",
        whole_batches=True,
        state=state,
        report=report,
        checkpoint=checkpoint,
    )


def views_of_steps(
    settings: Mapping[str, Any], initial: SyntheticSet, device: torch.device, seed: int, distill_seed: int
) -> ViewsFn:
    """Return ``views`` for ``match_experts``: two views of the images of each step, drawn again in each iteration."""
    augment = build_views(settings["augment"], initial.images.shape[1], initial.images.shape[2]).to(device)
    mean, std = initial.mean.to(device), initial.std.to(device)

    def views(rows: list[Tensor], iteration: int) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        sizes = [len(part) for part in rows]

        def decode(images: Tensor) -> Tensor:
            with seeding.global_stream(seed, "mtt_ssl views", distill_seed, iteration):
                pair = draw_views(images[torch.cat(rows)], augment, mean, std)
            halves = zip(*(half.split(sizes) for half in pair), strict=True)
            return torch.cat([torch.cat(half) for half in halves])

        blocks = torch.arange(2 * sum(sizes), device=device).split([2 * size for size in sizes])
        return decode, list(blocks)

    return views


def mtt_ssl_set(
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
    """Match the trajectories of experts that were trained by SSL.

    Args:
        initial: the subset that the synthetic images start from.
        source: its experts, files with the ``trajectory`` of ``mtt_ssl_expert``.
        student: the config entry of the experts' network.
        settings: as for ``match_experts``, and ``method``, ``loss``, ``augment`` and ``projector`` of the experts.
        seed, distill_seed, device, state, report, checkpoint: as for ``match_experts``.

    Returns:
        the set and its history, as ``match_experts``. Targets and step size stay those of ``initial``: SSL gives the
        images no targets, and pre-training does not use the loss that the step size is for.

    Raises:
        Diverged, UserError: as ``match_experts``.
    """
    channels, size = initial.images.shape[1], initial.images.shape[2]
    template = build_ssl_student(student, channels, size, settings["projector"], seed, "template").to(device)
    final, history = match_experts(
        initial,
        source.experts,
        flat_ssl(template, settings),
        settings,
        seed=seed,
        distill_seed=distill_seed,
        device=device,
        views=views_of_steps(settings, initial, device, seed, distill_seed),
        key="mtt_ssl.image_lr",
        state=state,
        report=report,
        checkpoint=checkpoint,
    )
    return replace(final, step_size=initial.step_size), history

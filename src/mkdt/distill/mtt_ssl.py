"""Distillation method ``mtt_ssl``: the trajectories of self-supervised training itself are matched.

What the paper shows to fail (section 3), and why MKDT goes by way of a teacher: supervised trajectory matching (Cazenavette
et al., CVPR 2022) with an SSL loss in the place of the supervised one. The experts are students with a projector that
train by the teacher's SSL loss on random views; a student that takes N steps of the same loss on views of the synthetic
images is to arrive where an expert is M epochs later.

The views of a step do not depend on the weights. So those of all N steps are drawn first, the matching is differentiated by
them, and that is pulled back through the augmentations to the images once: the hypergradient stays exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import Images
from mkdt.distill.experts import record_trajectory
from mkdt.distill.mkdt import distill
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.networks.backbones import Spec, build_backbone
from mkdt.networks.flat import LossFn, flat_forward
from mkdt.networks.students import Projector
from mkdt.teacher.ssl import LOSSES, Views, build_views


def build_ssl_student(
    student: Spec, channels: int, size: int, projector: list[int], seed: int, purpose: str, *who: int
) -> nn.Module:
    """A student's backbone and an SSL head, without running statistics; weights by (seed, purpose, who) alone."""
    with seeding.global_stream(seed, purpose, *who):
        backbone = build_backbone(student, channels, size)
        widths = [int(backbone.dimension), *projector]  # type: ignore[arg-type]
        return nn.Sequential(backbone, Projector(widths, running_statistics=False))


def draw_views(images: Tensor, views: Views, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Two random views of each image, float [n,C,H,W] normalised, differentiable by ``images`` of the same form.

    kornia draws from torch's global generators: wrap calls in ``seeding.global_stream``.
    """
    mean, std = mean[:, None, None], std[:, None, None]
    pixels = images * std + mean
    first, second = ((views(pixels) - mean) / std for _ in range(2))
    return first, second


def flat_ssl(module: nn.Module, settings: Mapping[str, Any]) -> LossFn:
    """``loss(theta, views, _)``: the SSL loss of first and second views [2n,C,H,W], one half after the other."""
    forward, loss, options = flat_forward(module), LOSSES[settings["method"]], settings["loss"]

    def of_views(theta: Tensor, views: Tensor, _: Tensor) -> Tensor:
        return loss(*forward(theta, views).chunk(2), **options)

    return of_views


def train_ssl_expert(
    images: Images,
    mean: Tensor,
    std: Tensor,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    seed: int,
    expert: int,
    **callbacks: Any,
) -> dict[str, Tensor]:
    """Train one student by SSL on all images and record its trajectory, projector included.

    Args:
        images: float32 [n,C,H,W], normalised with ``mean`` and ``std``, float32 [C], on the device to train on.
        student: the student's config entry.
        settings: ``method`` and its ``loss`` options, ``augment``, ``projector``; ``epochs``, ``batch``, ``lr``,
            ``momentum``, ``weight_decay``. A last smaller batch is left out, as for the teacher.
        seed, expert: with the settings they decide every weight and view.
        callbacks: ``state``, ``report``, ``checkpoint``, as for ``record_trajectory``.

    Returns:
        ``trajectory`` float32 [epochs+1,P] and ``epoch_losses`` float32 [epochs].

    Raises:
        Diverged: the loss is not finite, or ``divergence.EXPLODED`` times the first one.
    """
    channels, size = images.shape[1], images.shape[2]
    model = build_ssl_student(student, channels, size, settings["projector"], seed, "ssl expert weights", expert)
    model.to(images.device)
    views = build_views(settings["augment"], channels, size).to(images.device)
    loss, options = LOSSES[settings["method"]], settings["loss"]

    def loss_of(rows: Tensor, step: int) -> Tensor:
        with torch.no_grad(), seeding.global_stream(seed, "ssl expert views", expert, step):
            pair = torch.cat(draw_views(images[rows], views, mean.to(images.device), std.to(images.device)))
        return loss(*model(pair).chunk(2), **options)

    return record_trajectory(
        model,
        loss_of,
        len(images),
        settings,
        seed=seed,
        expert=expert,
        key="mtt_ssl.expert_lr",
        whole_batches=True,
        **callbacks,
    )


def views_of_steps(
    settings: Mapping[str, Any], initial: SyntheticSet, device: torch.device, seed: int, distill_seed: int
) -> Callable[[Tensor, list[Tensor], int], tuple[Tensor, list[Tensor]]]:
    """``views`` for ``distill``: two views of the images of each step, drawn anew at every iteration."""
    augment = build_views(settings["augment"], initial.images.shape[1], initial.images.shape[2]).to(device)
    mean, std = initial.mean.to(device), initial.std.to(device)

    def views(images: Tensor, rows: list[Tensor], iteration: int) -> tuple[Tensor, list[Tensor]]:
        with seeding.global_stream(seed, "mtt_ssl views", distill_seed, iteration):
            pair = draw_views(images[torch.cat(rows)], augment, mean, std)
        sizes = [len(part) for part in rows]
        halves = zip(*(half.split(sizes) for half in pair), strict=True)
        blocks = torch.arange(2 * sum(sizes), device=images.device).split([2 * size for size in sizes])
        return torch.cat([torch.cat(half) for half in halves]), list(blocks)

    return views


def distill_ssl(
    initial: SyntheticSet,
    experts: Any,
    student: Spec,
    settings: Mapping[str, Any],
    *,
    seed: int,
    distill_seed: int,
    device: torch.device,
    **callbacks: Any,
) -> tuple[SyntheticSet, Tensor]:
    """Trajectory matching of SSL training.

    Args:
        initial: the subset that the synthetic images start from.
        experts: files with the ``trajectory`` of ``train_ssl_expert``.
        student: the experts' config entry.
        settings: as for ``distill``, and ``method``, ``loss``, ``augment`` and ``projector`` of the experts.
        seed, distill_seed, device: as for ``distill``.
        callbacks: ``state``, ``report``, ``checkpoint``, as for ``distill``.

    Returns:
        the set and its history, as ``distill``. SSL gives the images no targets, and a step size for a loss that
        pre-training does not use: targets and step size stay those of ``initial``.

    Raises:
        Diverged: as ``distill``.
    """
    channels, size = initial.images.shape[1], initial.images.shape[2]
    template = build_ssl_student(student, channels, size, settings["projector"], seed, "template").to(device)
    final, history = distill(
        initial,
        experts,
        student,
        settings,
        seed=seed,
        distill_seed=distill_seed,
        device=device,
        loss_fn=flat_ssl(template, settings),
        views=views_of_steps(settings, initial, device, seed, distill_seed),
        key="mtt_ssl.image_lr",
        **callbacks,
    )
    return replace(final, step_size=initial.step_size), history

"""Distil from tensors, without the workflow: a set from images and the representations that any encoder gave of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mkdt.config.architectures import has_running_statistics
from mkdt.config.loading import load, merge
from mkdt.config.schema import DEFAULT
from mkdt.config.views import check, expand, has_views
from mkdt.data.pixels import pixel_statistics
from mkdt.distill.bptt import bptt_set
from mkdt.distill.kmeans import kmeans_subset
from mkdt.distill.real_set import real_set
from mkdt.distill.source import Source
from mkdt.distill.subsets import random_subset
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.backbones import Spec
from mkdt.progress import Report, no_report

STARTS = {"random": random_subset, "kmeans": kmeans_subset}


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``bptt`` of the default config with these settings over it, checked as a config is."""
    default = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    return dict(load(merge(default, {"bptt": dict(settings)}))["bptt"])


def distill_images(
    images: Tensor,
    targets: Tensor,
    count: int,
    student: Spec,
    *,
    views: Sequence[str] = ("identity",),
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Report = no_report,
    **settings: Any,
) -> SyntheticSet:
    """Distil images into a small set by the method ``bptt`` (docs/method.md), which needs no experts.

    Args:
        images: uint8 [n,C,H,H], the images to distil; there are no labels.
        targets: float32 [n,D], what an encoder of yours makes of them.
        count: number of images of the set.
        student: the network to distil for, for example ``{"architecture": "convnet", "depth": 3, "width": 128, "norm":
            "instance"}``; a convnet without batch norm.
        views: names of fixed views (docs/methods.md), ``identity`` first; the set has a target for each.
        teacher: the encoder itself, which is needed with views: it maps images, normalised with the mean and deviation
            of all ``images``, to rows of ``targets``.
        seed: decides all random choices.
        device: where to compute.
        report: called after each iteration with its number and its values, such as ``loss``.
        settings: keys of the section ``bptt`` of the config (config/README.md) that differ from its defaults, such as
            ``iterations=500`` or ``init="random"``.

    Returns:
        the set, normalised with the mean and deviation of ``images``; ``mkdt.artifacts.save`` writes it.

    Raises:
        UserError: shapes or values do not fit, a setting does not exist or does not go with another, views lack the teacher.
        Diverged: as ``mkdt.distill.outer_loop.learn_set``.
    """
    chosen, names = _checked(settings), expand(views)
    if chosen["init"] not in STARTS:
        raise UserError(f"distill_images: init is '{chosen['init']}'; known here are {', '.join(STARTS)}.")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserError(f"distill_images: images are {images.dtype} {list(images.shape)}; expected uint8 [n,C,H,H].")
    if targets.ndim != 2 or len(targets) != len(images) or not targets.isfinite().all():
        raise UserError(
            f"distill_images: targets are {list(targets.shape)}, or not finite; expected a row for each of {len(images)} images."
        )
    if has_running_statistics(student):
        raise UserError(f"distill_images: student is {dict(student)}; expected a convnet without batch norm.")
    if not 0 < count <= len(images):
        raise UserError(f"distill_images: count is {count}; expected 1 to {len(images)}, the number of images.")
    check(names, *images.shape[1:3])
    if has_views(names) and teacher is None:
        raise UserError("distill_images: with views the teacher is needed, which encodes them: give teacher.")
    images, targets = images.cpu(), targets.cpu().float()
    mean, std = pixel_statistics(images)
    place = torch.device(device)
    source = Source(images, mean, std, targets, teacher=teacher, device=place)
    rows = STARTS[chosen["init"]](source, {"count": count}, seed, 0)
    initial = real_set(source, rows, names, mean, std)
    made, _ = bptt_set(initial, source, student, chosen, seed=seed, distill_seed=0, device=place, report=report)
    return made

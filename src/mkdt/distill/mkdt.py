"""Distillation method ``mkdt``: training on the synthetic set follows the experts' trajectories (arXiv 2410.02116)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.trajectory_matching import match_experts
from mkdt.networks.backbones import Spec
from mkdt.networks.flat import flat_mse
from mkdt.networks.students import build_student
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report


def mkdt_set(
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
    """Match the trajectories of experts that were trained by regression to the targets (paper, algorithm 1).

    Args:
        initial: the subset that the synthetic set starts from.
        source: its experts.
        student: the config entry of the experts' network.
        settings: the section ``distill`` of the config.
        seed, distill_seed, device, state, report, checkpoint: as for ``match_experts``.

    Returns:
        the set after the last update, and its history: float32 [k,m',C,H,W], the first images at k moments.

    Raises:
        Diverged, UserError: as ``match_experts``.
    """
    channels, size = initial.images.shape[1], initial.images.shape[2]
    template = build_student(student, channels, size, initial.targets.shape[1], seed, "template").to(device)
    return match_experts(
        initial,
        source.experts,
        flat_mse(template),
        settings,
        seed=seed,
        distill_seed=distill_seed,
        device=device,
        state=state,
        report=report,
        checkpoint=checkpoint,
    )

"""The matching loss of a whole trajectory with its gradients, as several tests compute it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mkdt.distill.hypergradient import Hypergradient, distance_to, unroll
from mkdt.networks.flat import LossFn


def match_trajectory(
    loss_fn: LossFn,
    theta0: Tensor,
    target: Tensor,
    images: Tensor,
    targets: Tensor,
    lr: Tensor | float,
    batches: Sequence[Tensor],
    **options: Any,
) -> Hypergradient:
    """Unroll the steps and differentiate the distance of the last weights to ``target``."""
    return unroll(loss_fn, theta0, {len(batches): distance_to(target, theta0)}, images, targets, lr, batches, **options)

"""Real subsets: random images, and the images that the experts find hardest.

A new subset method is a function ``{method}_subset`` with the signature of these, in a file of ``mkdt.extensions``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.config.views import has_views
from mkdt.data.pixels import denormalise, normalise
from mkdt.data.views import decode
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.teacher.encoding import represent

# The step size stored with a real subset, which the paper's protocol pre-trains with: the published start value.
STEP_SIZE = 0.1


def random_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Draw ``count`` distinct rows, int64, by (seed, distill_seed)."""
    stream = seeding.generator(seed, "random subset", distill_seed)
    return torch.randperm(len(source.images), generator=stream)[: settings["count"]].clone()


def high_loss_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Choose the ``count`` rows with the highest loss after epoch 1, averaged over all experts (paper, section 4.2).

    Returns:
        int64 [count], highest loss first; equal losses keep the order of the rows. The seeds have no effect.
    """
    mean = torch.stack(list(source.losses)).double().mean(0)
    return torch.sort(mean, descending=True, stable=True).indices[: settings["count"]].clone()


def real_set(source: Source, rows: Tensor, views: Sequence[str], mean: Tensor, std: Tensor) -> SyntheticSet:
    """Return training images and their targets in the form of a synthetic set.

    Args:
        source: the images and targets; with views, also the teacher.
        rows: int64 [m], which images.
        views: names of the V views, ``identity`` first. The teacher encodes every other view of every image, rounded to
            whole pixel values as any picture is.
        mean, std: float32 [C], statistics of the source; the teacher's, in ``source``, may be others.
    """
    images, targets = normalise(source.images[rows], mean, std), source.targets[rows]
    if has_views(views):
        assert source.teacher is not None
        pixels = denormalise(decode(images, views[1:], mean, std), mean, std)
        seen = represent(source.teacher, pixels, source.mean, source.std, source.device)
        targets = torch.cat([targets, seen if source.space is None else source.space.apply(seen)])
    return SyntheticSet(images, targets, torch.tensor(STEP_SIZE), mean, std, rows, views=tuple(views))

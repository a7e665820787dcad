"""A real subset in the form of a synthetic set: images, the teacher's targets of all their views, a start value as step size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mkdt.config.views import has_views
from mkdt.data.pixels import denormalise, normalise
from mkdt.data.views import decode
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import STEP_SIZE, SyntheticSet
from mkdt.teacher.encoding import represent


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

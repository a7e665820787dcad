"""Fixed views of images: deterministic, differentiable copies that share one stored image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt.config.views import IDENTITY, View, parse


def decode(images: Tensor, views: Sequence[str], mean: Tensor, std: Tensor) -> Tensor:
    """Make all views of all images.

    Args:
        images: float [m,C,H,W], normalised with ``mean`` and ``std``; may be differentiated.
        views: V names (``mkdt.config.views``).
        mean, std: float [C]. What a view moves in from outside of the picture is black.

    Returns:
        float [V*m,C,H,W], view by view: row ``v * m + i`` is view ``v`` of image ``i``.
    """
    if list(views) == [IDENTITY]:
        return images
    mean, std = (part.to(images)[:, None, None] for part in (mean, std))
    black = -mean / std
    return torch.cat([_view(images, parse(name), black, std) for name in views])


def _view(images: Tensor, view: View, black: Tensor, std: Tensor) -> Tensor:
    if view.kind == "mirror":
        return images.flip(3)
    if view.kind == "shift":
        return _shift(images - black, *(int(number) for number in view.numbers)) + black
    if view.kind == "rotate":
        return _rotate(images - black, view.numbers[0]) + black
    if view.kind == "crop":
        return _crop(images, view.numbers[0], view.corner)
    if view.kind == "colour":
        return images + images.new_tensor(view.numbers)[:, None, None] / std
    return images


def _shift(images: Tensor, right: int, down: int) -> Tensor:
    """Move images by whole pixels; zeros come in."""
    height, width = images.shape[2:]
    padded = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return padded[:, :, top : top + height, left : left + width]


def _rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn images counter-clockwise about their centre, bilinear; zeros come in."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = images.new_tensor([[cos, -sin, 0], [sin, cos, 0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _crop(images: Tensor, share: float, corner: str) -> Tensor:
    """Cut a part out, ``share`` of each side, and resize it to the whole, bilinear with antialiasing."""
    size = images.shape[2], images.shape[3]
    height, width = (max(1, round(share * side)) for side in size)
    top = {"top": 0, "bottom": size[0] - height}.get(corner.partition("_")[0], (size[0] - height) // 2)
    left = {"left": 0, "right": size[1] - width}.get(corner.partition("_")[2], (size[1] - width) // 2)
    part = images[:, :, top : top + height, left : left + width]
    return F.interpolate(part, size, mode="bilinear", antialias=True)

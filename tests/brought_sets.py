"""A set that somebody else distilled, as docs/artifacts.md says that it is written."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import artifacts


def tensors_of_a_set(channels: int = 1, size: int = 8, count: int = 12, width: int = 128) -> dict[str, Tensor]:
    """Smooth pictures, darker than light, with a little noise beyond [0, 1], and targets of ``width``."""
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, size // 2, size // 2, generator=stream) ** 2
    pixels = F.interpolate(coarse, (size, size), mode="bilinear")
    pixels = (pixels - pixels.amin()) / (pixels.amax() - pixels.amin())
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    pixels += 0.1 * torch.randn(pixels.shape, generator=stream)
    return {
        "images": (pixels - mean[:, None, None]) / std[:, None, None],
        "targets": torch.randn(count, width, generator=stream),
        "step_size": torch.tensor(0.1),
        "mean": mean,
        "std": std,
        "init_index": torch.full((count,), -1),
    }


def write_set(path: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write a set with its header and return the path."""
    artifacts.save(path, tensors or tensors_of_a_set(), stage="theirs")
    return path

"""Turn uint8 pixels into normalised float batches and back; resize, and bring images to another shape."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS = 1 << 24  # numbers that are floats at a time where whole splits are converted: 64 MB


def spread(rows: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of the rows, evenly spaced: sets that are published class by class keep all their classes."""
    if len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit, dtype=torch.float64).round().long()]


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [n,C,H,W] to uint8 [n,C,size,size], bilinear with antialiasing, rounded; in chunks."""
    if images.shape[-2:] == (size, size):
        return images
    if not len(images):
        return images.new_zeros((0, images.shape[1], size, size))
    return torch.cat([_resized(part, size) for part in in_chunks(images, size)])


def _resized(images: Tensor, size: int) -> Tensor:
    pixels = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).byte()


def in_chunks(images: Tensor, size: int = 0) -> Iterable[Tensor]:
    """Parts of at most ``FLOATS`` numbers, as they are or as squares of ``size``: what floats them needs that much memory."""
    return images.split(max(1, FLOATS // (images.shape[1] * max(images.shape[2] * images.shape[3], size * size))))


def adapt(images: Tensor, channels: int, size: int) -> Tensor:
    """Bring another data set's images to the source's shape: the one rule for every downstream set and method.

    Grey is repeated to three channels, colour becomes luma (ITU-R 601), then ``resize``.
    """
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif images.shape[1] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        images = torch.cat(
            [(part.float() * weights).sum(1, keepdim=True).round().clamp(0, 255).byte() for part in in_chunks(images)]
        )
    return resize(images, size)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n,C,H,W] to float32, zero mean and unit deviation a channel with the source's statistics."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


class Normalised:
    """Images that stay uint8 (and on disk, if they are memory-mapped): what is taken of them is float32, normalised.

    A set that is larger than memory can so be trained on; the values are those of ``normalise`` of all.
    """

    def __init__(self, images: Tensor, mean: Tensor, std: Tensor) -> None:
        """Keep ``images`` uint8 [n,C,H,W], with the float32 [C] that normalise them."""
        self._images, self._mean, self._std = images, mean, std

    @property
    def shape(self) -> torch.Size:
        """[n,C,H,W]."""
        return self._images.shape

    @property
    def device(self) -> torch.device:
        """Where the pixels are, and what is taken of them."""
        return self._images.device

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return normalise(self._images[rows], self._mean, self._std)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, float32 [size,C,H,W] at a time."""
        return (normalise(batch, self._mean, self._std) for batch in self._images.split(size))

    def to(self, device: torch.device) -> "Normalised":
        """The same on ``device``."""
        return Normalised(self._images.to(device), self._mean.to(device), self._std.to(device))


Images = Tensor | Normalised


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of ``normalise``, rounded to uint8 and clamped to what a pixel can be."""
    pixels = (images * std[:, None, None] + mean[:, None, None]) * 255
    return pixels.round().clamp(0, 255).byte()


def in_batches(function: Callable[[Tensor], Tensor], images: Iterable[Tensor]) -> Tensor:
    """Apply ``function`` to each batch without a graph and join the results on the CPU."""
    with torch.inference_mode():
        joined = torch.cat([function(batch).cpu() for batch in images])
    return joined.clone()  # outside: a copy that training graphs may save


def image_grid(pictures: Tensor, columns: int = 10, most: int = 100, pixels: int = 48) -> Tensor:
    """Pictures uint8 [n,C,H,W] side by side, enlarged by whole factors to about ``pixels``: uint8 [3,H',W']."""
    from torchvision.utils import make_grid

    pictures = pictures[:most].cpu()
    factor = max(1, pixels // pictures.shape[-1])
    large = pictures.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return make_grid(large, nrow=columns, padding=4, pad_value=255)

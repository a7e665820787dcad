"""Operations on batches of images: resize, normalise, convert the number of channels, apply a function in batches."""

from collections.abc import Callable, Iterable, Iterator
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS = 1 << 24  # numbers converted to float at a time when a whole split is converted: 64 MB
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R 601)


def evenly_spaced_rows(rows: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` of the rows, evenly spaced.

    A data set that is published class by class keeps all its classes.
    """
    if len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit, dtype=torch.float64).round().long()]


def in_chunks(images: Tensor, size: int = 0) -> Iterable[Tensor]:
    """Split images [n,C,H,W] so that converting a chunk to float needs at most ``FLOATS`` numbers.

    Args:
        images: any number of images.
        size: height and width that the chunks will be resized to; 0 if they keep theirs.
    """
    return images.split(max(1, FLOATS // (images.shape[1] * max(images.shape[2] * images.shape[3], size * size))))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [n,C,H,W] to uint8 [n,C,size,size]: bilinear with antialiasing, rounded, in chunks."""
    if images.shape[-2:] == (size, size):
        return images
    if not len(images):
        return images.new_zeros((0, images.shape[1], size, size))
    resized = (
        F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True) for chunk in in_chunks(images, size)
    )
    return torch.cat([_to_bytes(chunk) for chunk in resized])


def adapt(images: Tensor, channels: int, size: int) -> Tensor:
    """Convert images uint8 [n,C,H,W] of a downstream data set to the shape of the source, [n,channels,size,size].

    Grey is repeated to three channels; colour becomes luma (ITU-R 601); then ``resize``. All data sets and methods use
    this conversion.
    """
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif images.shape[1] == 3 and channels == 1:
        weights = torch.tensor(LUMA)[:, None, None]
        images = torch.cat([_to_bytes((chunk.float() * weights).sum(1, keepdim=True)) for chunk in in_chunks(images)])
    return resize(images, size)


def _to_bytes(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).byte()


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, float32 [C] each, of the pixels in [0, 1] of images uint8 [n,C,H,W].

    Integer sums make them exact in any order.
    """
    count = images.numel() // images.shape[1]
    total = square = torch.zeros(images.shape[1], dtype=torch.int64)
    for chunk in in_chunks(images):
        total = total + chunk.sum((0, 2, 3), dtype=torch.int64)
        square = square + chunk.int().square().sum((0, 2, 3), dtype=torch.int64)
    sums = list(zip(total.tolist(), square.tolist(), strict=True))
    mean = [s / (255 * count) for s, _ in sums]
    std = [sqrt(max((count * q - s * s) / (255 * count) ** 2, 1e-12)) for s, q in sums]
    return torch.tensor(mean), torch.tensor(std)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 [n,C,H,W] to float32: pixels in [0, 1] minus ``mean``, divided by ``std``, both float32 [C]."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Invert ``normalise``: float [n,C,H,W] to uint8, rounded and clamped to [0, 255]."""
    return _to_bytes((images * std[:, None, None] + mean[:, None, None]) * 255)


class Normalised:
    """Images stored as uint8 and normalised on access.

    A data set larger than memory can be used for training, since the uint8 images may be memory-mapped. The values
    equal those of ``normalise`` applied to all images.
    """

    def __init__(self, images: Tensor, mean: Tensor, std: Tensor) -> None:
        """Store ``images`` uint8 [n,C,H,W] with the statistics float32 [C] that ``normalise`` uses."""
        self._images, self._mean, self._std = images, mean, std

    @property
    def shape(self) -> torch.Size:
        """[n,C,H,W]."""
        return self._images.shape

    @property
    def device(self) -> torch.device:
        """Device of the stored images and of the images returned."""
        return self._images.device

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return normalise(self._images[rows], self._mean, self._std)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images, float32 [size,C,H,W] at a time; the last batch may be smaller."""
        return (normalise(batch, self._mean, self._std) for batch in self._images.split(size))

    def to(self, device: torch.device) -> "Normalised":
        """Copy to ``device``."""
        return Normalised(self._images.to(device), self._mean.to(device), self._std.to(device))


Images = Tensor | Normalised


def in_batches(function: Callable[[Tensor], Tensor], images: Iterable[Tensor]) -> Tensor:
    """Apply ``function`` to each batch without gradients and concatenate the results on the CPU."""
    with torch.inference_mode():
        joined = torch.cat([function(batch).cpu() for batch in images])
    return joined.clone()  # outside of inference mode, so that autograd may save the tensor


def image_grid(pictures: Tensor, columns: int = 10, most: int = 100, pixels: int = 48) -> Tensor:
    """Arrange images side by side.

    Args:
        pictures: uint8 [n,C,H,W].
        columns: images in a row.
        most: number of images to show; the others are left out.
        pixels: each image is enlarged by a whole factor to about this width.

    Returns:
        uint8 [3,H',W'].
    """
    from torchvision.utils import make_grid

    pictures = pictures[:most].cpu()
    factor = max(1, pixels // pictures.shape[-1])
    large = pictures.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return make_grid(large, nrow=columns, padding=4, pad_value=255)

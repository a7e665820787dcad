"""How the numbers of a set are stored: in 4, 2 or 1 bytes each, and how they are read again.

In one byte, a value is q in 0 to 255 between two bounds: low + (high - low) q / 255. The pixels of each channel have bounds of
their own, and so has each component of the targets. Pixels of real images are bytes already: between 0 and 1 nothing is lost.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mkdt.artifacts import Artifact
from mkdt.config.set_checks import BOUNDS
from mkdt.errors import UserError

COUNTED = ("images", "targets", *BOUNDS.values(), "step_size")  # what a student is pre-trained with
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def stored(tensors: Mapping[str, Tensor], precisions: Mapping[str, str], real: bool) -> dict[str, Tensor]:
    """Return the tensors of a set as they are stored.

    Args:
        tensors: float32, as from ``SyntheticSet.tensors``.
        precisions: ``pixels`` and ``targets``, each ``float32``, ``float16`` (rounded to the nearest) or ``uint8`` (rounded
            to the nearest of 256 values between the smallest and the largest).
        real: the images are real ones: their pixels are stored as bytes between 0 and 1, whatever ``precisions`` says.

    Raises:
        UserError: numbers are too large for ``float16``.
    """
    images, mean, std = (tensors[name] for name in ("images", "mean", "std"))
    pixels = "uint8" if real else precisions["pixels"]
    if pixels == "uint8":
        values = images * std[:, None, None] + mean[:, None, None]
        bounds = torch.tensor([0.0, 1.0]).expand(len(mean), 2).contiguous() if real else _bounds(values)
        made = {"images": _quantised(values, bounds), BOUNDS["images"]: bounds}
    else:
        made = {"images": _cast("images", images, pixels)}
    if precisions["targets"] == "uint8":
        bounds = _bounds(tensors["targets"])
        made |= {"targets": _quantised(tensors["targets"], bounds), BOUNDS["targets"]: bounds}
    else:
        made["targets"] = _cast("targets", tensors["targets"], precisions["targets"])
    return {**tensors, **made}


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a set, ``images`` and ``targets`` as float32, from stored ones."""
    images, targets = tensors["images"], tensors["targets"]
    if images.dtype == torch.uint8:
        pixels = dequantised(images, tensors["pixel_bounds"])
        images = (pixels - tensors["mean"][:, None, None]) / tensors["std"][:, None, None]
    if targets.dtype == torch.uint8:
        targets = dequantised(targets, tensors["target_bounds"])
    return {**tensors, "images": images.float(), "targets": targets.float()}


def dequantised(values: Tensor, bounds: Tensor) -> Tensor:
    """Return float32 values of uint8 [n,K,...], between ``bounds`` float32 [K,2]."""
    low, high = _spread(bounds, values.ndim)
    return low + (high - low) * (values.float() / 255)


def bytes_of(file: Artifact) -> int:
    """Return the bytes of a set in a file: pixels, targets, their bounds and the step size, as they are stored."""
    return sum(file.tensor(name).nbytes for name in COUNTED if name in file.names)


def _bounds(values: Tensor) -> Tensor:
    """Return the smallest and the largest value of each channel or component, float32 [K,2]."""
    flat = values.movedim(1, 0).flatten(1)
    return torch.stack([flat.amin(1), flat.amax(1)], 1)


def _quantised(values: Tensor, bounds: Tensor) -> Tensor:
    low, high = _spread(bounds, values.ndim)
    scale = torch.where(high > low, high - low, 1.0)
    return ((values - low) / scale * 255).round().clamp(0, 255).byte()


def _spread(bounds: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    low, high = bounds.T.reshape(2, -1, *[1] * (dimensions - 2))
    return low, high


def _cast(name: str, values: Tensor, precision: str) -> Tensor:
    made, key = values.to(DTYPES[precision]), "pixels" if name == "images" else name
    if not made.isfinite().all():
        raise UserError(
            f"config: storage.{key} is float16, but there are {name} up to {float(values.abs().max()):.3g}, which do not fit: "
            "choose float32."
        )
    return made

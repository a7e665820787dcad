"""What the values of a synthetic set look like, in numbers: computed a part at a time, so that a large set fits. No torch here."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from mkdt.artifact_header import begun_digest, read_header

Array = NDArray[Any]

# Values that are looked at together; as doubles they take 16 MB.
PART = 2**21
ALTERED = "was altered: its content does not match the digests in its header"


@dataclass(frozen=True)
class Values:
    """Numbers about a set.

    Attributes:
        count: number of its images.
        width: length of its targets.
        mean, std: its statistics, float32 [C].
        infinite: name of a tensor with values that are not finite; empty if there is none.
        least, most, spread: smallest value and largest value of its images, and their deviation.
        darkest, brightest, deviation: the same of its pixels after denormalising.
        flat: number of images of one colour.
        correlation: of horizontal neighbours among its pixels; 1 if there is nothing to correlate.
        repeated: number of images that equal an earlier one.
        one_hot: whether each of its targets is.
        alike: whether all of its targets are the same.
    """

    count: int
    width: int
    mean: Array
    std: Array
    infinite: str
    least: float
    most: float
    spread: float
    darkest: float
    brightest: float
    deviation: float
    flat: int
    correlation: float
    repeated: int
    one_hot: bool
    alike: bool


class _Moments:
    """Extremes, sums and sums of squares of numbers that come in parts."""

    def __init__(self) -> None:
        self._shift: float | None = None
        self._count, self._sums, self._products = 0, np.zeros(2), np.zeros(3)
        self.least, self.most = np.inf, -np.inf

    def add(self, first: Array, second: Array) -> None:
        """Count pairs of doubles, of any equal shapes."""
        if not first.size:
            return
        if self._shift is None:
            self._shift = float(first.flat[0])  # equal numbers then have a variance of exactly 0
        self.least = float(np.minimum(self.least, first.min()))
        self.most = float(np.maximum(self.most, first.max()))
        x, y = (first - self._shift).ravel(), (second - self._shift).ravel()
        self._count += x.size
        self._sums += x.sum(), y.sum()
        self._products += x @ x, x @ y, y @ y

    def _covariances(self) -> Array:
        means = self._sums / max(1, self._count)
        squares = np.array([means[0] * means[0], means[0] * means[1], means[1] * means[1]])
        covariances: Array = self._products / max(1, self._count) - squares
        return covariances

    def deviation(self) -> float:
        """Return the standard deviation of the first numbers of the pairs."""
        return float(np.sqrt(np.maximum(self._covariances()[0], 0)))

    def correlation(self) -> float:
        """Return the correlation of the pairs; 1 if one side is constant or there are too few."""
        first, both, second = self._covariances()
        if self._count < 2 or first <= 0 or second <= 0:
            return 1.0
        return float(both / np.sqrt(first * second))


@np.errstate(all="ignore")  # the numbers say when a set's values overflow
def measure(tensors: Mapping[str, Any]) -> Values:
    """Return numbers about the tensors of a set, which have its names, types and shapes.

    Args:
        tensors: arrays of numpy; ``images`` and ``targets`` may be slices of an open file.
    """
    mean, std = tensors["mean"], tensors["std"]
    by_channel = mean[:, None, None], std[:, None, None]
    infinite = [name for name in ("mean", "std", "step_size") if not np.isfinite(tensors[name]).all()]
    values, pixels, neighbours, count, flat = _Moments(), _Moments(), _Moments(), 0, 0
    different = set[bytes]()
    for part in parts(tensors["images"]):
        if part.dtype == np.uint8:
            part = ((_dequantised(part, tensors["pixel_bounds"]) - by_channel[0]) / by_channel[1]).astype(np.float32)
        infinite += [] if np.isfinite(part).all() else ["images"]
        count += len(part)
        different |= {hashlib.sha256(image.tobytes()).digest() for image in part}
        flat += int((part.max((2, 3)) == part.min((2, 3))).all(1).sum())
        doubles = part.astype(np.float64)
        values.add(doubles, doubles)
        doubles = doubles * by_channel[1] + by_channel[0]
        pixels.add(doubles, doubles)
        neighbours.add(doubles[..., :-1], doubles[..., 1:])
    one_hot, alike, width, first = True, True, 0, None
    for part in parts(tensors["targets"]):
        part = _dequantised(part, tensors["target_bounds"]) if part.dtype == np.uint8 else part
        infinite += [] if np.isfinite(part).all() else ["targets"]
        width, first = part.shape[1], part[0] if first is None else first
        alike &= bool((part == first).all())
        one_hot &= bool((part.max(1) == 1).all() and (np.count_nonzero(part, 1) == 1).all())
    return Values(
        count=count,
        width=width,
        mean=mean,
        std=std,
        infinite=min(infinite, default=""),
        least=values.least,
        most=values.most,
        spread=values.deviation(),
        darkest=pixels.least,
        brightest=pixels.most,
        deviation=pixels.deviation(),
        flat=flat,
        correlation=neighbours.correlation(),
        repeated=count - len(different),
        one_hot=one_hot,
        alike=alike,
    )


def _dequantised(values: Array, bounds: Array) -> Array:
    """Return the values that bytes [n,K,...] stand for, between ``bounds`` [K,2]."""
    low, high = bounds.T.reshape(2, -1, *[1] * (values.ndim - 2))
    return np.asarray(low + (high - low) * (values / np.float32(255)))


def parts(tensor: Any) -> Iterator[Array]:
    """Yield the rows of an array of numpy, or of a tensor in an open file, some at a time."""
    shape = tuple(tensor.shape if isinstance(tensor, np.ndarray) else tensor.get_shape())
    rows = max(1, PART // max(1, prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield tensor[start : min(start + rows, shape[0])]  # slices of a file do not end by themselves


def values_of(path: Path) -> Values:
    """Return numbers about a set in a file, of which ``set_checks.check_set`` has checked the header and the shapes.

    The file is read once by a process, as long as it stays the same.

    Raises:
        ValueError: it cannot be read, or has another content than its header says.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(error) from error
    return _values_of(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=64)
def _values_of(path: Path, *_stamp: int) -> Values:
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            header = read_header(file.metadata() or {}, {name: one.get_shape() for name, one in slices.items()})
            intact = all(_is_intact(file, name, stored) for name, stored in header["digests"].items())
            small = {name: file.get_tensor(name) for name in slices if name not in ("images", "targets")}
            found = measure(slices | small) if intact else None
    except Exception as error:  # whatever the reader of an arbitrary file says
        raise unreadable(error) from error
    if found is None:
        raise ValueError(ALTERED)
    return found


def unreadable(error: Exception) -> ValueError:
    """Return the error to raise for what the reader of a file said."""
    return ValueError(f"cannot be read: {' '.join(str(error).split())[:100]}")


def _is_intact(file: Any, name: str, stored: str | list[str]) -> bool:
    """Return whether a tensor has the digest, or each of its rows the digests, that the header says."""
    tensor = file.get_slice(name)
    shape = tensor.get_shape()
    arrays = parts(tensor) if shape and shape[0] else iter([file.get_tensor(name)])
    if isinstance(stored, list):
        found = [_sha256(iter([row]), row.shape) for rows in arrays for row in rows]
        return found == stored
    return _sha256(arrays, shape) == stored


def _sha256(arrays: Iterator[Array], shape: Sequence[int]) -> str:
    """Return what ``mkdt.artifacts.tensor_digest`` returns of the tensor that these arrays, one at least, make up."""
    first = next(arrays)
    sha = begun_digest(str(first.dtype), shape)
    for array in chain([first], arrays):
        sha.update(array.tobytes())
    return sha.hexdigest()

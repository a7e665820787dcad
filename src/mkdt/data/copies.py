"""Count held-out images that are copies of training images: accuracies on them measure memory."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Copies:
    """The images of a held-out split that equal a training image.

    Attributes:
        rows: their rows in the split, ascending.
        example: the row of a training image that equals the first of them.
        total: number of images of the split.
    """

    rows: list[int]
    example: int
    total: int


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Copies]:
    """Return the copies in the validation and the test split, by split; a split without one is left out.

    Args:
        tensors: ``{split}_images`` uint8 [n,C,H,W] of the splits ``train``, ``validation`` and ``test``.
    """
    held_out = {split: list(_keys(tensors[f"{split}_images"])) for split in ("validation", "test")}
    wanted = {key for keys in held_out.values() for key in keys}
    training: dict[bytes, int] = {}  # only what is held out too: memory must not grow with the training set
    for row, key in enumerate(_keys(tensors["train_images"])):
        if key in wanted:
            training.setdefault(key, row)
    found: dict[str, Copies] = {}
    for split, keys in held_out.items():
        rows = [row for row, key in enumerate(keys) if key in training]
        if rows:
            found[split] = Copies(rows, training[keys[rows[0]]], len(keys))
    return found


def _keys(images: Tensor) -> Iterator[bytes]:
    """Yield a digest of the pixels of each image."""
    for image in images:
        yield hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()

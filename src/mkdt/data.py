"""Data sets: decoded once to uint8 tensors, split by a recorded seed, normalised on use."""

import gzip
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.errors import UserError

Split = tuple[Tensor, Tensor]  # images uint8 [n,C,H,W], labels int64 [n]

DOWNLOAD_TRIES = 3
# What torchvision raises for files that are missing, damaged or out of reach (URLError is an OSError).
UNREADABLE = (RuntimeError, OSError, AssertionError, KeyError, ValueError)
# Where the idx files of the MNIST family may lie under data.root: torchvision's place, then Debian's package.
IDX_FOLDERS = {"mnist": ("MNIST/raw", "mnist"), "fashion_mnist": ("FashionMNIST/raw", "fashion-mnist")}
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_raw(kind: str, root: str | Path, download: bool = True) -> dict[str, Split]:
    """The published splits of a data set: ``{"train": ..., "test": ...}``, or ``{"all": ...}`` where there are none.

    Reads what lies under ``root``; what is missing is downloaded there with checksums, if ``download`` allows.

    Raises:
        UserError: files are missing, damaged or cannot be downloaded.
    """
    if kind == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Grey levels run from 0 to 16; stretched to the full byte, rounded once here.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return {"all": (torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target).long())}
    if kind in IDX_FOLDERS:
        return _load_idx(kind, Path(root), download)
    from torchvision import datasets

    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    splits = {}
    for split in ("train", "test"):
        data = _fetch(dataset_class, kind, Path(root), split == "train", download, Path(root))
        splits[split] = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    return splits


def _load_idx(kind: str, root: Path, download: bool) -> dict[str, Split]:
    """MNIST and Fashion-MNIST: torchvision reads unpacked files only, so packed ones are unpacked aside."""
    from torchvision import datasets

    dataset_class = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[kind]
    named = root
    with tempfile.TemporaryDirectory() as aside:
        for folder in (root / name for name in IDX_FOLDERS[kind]):
            packed = [folder / f"{name}.gz" for name in IDX_FILES]
            if all(path.is_file() for path in packed) and not (folder / IDX_FILES[0]).is_file():
                raw = Path(aside) / IDX_FOLDERS[kind][0]
                raw.mkdir(parents=True)
                try:
                    for path in packed:
                        with gzip.open(path) as source, (raw / path.stem).open("wb") as sink:
                            shutil.copyfileobj(source, sink)
                except (OSError, EOFError, zlib.error) as error:
                    raise UserError(f"{path} is damaged ({error}): delete it and fetch it again.") from error
                root, download = Path(aside), False
                break
        splits = {}
        for split in ("train", "test"):
            data = _fetch(dataset_class, kind, root, split == "train", download, named)
            splits[split] = data.data[:, None].contiguous(), data.targets.long()
        return splits


def _fetch(dataset_class: Callable[..., Any], kind: str, root: Path, train: bool, download: bool, named: Path) -> Any:
    """Open one split with torchvision; where it is missing, download it, with retries. ``named`` is for messages."""
    try:
        return dataset_class(root, train=train, download=False)
    except UNREADABLE as missing:
        if not download:
            raise UserError(
                f"data set '{kind}' is not (or not whole) under data.root '{named}': put its files there in "
                "torchvision's layout, or set data.download to true."
            ) from missing
    for attempt in range(1, DOWNLOAD_TRIES + 1):
        try:
            return dataset_class(root, train=train, download=True)
        except UNREADABLE as error:
            if attempt == DOWNLOAD_TRIES:
                raise UserError(
                    f"data set '{kind}' could not be downloaded to data.root '{named}' after {attempt} tries "
                    f"({error}): check the connection, or put its files there in torchvision's layout."
                ) from error
            time.sleep(2**attempt)


def prepare(
    kind: str,
    root: str | Path,
    *,
    train: int | None,
    validation: int,
    test: int | None,
    image_size: int | None,
    seed: int,
    download: bool = True,
) -> dict[str, Tensor]:
    """Decode a data set and split it, stratified by class.

    Args:
        kind: a name of ``catalog.DATASETS``.
        root: folder with the data set's files.
        train: number of training images to keep; None keeps all that the other splits leave.
        validation: number of images split off the training images.
        test: number of images split off where the data set has no test split of its own; None elsewhere.
        image_size: height and width to resize to (bilinear, antialiased); None keeps the native size.
        seed: decides the splits.
        download: whether missing files may be downloaded.

    Returns:
        for each split ``train``, ``validation``, ``test``: ``{split}_images`` uint8 [n,C,H,W],
        ``{split}_labels`` int64 [n], ``{split}_index`` int64 [n] (row in the published order); and
        ``mean``, ``std`` float32 [C] of the training pixels in [0, 1].
    """
    raw = load_raw(kind, root, download)
    images, labels = raw.get("all") or raw["train"]
    index = torch.arange(len(labels))
    parts = {}
    if "all" in raw:
        index, held_out = _split(index, labels, test or 0, seeding.derive(seed, "test split", kind))
        parts["test"] = images[held_out], labels[held_out], held_out
    else:
        parts["test"] = *raw["test"], torch.arange(len(raw["test"][1]))
    index, held_out = _split(index, labels, validation, seeding.derive(seed, "validation split", kind))
    parts["validation"] = images[held_out], labels[held_out], held_out
    if train is not None and train < len(index):
        _, index = _split(index, labels, train, seeding.derive(seed, "train subset", kind))
    parts["train"] = images[index], labels[index], index

    tensors: dict[str, Tensor] = {}
    for split, (pixels, classes, rows) in parts.items():
        tensors[f"{split}_images"] = pixels if image_size is None else resize(pixels, image_size)
        tensors[f"{split}_labels"], tensors[f"{split}_index"] = classes, rows
    # Float64 sums over chunks: exact enough for any size, without a float copy of the whole set.
    pixels = tensors["train_images"]
    count = pixels.numel() / pixels.shape[1]
    total = square = torch.zeros(pixels.shape[1], dtype=torch.float64)
    for chunk in pixels.split(1000):
        values = chunk.double() / 255
        total, square = total + values.sum((0, 2, 3)), square + values.square().sum((0, 2, 3))
    mean, square = total / count, square / count
    tensors["mean"], tensors["std"] = mean.float(), (square - mean.square()).clamp_min(1e-12).sqrt().float()
    return tensors


def _split(index: Tensor, labels: Tensor, held_out: int, random_state: int) -> tuple[Tensor, Tensor]:
    """Split ``held_out`` rows off ``index``, stratified by class; both parts in ascending order."""
    from sklearn.model_selection import train_test_split

    kept, out = train_test_split(
        index.numpy(), test_size=held_out, stratify=labels[index].numpy(), random_state=random_state % 2**32
    )
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(out))


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [n,C,H,W] to uint8 [n,C,size,size], bilinear with antialiasing, rounded; in chunks."""
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in images.split(4096)
    ]
    return torch.cat(parts)


def adapt(images: Tensor, channels: int, size: int) -> Tensor:
    """Bring another data set's images to the source's shape: the one rule for every downstream set and method.

    Grey is repeated to three channels, colour becomes luma (ITU-R 601), then ``resize``.
    """
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif images.shape[1] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        images = (images.float() * weights).sum(1, keepdim=True).round().clamp(0, 255).byte()
    return resize(images, size)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n,C,H,W] to float32, zero mean and unit deviation a channel with the source's statistics."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of ``normalise``, rounded to uint8 and clamped to what a pixel can be."""
    pixels = (images * std[:, None, None] + mean[:, None, None]) * 255
    return pixels.round().clamp(0, 255).byte()


def in_batches(function: Callable[[Tensor], Tensor], images: Iterable[Tensor]) -> Tensor:
    """Apply ``function`` to each batch without a graph and join the results on the CPU."""
    with torch.inference_mode():
        joined = torch.cat([function(batch).cpu() for batch in images])
    return joined.clone()  # outside: a copy that training graphs may save

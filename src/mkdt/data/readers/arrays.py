"""Data sets that come as arrays: torchvision's classes read them, from files that are found or fetched here."""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mkdt.config.catalogue import FILES, PUBLISHED
from mkdt.data.readers import downloads
from mkdt.errors import UserError

Split = tuple[Tensor, Tensor | None]  # images uint8 [n,C,H,W], labels int64 [n]

# What torchvision raises for files that are missing or damaged.
UNREADABLE = (RuntimeError, OSError, AssertionError, KeyError, ValueError)
# Where the idx files of the MNIST family may lie under data.root: torchvision's place, then Debian's package.
IDX_FOLDERS = {
    "mnist": ("MNIST/raw", "mnist"),
    "fashion_mnist": ("FashionMNIST/raw", "fashion-mnist"),
    "kmnist": ("KMNIST/raw",),
}
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LARGEST_ARCHIVE = 16 << 30  # bytes unpacked; STL-10, the largest that is unpacked, has 3.3 GB


def load_raw(kind: str, root: str | Path, download: bool = True) -> dict[str, Split]:
    """A set that comes as arrays: ``{"train": ..., "test": ...}``, or ``{"all": ...}`` where nothing is split.

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
    if kind not in PUBLISHED:
        return cast(dict[str, Split], import_module(f"mkdt.extensions.{kind}").load(Path(root), download))
    if kind in IDX_FOLDERS:
        return _load_idx(kind, Path(root), download)
    from torchvision import datasets

    if kind == "svhn":
        downloads.locate(kind, FILES[kind], root, download)
        pair = _read(kind, root, lambda: [datasets.SVHN(root, split) for split in ("train", "test")])
        return _as_splits([(data.data, data.labels) for data in pair])
    if kind == "stl10_unlabeled":
        data = _load_archive(kind, Path(root), download, partial(datasets.STL10, split="unlabeled"))
        return {"all": (torch.from_numpy(np.ascontiguousarray(data.data)), None)}
    if kind == "stl10":
        pair = _load_archive(
            kind, Path(root), download, lambda place: [datasets.STL10(place, split) for split in ("train", "test")]
        )
        return _as_splits([(data.data, data.labels) for data in pair])
    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    pair = _load_archive(
        kind, Path(root), download, lambda place: [dataset_class(place, train=train) for train in (True, False)]
    )
    return _as_splits([(data.data.transpose(0, 3, 1, 2), data.targets) for data in pair])


def _as_splits(pair: list[tuple[Any, Any]]) -> dict[str, Split]:
    return {
        split: (torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.asarray(labels, np.int64)))
        for split, (images, labels) in zip(("train", "test"), pair, strict=True)
    }


def _load_archive(kind: str, root: Path, download: bool, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of torchvision's folder under ``root``, or of the archive, unpacked aside for the moment."""
    try:
        return read(root)
    except UNREADABLE:
        (archive,) = downloads.locate(kind, FILES[kind], root, download)
    with tempfile.TemporaryDirectory() as aside:
        _unpack(archive, Path(aside))
        return _read(kind, archive, lambda: read(Path(aside)))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the regular files of a tar archive.

    Raises:
        UserError: the archive is damaged, would write outside of ``folder``, has links, or is a bomb.
    """
    total, inside = 0, folder.resolve()
    # One by one and by hand: Python before 3.11.4, which Debian 12 has, knows no filter of its own for this.
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                total += member.size
                if not (member.isreg() or member.isdir()):
                    raise UserError(
                        f"{archive}: the member {member.name} is a link or a device; nothing like it belongs there."
                    )
                if total > LARGEST_ARCHIVE:
                    raise UserError(f"{archive} would unpack to more than {LARGEST_ARCHIVE >> 30} GiB.")
                place = folder / member.name
                if not place.resolve().is_relative_to(inside):
                    raise UserError(
                        f"{archive}: the member {member.name} would leave the folder that it is unpacked in."
                    )
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif content := tar.extractfile(member):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with content, place.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{archive} cannot be unpacked in {folder} ({' '.join(str(error).split())}): fetch it again, or set TMPDIR."
        ) from error


def _read(kind: str, place: str | Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UNREADABLE as error:
        raise UserError(
            f"data set '{kind}': {place} is not as published ({' '.join(str(error).split())}): fetch it again."
        ) from error


def _load_idx(kind: str, root: Path, download: bool) -> dict[str, Split]:
    """The MNIST family: torchvision reads unpacked files only, so packed ones are unpacked aside."""
    from torchvision import datasets

    dataset_class = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[kind]
    place, folders = root, [root / name for name in IDX_FOLDERS[kind]]
    with tempfile.TemporaryDirectory() as aside:
        whole = all((folders[0] / name).is_file() for name in IDX_FILES)
        if not whole:
            candidates = [[folder / f"{name}.gz" for name in IDX_FILES] for folder in folders]
            there = [paths for paths in candidates if all(path.is_file() for path in paths)]
            packed = there[0] if there else downloads.locate(kind, FILES[kind], root, download)
            place, raw = Path(aside), Path(aside) / IDX_FOLDERS[kind][0]
            raw.mkdir(parents=True)
            try:
                for path in packed:
                    with gzip.open(path) as source, (raw / path.stem).open("wb") as sink:
                        shutil.copyfileobj(source, sink)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path} is damaged ({error}): delete it and fetch it again.") from error
        splits: dict[str, Split] = {}
        for split in ("train", "test"):
            data = _read(kind, root, partial(dataset_class, place, train=split == "train"))
            splits[split] = data.data[:, None].contiguous(), data.targets.long()
        return splits

"""Read data sets that are published as arrays, with torchvision's classes."""

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

Split = tuple[Tensor, Tensor | None]  # images uint8 [n,C,H,W]; labels int64 [n], None if unlabelled

# Errors that torchvision raises for missing or damaged files.
UNREADABLE = (RuntimeError, OSError, AssertionError, KeyError, ValueError)
# Folders under data.root that may hold the idx files: first torchvision's, then that of Debian's package.
IDX_FOLDERS = {
    "mnist": ("MNIST/raw", "mnist"),
    "fashion_mnist": ("FashionMNIST/raw", "fashion-mnist"),
    "kmnist": ("KMNIST/raw",),
}
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LARGEST_ARCHIVE = 16 << 30  # bytes unpacked; the largest of these sets, STL-10, has 3.3 GB


def load_raw(kind: str, root: str | Path, download: bool = True) -> dict[str, Split]:
    """Read a data set: ``{"train": ..., "test": ...}``, or ``{"all": ...}`` if it has no published splits.

    Files are read under ``root``. Missing ones are downloaded there and checked if ``download`` is true.

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
    return _load_torchvision(kind, root, download)


def _load_torchvision(kind: str, root: str | Path, download: bool) -> dict[str, Split]:
    """Read SVHN, STL-10 or CIFAR."""
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
    """Call ``read`` with the folder of an unpacked set: ``root``, or a temporary one in which the archive is unpacked."""
    try:
        return read(root)
    except UNREADABLE:
        (archive,) = downloads.locate(kind, FILES[kind], root, download)
    with tempfile.TemporaryDirectory() as temporary:
        unpack(archive, Path(temporary))
        return _read(kind, archive, lambda: read(Path(temporary)))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the regular files of a tar archive.

    Raises:
        UserError: the archive is damaged, has links or devices, would write outside ``folder`` or unpack to more than
            ``LARGEST_ARCHIVE`` bytes.
    """
    total, inside = 0, folder.resolve()
    # Python before 3.11.4 (Debian 12) has no extraction filter, so each member is checked here.
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                total += member.size
                if not (member.isreg() or member.isdir()):
                    raise UserError(
                        f"{archive}: the member {member.name} is a link or a device, which does not belong there."
                    )
                if total > LARGEST_ARCHIVE:
                    raise UserError(f"{archive} would unpack to more than {LARGEST_ARCHIVE >> 30} GiB.")
                place = folder / member.name
                if not place.resolve().is_relative_to(inside):
                    raise UserError(f"{archive}: the member {member.name} would be written outside the folder.")
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif content := tar.extractfile(member):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with content, place.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{archive} cannot be unpacked in {folder} ({' '.join(str(error).split())}): download it again, or set TMPDIR."
        ) from error


def _read(kind: str, place: str | Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UNREADABLE as error:
        raise UserError(
            f"data set '{kind}': {place} is not as published ({' '.join(str(error).split())}): download it again."
        ) from error


def _load_idx(kind: str, root: Path, download: bool) -> dict[str, Split]:
    """Read MNIST, Fashion-MNIST or KMNIST. torchvision reads unpacked files only: packed ones are unpacked temporarily."""
    from torchvision import datasets

    dataset_class = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[kind]
    folders = [root / name for name in IDX_FOLDERS[kind]]
    with tempfile.TemporaryDirectory() as temporary:
        place = root
        if not all((folders[0] / name).is_file() for name in IDX_FILES):
            candidates = [[folder / f"{name}.gz" for name in IDX_FILES] for folder in folders]
            complete = [paths for paths in candidates if all(path.is_file() for path in paths)]
            packed = complete[0] if complete else downloads.locate(kind, FILES[kind], root, download)
            place = Path(temporary)
            _decompress(packed, place / IDX_FOLDERS[kind][0])
        splits: dict[str, Split] = {}
        for split in ("train", "test"):
            data = _read(kind, root, partial(dataset_class, place, train=split == "train"))
            splits[split] = data.data[:, None].contiguous(), data.targets.long()
        return splits


def _decompress(files: list[Path], folder: Path) -> None:
    """Write gzip files without their ``.gz`` into a new folder."""
    folder.mkdir(parents=True)
    for path in files:
        try:
            with gzip.open(path) as source, (folder / path.stem).open("wb") as sink:
                shutil.copyfileobj(source, sink)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}): delete it and download it again.") from error

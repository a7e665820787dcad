"""Read data sets of image files from their archives without unpacking them, or from a folder where they are unpacked."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from mkdt.config.catalogue import DATASETS, FILES
from mkdt.data.readers import downloads
from mkdt.errors import UserError

# Every image and list of these sets is far smaller; a member that claims to be larger is a decompression bomb.
LARGEST_MEMBER = 256 << 20
UNREADABLE = (OSError, EOFError, KeyError, ValueError, IndexError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class Container(Protocol):
    """A folder or an archive that holds the files of a data set."""

    path: Path

    def texts(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the contents of a few small files by name; missing ones are left out."""

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield each named file and a function that reads it, always in the same order; missing files are left out."""


@dataclass
class Folder:
    """Files below a folder."""

    path: Path

    def texts(self, names: Collection[str]) -> dict[str, bytes]:
        """See ``Container``."""
        return {name: (self.path / name).read_bytes() for name in names if (self.path / name).is_file()}

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """See ``Container``; the order is by name."""
        for name in sorted(names):
            yield name, partial(_file_bytes, self.path / name)


def _file_bytes(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe would block
        raise OSError("is no file, or a link to nothing")
    if path.stat().st_size > LARGEST_MEMBER:
        raise OSError(f"has {path.stat().st_size} bytes")
    return path.read_bytes()


@dataclass
class Zip:
    """Members of a zip archive."""

    path: Path

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def texts(self, names: Collection[str]) -> dict[str, bytes]:
        """See ``Container``."""
        return {name: read() for name, read in self.read(names)}

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """See ``Container``; the order is by name. Members are decompressed when they are read."""
        there = set(self._archive.namelist())
        for name in sorted(there.intersection(names)):
            yield name, partial(_zip_bytes, self._archive, self._archive.getinfo(name))


def _zip_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > LARGEST_MEMBER:
        raise OSError(f"claims to be {member.file_size} bytes")
    return archive.read(member)


@dataclass
class Tar:
    """Regular members of a tar archive, compressed or not; links and devices are never followed."""

    path: Path

    def texts(self, names: Collection[str]) -> dict[str, bytes]:
        """See ``Container``."""
        return {name: read() for name, read in self.read(names)}

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """See ``Container``; the order is that of the archive, which is read once from its start."""
        wanted = set(names)
        with tarfile.open(self.path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in wanted:
                    continue
                wanted.discard(name)
                yield name, partial(_content, _tar_bytes(archive, member))
                if not wanted:
                    return


def _tar_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    """Return the bytes of a member, read at once because the stream moves on; or a sentence that says why it has none."""
    if not member.isreg():
        return "is a link or a device in the archive"
    if member.size > LARGEST_MEMBER:
        return f"claims to be {member.size} bytes"
    file = archive.extractfile(member)
    assert file is not None, "regular members have content"
    return file.read()


def _content(result: bytes | str) -> bytes:
    if isinstance(result, str):
        raise OSError(result)
    return result


@dataclass
class Pictures:
    """A data set of image files.

    Attributes:
        container: the folder or archive that holds the files.
        names: file names by published split (``train``; ``validation`` and ``test`` if they exist), in published order.
        labels: classes, numbered from 0, by split; empty if the set is unlabelled.
    """

    container: Container
    names: dict[str, list[str]]
    labels: dict[str, list[int]] = field(default_factory=dict)


def open_pictures(kind: str, root: str | Path, download: bool) -> Pictures:
    """Open a published data set of image files: its archive under ``root``, or the folder where torchvision unpacked it.

    Raises:
        UserError: files are missing, damaged, cannot be downloaded, or do not hold the published images.
    """
    unpacked, open_set = SETS[kind]
    folder, archives = Path(root) / unpacked, [Path(root) / file.name for file in FILES[kind]]
    if folder.is_dir() and not all(path.is_file() for path in archives):
        place = folder
        parts: list[Container] = [Folder(Path(root) / Path(file.name).parent) for file in FILES[kind]]
    else:
        paths = downloads.locate(kind, FILES[kind], root, download)
        place = paths[-1]
        parts = [Zip(p) if p.suffix == ".zip" else Folder(p.parent) if p.suffix == ".mat" else Tar(p) for p in paths]
    try:
        pictures = open_set(parts)
    except UNREADABLE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"data set '{kind}': {place} is not as published ({reason}): download it again.") from error
    facts = DATASETS[kind]
    for split, published in (("train", facts.train), ("validation", facts.validation), ("test", facts.test)):
        listed = len(pictures.names.get(split, []))
        if listed != published:
            raise UserError(
                f"data set '{kind}': {place} lists {listed} {split} images, published are {published}: download it again."
            )
    return pictures


def _lines(text: bytes) -> list[str]:
    return [line for line in text.decode("utf-8").splitlines() if line.strip()]


def _mat(content: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        matrices: dict[str, Any] = loadmat(io.BytesIO(content), squeeze_me=True)
    except Exception as error:  # MatReadError, and any error of its parser
        raise ValueError(f"no MATLAB file: {error}") from error
    return matrices


def _tiny_imagenet(parts: list[Container]) -> Pictures:
    """Read ``wnids.txt`` (classes), ``train/WNID/WNID_boxes.txt`` (training images), ``val_annotations.txt`` (test)."""
    container, top = parts[0], "tiny-imagenet-200"
    texts = container.texts([f"{top}/wnids.txt", f"{top}/val/val_annotations.txt"])
    classes = sorted(_lines(texts[f"{top}/wnids.txt"]))
    number = {name: k for k, name in enumerate(classes)}
    lists = {name: f"{top}/train/{name}/{name}_boxes.txt" for name in classes}
    boxes = container.texts(list(lists.values()))
    train = [
        (f"{top}/train/{name}/images/{line.split(chr(9))[0]}", number[name])
        for name in classes
        for line in _lines(boxes[lists[name]])
    ]
    rows = [line.split("\t") for line in _lines(texts[f"{top}/val/val_annotations.txt"])]
    test = [(f"{top}/val/images/{row[0]}", number[row[1]]) for row in rows]
    return _pictures(container, train, test)


def _aircraft(parts: list[Container]) -> Pictures:
    """Read the variants as classes and ``trainval`` as the training split."""
    container, top = parts[0], "fgvc-aircraft-2013b/data"
    names = {"train": f"{top}/images_variant_trainval.txt", "test": f"{top}/images_variant_test.txt"}
    texts = container.texts([*names.values(), f"{top}/variants.txt"])
    number = {name.strip(): k for k, name in enumerate(_lines(texts[f"{top}/variants.txt"]))}
    splits = {
        split: [
            (f"{top}/images/{image}.jpg", number[variant.strip()])
            for image, variant in (line.split(" ", 1) for line in _lines(texts[name]))
        ]
        for split, name in names.items()
    }
    return _pictures(container, splits["train"], splits["test"])


def _cub200(parts: list[Container]) -> Pictures:
    """Read three tables by image number: its file, its class (from 1) and whether it is a training image."""
    container, top = parts[0], "CUB_200_2011"
    tables = ("images", "image_class_labels", "train_test_split")
    texts = container.texts([f"{top}/{name}.txt" for name in tables])
    files, labels, training = (
        dict(line.split(" ", 1) for line in _lines(texts[f"{top}/{name}.txt"])) for name in tables
    )
    rows = [(f"{top}/images/{files[n].strip()}", int(labels[n]) - 1, training[n].strip() == "1") for n in files]
    return _pictures(
        container,
        [(name, label) for name, label, trains in rows if trains],
        [(name, label) for name, label, trains in rows if not trains],
    )


def _dogs(parts: list[Container]) -> Pictures:
    """Read ``train_list.mat`` and ``test_list.mat``: files below ``Images`` and classes (from 1)."""
    lists, container = parts
    texts = lists.texts(["train_list.mat", "test_list.mat"])
    splits = []
    for name in ("train_list.mat", "test_list.mat"):
        matrices = _mat(texts[name])
        files = [f"Images/{file}" for file in matrices["file_list"].tolist()]
        splits.append([(file, int(label) - 1) for file, label in zip(files, matrices["labels"].tolist(), strict=True)])
    return _pictures(container, *splits)


def _flowers102(parts: list[Container]) -> Pictures:
    """Read ``setid.mat`` (image numbers by split) and ``imagelabels.mat`` (class, from 1, by image number)."""
    sets, labels = (
        _mat(part.texts([n])[n]) for part, n in zip(parts[:2], ("setid.mat", "imagelabels.mat"), strict=True)
    )
    classes = labels["labels"].tolist()
    splits = [
        [(f"jpg/image_{n:05d}.jpg", int(classes[n - 1]) - 1) for n in sets[key].tolist()]
        for key in ("trnid", "tstid", "valid")
    ]
    return _pictures(parts[2], *splits)


def _pictures(
    container: Container,
    train: Iterable[tuple[str, int]],
    test: Iterable[tuple[str, int]],
    validation: Iterable[tuple[str, int]] = (),
) -> Pictures:
    splits = {"train": list(train), "test": list(test), "validation": list(validation)}
    return Pictures(
        container,
        {split: [name for name, _ in rows] for split, rows in splits.items() if rows},
        {split: [label for _, label in rows] for split, rows in splits.items() if rows},
    )


# Kind: the folder under data.root that exists if the set is unpacked, and the function that lists its images.
SETS: dict[str, tuple[str, Callable[[list[Container]], Pictures]]] = {
    "tiny_imagenet": ("tiny-imagenet-200", _tiny_imagenet),
    "aircraft": ("fgvc-aircraft-2013b", _aircraft),
    "cub200": ("CUB_200_2011", _cub200),
    "dogs": ("stanford_dogs/Images", _dogs),
    "flowers102": ("flowers-102/jpg", _flowers102),
}

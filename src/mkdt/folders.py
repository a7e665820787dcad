"""A directory tree of images as a data set: its splits, classes and sizes. No torch here: configs are checked with it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mkdt.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
HELD_OUT = {"validation": "val", "test": "test"}


@dataclass(frozen=True)
class Tree:
    """What lies in a folder.

    Attributes:
        names: paths below the folder, by published split, in the order of their code points.
        classes: names of the class folders, ascending; empty where the images are unlabelled.
        labels: the class of each name, by split; empty where there are none.
    """

    names: dict[str, list[str]]
    classes: list[str]
    labels: dict[str, list[int]]


@cache
def scan(path: str, labelled: bool) -> Tree:
    """List a folder once a process: ``train/``, ``val/``, ``test/`` where there is a ``train/``, else one split ``train``.

    Folders directly below a split are its classes, whatever lies deeper belongs to them; folders without images are no
    classes. Where there is no ``test/``, ``val/`` is the test split, as for ImageNet. Hidden files and other suffixes
    than ``SUFFIXES`` are passed over, links are followed, loops of links end.

    Args:
        path: the folder.
        labelled: whether folders are classes; false takes every image as unlabelled.

    Raises:
        UserError: no folder, no images, images beside class folders, or a held-out class that training lacks.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"the image folder {root} does not exist or is no folder.")
    try:
        return _scan(root, labelled)
    except OSError as error:
        raise UserError(f"the image folder {root} cannot be read ({error}).") from error


def _scan(root: Path, labelled: bool) -> Tree:
    folders = {"train": ""}
    if (root / "train").is_dir():
        folders = {"train": "train/"} | {s: f"{f}/" for s, f in HELD_OUT.items() if (root / f).is_dir()}
        if "test" not in folders and "validation" in folders:
            folders["test"] = folders.pop("validation")
    names = {split: sorted(_images(root / folder, folder)) for split, folder in folders.items()}
    names = {split: found for split, found in names.items() if found or split == "train"}
    if not names["train"]:
        raise UserError(f"the image folder {root / folders['train']} has no images ({', '.join(SUFFIXES)}).")
    if not labelled:
        return Tree(names, [], {})
    owners = {s: [n[len(folders[s]) :].split("/")[:-1][:1] for n in found] for s, found in names.items()}
    loose = [n for s, found in names.items() for n, owner in zip(found, owners[s], strict=True) if not owner]
    if len(loose) == sum(map(len, names.values())):
        return Tree(names, [], {})
    if loose:
        raise UserError(
            f"the image folder {root} has images beside class folders (such as {shown(loose[0])}): move them into one, "
            "or say labelled: false."
        )
    classes = sorted({owner[0] for owner in owners["train"]})
    number = {name: k for k, name in enumerate(classes)}
    for split in owners:
        unknown = sorted({owner[0] for owner in owners[split]} - set(classes))
        if unknown:
            raise UserError(
                f"the image folder {root / folders[split]} has the class '{unknown[0]}', which train/ lacks."
            )
    return Tree(names, classes, {split: [number[owner[0]] for owner in owners[split]] for split in owners})


def _images(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of the images below a folder, with ``prefix``; each real folder once on the way down, so that loops end."""
    pending = [(str(folder), prefix, frozenset[tuple[int, int]]())]
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in above:
            continue
        above = above | {(status.st_dev, status.st_ino)}
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    pending.append((entry.path, f"{prefix}{entry.name}/", above))
                elif entry.name.lower().endswith(SUFFIXES):
                    yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def shown(name: str) -> str:
    """A file name for people: bytes that are no text are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")

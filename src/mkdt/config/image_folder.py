"""An image folder as a data set: its splits, classes and sizes. No torch here, because the config check imports it."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mkdt.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
HELD_OUT = {"validation": "val", "test": "test"}
WORTH_KEEPING = 10_000  # images: listing fewer is as fast as reading the stored summary
CLOCK_TICK = (
    2_000_000_000  # nanoseconds: a folder changed later than this ago may change again with the same time stamp
)


@dataclass(frozen=True)
class Tree:
    """The images of a folder.

    Attributes:
        names: paths below the folder, by published split, in the order of their code points.
        classes: names of the class folders, ascending; empty if the images are unlabelled.
        labels: index into ``classes`` of each name, by split; empty if the images are unlabelled.
        folders: every folder that was listed, with the time of its last change in nanoseconds.
    """

    names: dict[str, list[str]]
    classes: list[str]
    labels: dict[str, list[int]]
    folders: dict[str, int] = field(default_factory=dict, compare=False)

    def summary(self) -> dict[str, Any]:
        """Return the number of images by split, the number of classes, and a digest of all names."""
        sha = hashlib.sha256()
        for split in sorted(self.names):
            for name in self.names[split]:
                sha.update(os.fsencode(name) + b"\0")
        counts: dict[str, Any] = {split: len(names) for split, names in self.names.items()}
        return counts | {"classes": len(self.classes), "names": sha.hexdigest()[:16]}


@cache
def find(path: str, labelled: bool, memory: Path) -> dict[str, Any]:
    """Return ``Tree.summary`` of a folder; list a large folder again only if one of its subfolders changed.

    Args:
        path, labelled: as for ``scan``.
        memory: folder for stored summaries; small image folders are not stored.

    Raises:
        UserError: as ``scan``.
    """
    file = memory / f"{hashlib.sha256(json.dumps([os.path.abspath(path), labelled]).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, AttributeError):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["folders"] == {folder: os.stat(folder).st_mtime_ns for folder in stored["folders"]}:
            summary: dict[str, Any] = stored["found"]
            return summary
    tree = scan(path, labelled)
    settled = time.time_ns() - max(tree.folders.values()) > CLOCK_TICK
    if settled and sum(map(len, tree.names.values())) >= WORTH_KEEPING:
        with suppress(OSError):  # the stored summary only saves time
            memory.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"folders": tree.folders, "found": tree.summary()}), encoding="utf-8")
            temporary.replace(file)
    return tree.summary()


def scan(path: str, labelled: bool) -> Tree:
    """List the images of a folder.

    If there is a folder ``train/``, the splits are ``train/``, ``val/`` and ``test/``; otherwise all images are the
    split ``train``. If there is no ``test/``, ``val/`` is the test split, as for ImageNet. Folders directly below a
    split are its classes; images in deeper folders belong to them. Folders without images are not classes. Hidden files
    and files with a suffix not in ``SUFFIXES`` are ignored. Links are followed, each real folder once on a path.

    Args:
        path: the folder.
        labelled: whether folders are classes; if false, all images are unlabelled.

    Raises:
        UserError: no folder, no images, images beside class folders, or a held-out class missing from training.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"the image folder {root} does not exist or is no folder.")
    try:
        folders = _split_folders(root)
        times: dict[str, int] = {}
        names = {split: sorted(_images(root / folder, folder, times)) for split, folder in folders.items()}
        if folders["train"]:
            times[str(root)] = root.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"the image folder {root} cannot be read ({error}).") from error
    names = {split: images for split, images in names.items() if images or split == "train"}
    if not names["train"]:
        raise UserError(f"the image folder {root / folders['train']} has no images ({', '.join(SUFFIXES)}).")
    classes, labels = _classes(root, folders, names) if labelled else ([], {})
    return Tree(names, classes, labels, times)


def _split_folders(root: Path) -> dict[str, str]:
    """Folder of each split below ``root``, with a slash at the end; empty if ``root`` itself is the training split."""
    if not (root / "train").is_dir():
        return {"train": ""}
    folders = {"train": "train/"} | {s: f"{f}/" for s, f in HELD_OUT.items() if (root / f).is_dir()}
    for other in sorted(set(os.listdir(root)) - {folder.rstrip("/") for folder in folders.values()}):
        if other.startswith(".") or not (root / other).is_dir():
            continue
        if next(_images(root / other, "", {}), None) is not None:
            raise UserError(
                f"the image folder {root} has train/ and beside it {shown(other)}/ with images, which is no split: "
                "move it away, or rename train/ if that is a class."
            )
    if "test" not in folders and "validation" in folders:
        folders["test"] = folders.pop("validation")
    return folders


def _classes(
    root: Path, folders: Mapping[str, str], names: Mapping[str, list[str]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Classes and labels as in ``Tree``; both empty if no image lies in a class folder."""
    class_of = {split: [_class_folder(name[len(folders[split]) :]) for name in names[split]] for split in names}
    loose = [name for split in names for name, c in zip(names[split], class_of[split], strict=True) if c is None]
    if len(loose) == sum(map(len, names.values())):
        return [], {}
    for split in names:
        if split != "train" and any(class_of["train"]) and not any(class_of[split]):
            raise UserError(
                f"the image folder {root / folders[split]} has no class folders, but train/ has: move it away (images "
                "without labels cannot be scored), or say labelled: false."
            )
    if loose:
        raise UserError(
            f"the image folder {root} has images beside class folders (such as {shown(loose[0])}): move them into one, "
            "or say labelled: false."
        )
    classes = sorted(set(filter(None, class_of["train"])))
    number: dict[str | None, int] = {name: k for k, name in enumerate(classes)}
    for split in names:
        unknown = sorted(name for name in set(class_of[split]) - set(number) if name)
        if unknown:
            raise UserError(
                f"the image folder {root / folders[split]} has the class '{unknown[0]}', which train/ lacks."
            )
    return classes, {split: [number[name] for name in class_of[split]] for split in names}


def _class_folder(name: str) -> str | None:
    """First folder of a path below its split; None if the image lies beside the class folders."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def _images(folder: Path, prefix: str, times: dict[str, int]) -> Iterator[str]:
    """Yield the paths of the images below a folder, starting with ``prefix``.

    The time of the last change of each listed folder is added to ``times``. A folder that contains itself through links
    is listed once on each path, so loops of links end.
    """
    pending = [(str(folder), prefix, frozenset[tuple[int, int]]())]
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in above:
            continue
        times[here] = status.st_mtime_ns
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
    """Return a file name for messages: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")

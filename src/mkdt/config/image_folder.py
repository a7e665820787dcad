"""A directory tree of images as a data set: its splits, classes and sizes. No torch here: configs are checked with it."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mkdt.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
HELD_OUT = {"validation": "val", "test": "test"}
WORTH_KEEPING = 10_000  # images: listing fewer takes no longer than reading what is remembered of them


@dataclass(frozen=True)
class Tree:
    """What lies in a folder.

    Attributes:
        names: paths below the folder, by published split, in the order of their code points.
        classes: names of the class folders, ascending; empty where the images are unlabelled.
        labels: the class of each name, by split; empty where there are none.
        folders: every folder that was listed, with the time of its last change in nanoseconds.
    """

    names: dict[str, list[str]]
    classes: list[str]
    labels: dict[str, list[int]]
    folders: dict[str, int] = field(default_factory=dict, compare=False)

    def found(self) -> dict[str, Any]:
        """The number of images of each split, of classes, and a digest of all names: what a config depends on."""
        sha = hashlib.sha256()
        for split in sorted(self.names):
            for name in self.names[split]:
                sha.update(os.fsencode(name) + b"\0")
        counts: dict[str, Any] = {split: len(names) for split, names in self.names.items()}
        return counts | {"classes": len(self.classes), "names": sha.hexdigest()[:16]}


@cache
def find(path: str, labelled: bool, memory: Path) -> dict[str, Any]:
    """What ``Tree.found`` says of a folder; a large one is listed again only if one of its folders changed.

    Args:
        path, labelled: as for ``scan``.
        memory: folder for what is remembered; small trees write nothing.

    Raises:
        UserError: as ``scan``.
    """
    file = memory / f"{hashlib.sha256(json.dumps([os.path.abspath(path), labelled]).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, AttributeError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["folders"] == {folder: os.stat(folder).st_mtime_ns for folder in known["folders"]}:
            found: dict[str, Any] = known["found"]
            return found
    tree = scan(path, labelled)
    settled = (
        time.time_ns() - max(tree.folders.values()) > 2_000_000_000
    )  # within a tick of the clock it may yet change
    if settled and sum(map(len, tree.names.values())) >= WORTH_KEEPING:
        with suppress(OSError):  # a convenience only
            memory.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"folders": tree.folders, "found": tree.found()}), encoding="utf-8")
            temporary.replace(file)
    return tree.found()


def scan(path: str, labelled: bool) -> Tree:
    """List a folder: ``train/``, ``val/``, ``test/`` where there is a ``train/``, else one split ``train``.

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
        others = set(os.listdir(root)) - {folder.rstrip("/") for folder in folders.values()}
        for other in sorted(others):
            if other.startswith(".") or not (root / other).is_dir():
                continue
            if next(_images(root / other, "", {}), None) is not None:
                raise UserError(
                    f"the image folder {root} has train/ and beside it {shown(other)}/ with images, which is no split: "
                    "move it away, or rename train/ if that is a class."
                )
        if "test" not in folders and "validation" in folders:
            folders["test"] = folders.pop("validation")
    seen: dict[str, int] = {}
    names = {split: sorted(_images(root / folder, folder, seen)) for split, folder in folders.items()}
    if folders["train"]:
        seen[str(root)] = root.stat().st_mtime_ns
    names = {split: found for split, found in names.items() if found or split == "train"}
    if not names["train"]:
        raise UserError(f"the image folder {root / folders['train']} has no images ({', '.join(SUFFIXES)}).")
    if not labelled:
        return Tree(names, [], {}, seen)
    owners = {s: [n[len(folders[s]) :].split("/")[:-1][:1] for n in found] for s, found in names.items()}
    loose = [n for s, found in names.items() for n, owner in zip(found, owners[s], strict=True) if not owner]
    if len(loose) == sum(map(len, names.values())):
        return Tree(names, [], {}, seen)
    for split in owners:
        if split != "train" and any(owners["train"]) and not any(owners[split]):
            raise UserError(
                f"the image folder {root / folders[split]} has no class folders, but train/ has: move it away (images "
                "without labels cannot be scored), or say labelled: false."
            )
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
    labels = {split: [number[owner[0]] for owner in owners[split]] for split in owners}
    return Tree(names, classes, labels, seen)


def _images(folder: Path, prefix: str, seen: dict[str, int]) -> Iterator[str]:
    """Paths of the images below a folder, with ``prefix``; each real folder once on the way down, so that loops end.

    What is listed is noted in ``seen`` with its time of change.
    """
    pending = [(str(folder), prefix, frozenset[tuple[int, int]]())]
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in above:
            continue
        seen[here] = status.st_mtime_ns
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

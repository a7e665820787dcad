"""What image folders hold, as the config check sees it: a large folder is listed once, not by every job. No torch here."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mkdt.config import image_files, image_folder
from mkdt.config.result_folders import LISTINGS
from mkdt.errors import UserError

# In units of ``Walk.effort``: less takes some 20 ms, which no job notices.
WORTH_KEEPING = 10_000
# Nanoseconds: a folder changed later than this ago may change again with the same time stamp.
CLOCK_TICK = 2_000_000_000


@dataclass(frozen=True)
class Listing:
    """What the config check keeps of a folder.

    Attributes:
        found: ``Tree.summary``.
        remarks: ``Tree.remarks``.
        classes: number of training images by class; empty if the images are unlabelled.
    """

    found: dict[str, Any]
    remarks: list[str]
    classes: dict[str, int]


@cache
def find(path: str, labelled: bool, results: Path) -> Listing:
    """Return what a folder holds; list a large one again only if one of its subfolders or unnamed files changed.

    Args:
        path, labelled: as for ``image_folder.scan``.
        results: folder of the results, which must not be part of the images; it keeps listings of large folders.

    Raises:
        UserError: as ``image_folder.scan``; or the folder contains the results or lies in them.
    """
    if os.path.isdir(path):  # else scan says what is wrong
        _refuse_results(path, [path], results)
    # A listing by other code, or without pillow-heif, may lack images.
    code = [Path(module).read_bytes() for module in (image_files.__file__, image_folder.__file__)]
    key = repr([os.path.abspath(path), labelled, image_files.reads_heif(), code])
    file = results / LISTINGS / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["times"] == {place: os.stat(place).st_mtime_ns for place in stored["times"]}:
            return Listing(**stored["listing"])
    tree = image_folder.scan(path, labelled)
    _refuse_results(path, tree.folders, results)
    counts = Counter(tree.labels.get("train", []))
    classes = {name: counts[label] for label, name in enumerate(tree.classes)}
    listing, times = Listing(tree.summary(), tree.remarks, classes), tree.folders | tree.opened
    settled = time.time_ns() - max(times.values()) > CLOCK_TICK
    if settled and tree.effort >= WORTH_KEEPING:
        with suppress(OSError):  # the stored listing only saves time
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"times": times, "listing": vars(listing)}), encoding="utf-8")
            temporary.replace(file)
    return listing


def _refuse_results(path: str, folders: Iterable[str], results: Path) -> None:
    """Refuse an image folder that reaches the pictures of the runs: each run would add some to its images."""
    root, own = Path(os.path.realpath(path)), Path(os.path.realpath(results))
    within = [folder for folder in folders if Path(os.path.realpath(folder)).is_relative_to(own)]
    if within or own.is_relative_to(root):
        raise UserError(
            f"the image folder {path} {'leads into' if within else 'contains'} {results}/, where each run adds pictures of "
            "its own: move the images to a folder outside of it that does not contain it."
        )

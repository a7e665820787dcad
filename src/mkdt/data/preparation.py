"""Prepare a data set: decode it to uint8 tensors, split it by a seed, compute the statistics of the training images."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mkdt import seeding
from mkdt.config.catalogue import DATASETS
from mkdt.config.image_files import shown, some
from mkdt.config.image_folder import scan
from mkdt.data.copies import Copies, copies
from mkdt.data.pictures import NO_CALLBACKS, Callbacks, Resume, SplitRows, decode_splits
from mkdt.data.pixels import evenly_spaced_rows, pixel_statistics, resize
from mkdt.data.readers.archives import SETS, Folder, Pictures, open_pictures
from mkdt.data.readers.arrays import Split, load_raw
from mkdt.errors import UserError

log = logging.getLogger(__name__)


def prepare(
    kind: str,
    root: str | Path,
    *,
    train: int | None,
    validation: int | None,
    test: int | None,
    image_size: int | None,
    seed: int,
    limit: int | None = None,
    download: bool = True,
    path: str | None = None,
    channels: int | None = None,
    labelled: bool = True,
    found: Mapping[str, int | str] | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    threads: int = 1,
    resume: Resume | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode a data set and split it, stratified by class if it has labels.

    Args:
        kind: a name in ``catalogue.DATASETS``, or ``folder``.
        root: folder with the files of the data set.
        train: number of training images to keep; None keeps all that the other splits leave.
        validation: number of images split off the training images; None takes the published split.
        test: number of images split off if the data set has no published test split; None otherwise.
        image_size: height and width to resize to (bilinear, antialiased); None keeps the native size.
        seed: determines the splits.
        limit: maximum number of images of each split, evenly spaced; None keeps all.
        download: whether missing files may be downloaded.
        path: image folder, for kind ``folder``.
        channels: 1 or 3, for kind ``folder``; None means 3.
        labelled: whether the subfolders are classes, for kind ``folder``.
        found: ``image_folder.Tree.summary`` from the config check, for kind ``folder``; None skips the comparison.
        on_error: ``fail`` or ``skip`` if image files cannot be decoded.
        threads: number of threads that decode; it changes no result.
        resume: returns the state that an interrupted job saved and a folder for decoded pixels; None decodes in memory.
        callbacks: called after every ``pictures.CHUNK`` image files.

    Returns:
        tensors and notes. For each split ``train``, ``validation``, ``test``: ``{split}_images`` uint8
        [n,C,H,W], ``{split}_labels`` int64 [n] (if there are labels), ``{split}_index`` int64 [n] (row in the published
        order). Besides, ``mean`` and ``std`` float32 [C] of the training pixels in [0, 1]. Notes: ``skipped``, names of
        skipped files, ``copies``, the numbers of images that equal a training image by split, and ``classes``, their
        names by label; each where there are some.

    Raises:
        UserError: files are missing or damaged, the folder changed, or a class is too small to be split.
    """
    published = _open(kind, root, download, path, labelled, found)
    splits = _choose_rows(published, kind, path or "", seed, train, {"test": test, "validation": validation})
    if limit is not None:
        splits = {split: (source, evenly_spaced_rows(rows, limit)) for split, (source, rows) in splits.items()}
    skipped: list[str] = []
    if published.pictures:
        facts = DATASETS.get(kind)
        size = image_size or (facts.size if facts else 0)
        shape = (facts.channels if facts else channels or 3, size, size)
        images, splits, skipped = decode_splits(published.pictures, splits, shape, on_error, threads, resume, callbacks)
    else:
        images = {split: published.arrays[source][0][rows] for split, (source, rows) in splits.items()}
        if image_size is not None:
            images = {split: resize(pixels, image_size) for split, pixels in images.items()}
    tensors: dict[str, Tensor] = {}
    for split, (source, rows) in splits.items():
        tensors[f"{split}_images"], tensors[f"{split}_index"] = images[split], rows
        labels = published.labels(source)
        if labels is not None:
            tensors[f"{split}_labels"] = labels[rows]
    tensors["mean"], tensors["std"] = pixel_statistics(tensors["train_images"])
    repeated = copies(tensors)
    _warn_of_copies(published, splits, repeated)
    notes = {"skipped": skipped, "copies": {split: len(one.rows) for split, one in repeated.items()}}
    notes |= {"classes": list(published.classes)}
    return tensors, {key: value for key, value in notes.items() if value}


@dataclass(frozen=True)
class _Published:
    """A data set in its published splits: image files if ``pictures`` is given, else arrays."""

    pictures: Pictures | None = None
    arrays: dict[str, Split] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)  # names by label; empty where they are not known

    def sizes(self) -> dict[str, int]:
        """Number of images by published split; the one split ``all`` if nothing is split."""
        if self.pictures:
            return {split: len(names) for split, names in self.pictures.names.items()}
        return {split: len(images) for split, (images, _) in self.arrays.items()}

    def name(self, split: str, row: int) -> str:
        """What an image is called in messages: its file, or its row in the published split."""
        if self.pictures:
            return shown(self.pictures.names[split][row])
        return f"row {row}" if split == "all" else f"row {row} of {split}"

    def labels(self, split: str) -> Tensor | None:
        """Labels int64 [n] of a published split; None if it is unlabelled."""
        if self.pictures:
            return torch.tensor(self.pictures.labels[split]) if self.pictures.labels else None
        return self.arrays[split][1]


def _open(
    kind: str,
    root: str | Path,
    download: bool,
    path: str | None,
    labelled: bool,
    expected: Mapping[str, int | str] | None,
) -> _Published:
    if kind == "folder":
        assert path is not None, "the config check requires it"
        tree = scan(path, labelled)
        if expected is not None and tree.summary() != dict(expected):
            raise UserError(f"the image folder {path} changed while this ran: start again.")
        for remark in tree.remarks:
            log.warning("%s: %s", path, remark)
        return _Published(Pictures(Folder(Path(path)), tree.names, tree.labels), classes=tree.classes)
    if kind in SETS:
        return _Published(pictures=open_pictures(kind, root, download))
    return _Published(arrays=load_raw(kind, root, download))


def _choose_rows(
    published: _Published, kind: str, path: str, seed: int, train: int | None, held_out: Mapping[str, int | None]
) -> SplitRows:
    """Split off ``held_out`` images (None takes the published split), then keep ``train`` of the remaining images."""
    source_name = f"the image folder {path}" if path else f"the data set of kind '{kind}'"

    def split_off(split: str, rows: Tensor, count: int, stream: int) -> tuple[Tensor, Tensor]:
        if reason := _unsplittable(published, rows, labels, count):
            raise UserError(f"{source_name} cannot be split by class for {split}: {reason}.")
        return _split_off(rows, labels, count, stream)

    sizes = published.sizes()
    source = "all" if "all" in sizes else "train"
    labels = published.labels(source)
    remaining = torch.arange(sizes[source])
    splits: SplitRows = {}
    for split, count in held_out.items():
        if count is not None:
            stream = seeding.derive(seed, f"{split} split", kind)
            remaining, rows = split_off(split, remaining, count, stream)
            splits[split] = source, rows
        elif split in sizes:
            splits[split] = split, torch.arange(sizes[split])
        else:
            splits[split] = source, torch.arange(0)
    if train is not None and train < len(remaining):
        _, remaining = split_off("train", remaining, train, seeding.derive(seed, "train subset", kind))
    return splits | {"train": (source, remaining)}


def _warn_of_copies(published: _Published, splits: SplitRows, found: Mapping[str, Copies]) -> None:
    """Log how many held-out images equal a training image, with one such pair."""
    for split, one in found.items():
        pair = ((split, one.rows[0]), ("train", one.example))
        copy, original = (published.name(splits[part][0], int(splits[part][1][row])) for part, row in pair)
        log.warning(
            "%d of the %d %s images equal a training image exactly (%s equals %s): accuracies on them measure memory",
            len(one.rows), one.total, split, copy, original,
        )  # fmt: skip


def _unsplittable(published: _Published, rows: Tensor, labels: Tensor | None, count: int) -> str:
    """Return why ``count`` of the rows cannot be split off by class; empty if they can."""
    if not 0 < count < len(rows):
        return "" if count == 0 else f"{count} of {len(rows)} images leave none for training"
    if labels is None:
        return ""
    counts = labels[rows].bincount().tolist()
    present = sum(map(bool, counts))
    few = [f"'{published.classes[k]}'" if published.classes else str(k) for k, n in enumerate(counts) if n == 1]
    if few:
        return f"one image is left of the class {some(few)}, and a class needs at least two images"
    if min(count, len(rows) - count) < present:
        return (
            f"{count} of {len(rows)} images are split off, but both parts need one image of each of {present} classes"
        )
    return ""


def _split_off(rows: Tensor, labels: Tensor | None, count: int, random_state: int) -> tuple[Tensor, Tensor]:
    """Split ``count`` of the rows off, stratified by class if there are labels.

    Returns:
        the remaining rows and those split off, both in ascending order.
    """
    from sklearn.model_selection import train_test_split

    if count == 0:
        return rows, rows[:0]
    classes = None if labels is None else labels[rows].numpy()
    remaining, split_off = train_test_split(
        rows.numpy(), test_size=count, stratify=classes, random_state=random_state % 2**32
    )
    return torch.from_numpy(np.sort(remaining)), torch.from_numpy(np.sort(split_off))

"""Data sets: decoded once to uint8 tensors, split by a recorded seed, normalised on use."""

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mkdt import seeding
from mkdt.config.catalogue import DATASETS
from mkdt.config.image_folder import scan
from mkdt.data.pictures import SILENT, Parts, Progress, Resume, decode_parts
from mkdt.data.pixels import in_chunks, resize, spread
from mkdt.data.readers.archives import SETS, Folder, Pictures, open_pictures
from mkdt.data.readers.arrays import load_raw
from mkdt.errors import UserError


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
    progress: Progress = SILENT,
) -> tuple[dict[str, Tensor], list[str]]:
    """Decode a data set and split it, stratified by class where it has labels.

    Args:
        kind: a name of ``catalog.DATASETS``, or ``folder``.
        root: folder with the data set's files.
        train: number of training images to keep; None keeps all that the other splits leave.
        validation: number of images split off the training images; None takes the published split.
        test: number of images split off where the data set has no test split of its own; None elsewhere.
        image_size: height and width to resize to (bilinear, antialiased); None keeps the native size.
        seed: decides the splits.
        limit: at most so many images of each split, spread evenly over it; None keeps all.
        download: whether missing files may be downloaded.
        path, channels, labelled: ``folder``: where it lies, 1 or 3, and whether its folders are classes.
        found: ``folder``: what the config was checked with (``folders.Tree.found``).
        on_error: what becomes of image files that cannot be decoded.
        threads: workers that decode; no result depends on them.
        resume: gives the state that an earlier job left and a folder for decoded pixels; None decodes in memory.
        progress: what is told of it, by chunks of ``images.CHUNK`` files.

    Returns:
        for each split ``train``, ``validation``, ``test``: ``{split}_images`` uint8 [n,C,H,W],
        ``{split}_labels`` int64 [n] (where there are labels), ``{split}_index`` int64 [n] (row in the published order);
        and ``mean``, ``std`` float32 [C] of the training pixels in [0, 1]; and the names of skipped files.

    Raises:
        UserError: files are missing or damaged, or a class is too small to be split.
    """
    pictures: Pictures | None = None
    if kind == "folder":
        assert path is not None, "the config check asks for it"
        tree = scan(path, labelled)
        if found is not None and tree.found() != dict(found):
            raise UserError(f"the image folder {path} changed while this ran: start again.")
        pictures = Pictures(Folder(Path(path)), tree.names, tree.labels)
    elif kind in SETS:
        pictures = open_pictures(kind, root, download)
    raw = {} if pictures else load_raw(kind, root, download)
    if pictures:
        sizes = {split: len(names) for split, names in pictures.names.items()}
        labels = {split: torch.tensor(pictures.labels[split]) if pictures.labels else None for split in sizes}
    else:
        sizes, labels = {s: len(part[0]) for s, part in raw.items()}, {s: part[1] for s, part in raw.items()}

    first = "all" if "all" in sizes else "train"
    index, empty = torch.arange(sizes[first]), torch.arange(0)
    parts: Parts = {}  # split: the published split it comes from, and rows of that
    for split, count in (("test", test), ("validation", validation)):
        if count is not None:
            purpose = seeding.derive(seed, f"{split} split", kind)
            index, held_out = _split(index, labels[first], count, purpose, kind)
            parts[split] = first, held_out
        else:
            parts[split] = (split, torch.arange(sizes[split])) if split in sizes else (first, empty)
    if train is not None and train < len(index):
        _, index = _split(index, labels[first], train, seeding.derive(seed, "train subset", kind), kind)
    parts["train"] = first, index
    if limit is not None:
        parts = {split: (published, spread(rows, limit)) for split, (published, rows) in parts.items()}

    skipped: list[str] = []
    if pictures:
        facts = DATASETS.get(kind)
        size = image_size or (facts.size if facts else 0)
        shape = (facts.channels if facts else channels or 3, size, size)
        images, parts, skipped = decode_parts(pictures, parts, shape, on_error, threads, resume, progress)
    else:
        taken = {split: raw[published][0][rows] for split, (published, rows) in parts.items()}
        images = {s: pixels if image_size is None else resize(pixels, image_size) for s, pixels in taken.items()}
    tensors: dict[str, Tensor] = {}
    for split, (published, rows) in parts.items():
        tensors[f"{split}_images"], tensors[f"{split}_index"] = images[split], rows
        known = labels[published]
        if known is not None:
            tensors[f"{split}_labels"] = known[rows]
    tensors["mean"], tensors["std"] = _statistics(tensors["train_images"])
    return tensors, skipped


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation float32 [C] of pixels in [0, 1]: from sums of whole numbers, so exact in any order."""
    count = images.numel() // images.shape[1]
    total = square = torch.zeros(images.shape[1], dtype=torch.int64)
    for chunk in in_chunks(images):
        total = total + chunk.sum((0, 2, 3), dtype=torch.int64)
        square = square + chunk.int().square().sum((0, 2, 3), dtype=torch.int64)
    sums = list(zip(total.tolist(), square.tolist(), strict=True))
    mean = [s / (255 * count) for s, _ in sums]
    deviation = [sqrt(max((count * q - s * s) / (255 * count) ** 2, 1e-12)) for s, q in sums]
    return torch.tensor(mean), torch.tensor(deviation)


def _split(index: Tensor, labels: Tensor | None, held_out: int, random_state: int, kind: str) -> tuple[Tensor, Tensor]:
    """Split ``held_out`` rows off ``index``, stratified by class where there are labels; both in ascending order."""
    from sklearn.model_selection import train_test_split

    if held_out == 0:
        return index, index[:0]
    classes = None if labels is None else labels[index].numpy()
    try:
        kept, out = train_test_split(
            index.numpy(), test_size=held_out, stratify=classes, random_state=random_state % 2**32
        )
    except ValueError as error:
        raise UserError(
            f"data set of kind '{kind}' cannot be split by class ({error}): a class needs at least two images."
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(out))

"""Targets from elsewhere: representations that somebody else computed, checked against the training images."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mkdt.artifacts import HEADER_KEY, Artifact
from mkdt.errors import UserError
from mkdt.teacher import external_file as foreign


@dataclass
class Representations:
    """What a file gave.

    Attributes:
        targets: float32 [n,D]; row i belongs to training image i.
        identity: SHA-256 of the file.
        order: how it is known that the rows are in the images' order, for the log.
        level: a warning where it is not known.
    """

    targets: Tensor
    identity: str
    order: str
    level: int = logging.INFO


def load_representations(path: str | Path, data: Artifact, published: int) -> Representations:
    """Read representations and bring them into the order of the training images.

    A file has a tensor ``targets`` (or is nothing but that tensor) and may prove the order of its rows: an ``index``
    int64 with the row of each in the published order of the data set, or an entry ``images`` with the digest that the
    rule data prints for the training images (in the metadata of safetensors, in the dict of a PyTorch file). A
    ``targets.safetensors`` of this project names the data it was made from.

    Args:
        path: ``.safetensors``, ``.npy`` or a PyTorch file.
        data: the source's ``data.safetensors``.
        published: training images of the data set as published: so many rows without ``index`` are in that order.

    Raises:
        UserError: the file cannot be read safely, has no 2-D floating tensor, values that are not finite, another
            number of rows, lacks training images, or proves to be about other images.
    """
    content, metadata = foreign.read(path)
    entries = dict(content) if isinstance(content, Mapping) else {"targets": content}
    targets, index = entries.get("targets"), entries.get("index")
    if not isinstance(targets, Tensor) or targets.ndim != 2 or not targets.is_floating_point():
        shown = (
            f"{targets.dtype} {list(targets.shape)}"
            if isinstance(targets, Tensor)
            else f"the entries {list(entries)[:5]}"
        )
        raise UserError(f"{path}: expected 'targets', floating, of shape [images, D], got {shown}.")
    if not bool(targets.isfinite().all()):
        raise UserError(f"{path}: targets has values that are not finite.")
    rows, count = data.tensor("train_index"), data.shape("train_images")[0]
    images = data.header["digests"]["train_images"]
    claimed = metadata.get("images") or entries.get("images")
    level = logging.INFO
    if HEADER_KEY in metadata:
        if Artifact(path, "targets").header["inputs"].get("data") != data.identity:
            raise UserError(f"{path} was made from other training images (another split, size or data set).")
        order = "made from these training images"
    elif claimed is not None:
        if not isinstance(claimed, str):
            raise UserError(
                f"{path}: images must be the text of a digest (docs/teachers.md), got a {type(claimed).__name__}."
            )
        if claimed != images:
            raise UserError(
                f"{path} is for training images with the digest {claimed}, these have {images}: another split, size or "
                "data set."
            )
        order = "its digest of the training images agrees"
    elif index is not None:
        if (
            not isinstance(index, Tensor)
            or index.shape != (len(targets),)
            or index.dtype != torch.int64
            or len(index.unique()) < len(index)
        ):
            raise UserError(f"{path}: index must be int64 [{len(targets)}], each row of the data set once.")
        place = {int(row): k for k, row in enumerate(index)}
        missing = [row for row in rows.tolist() if row not in place]
        if missing:
            raise UserError(
                f"{path}: index lacks {len(missing)} of the {count} training images (the first is row {missing[0]})."
            )
        targets = targets[torch.tensor([place[row] for row in rows.tolist()])]
        order = "rows taken by its index"
    elif len(targets) == published != count:
        targets, level = targets[rows], logging.WARNING
        order = f"{published} rows are taken to be in the published order of the data set: the file proves no order"
    else:
        level = logging.WARNING
        order = "row i is taken to belong to training image i: the file proves no order"
    if len(targets) != count:
        raise UserError(
            f"{path} has {len(targets)} rows for {count} training images (or {published} in the published order): give "
            "one row an image, or an 'index'."
        )
    return Representations(targets.float().contiguous(), foreign.sha256(path), order, level)

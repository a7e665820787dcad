"""Import targets: representations computed elsewhere, brought into the order of the training images."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkdt.artifacts import HEADER_KEY, Artifact
from mkdt.errors import UserError
from mkdt.teacher.external_file import load_untrusted, sha256


@dataclass
class Representations:
    """Imported targets.

    Attributes:
        targets: float32 [n,D]; row i belongs to training image i.
        identity: SHA-256 of the file.
        order: why the rows are taken to be in the order of the images, for the log.
        level: logging level of ``order``: WARNING if the file does not prove the order, else INFO.
    """

    targets: Tensor
    identity: str
    order: str
    level: int


def load_representations(path: str | Path, data: Artifact, published: int) -> Representations:
    """Load representations and bring them into the order of the training images.

    The file has a tensor ``targets``, or is that tensor. It may prove the order of its rows in one of three ways:
    an ``index`` int64 with the row of each in the published order of the data set; an entry ``images`` with the digest
    that the rule data logs for the training images (in the metadata of safetensors, or in the dict of a PyTorch file);
    or the provenance header of a ``targets.safetensors`` of this project.

    Args:
        path: ``.safetensors``, ``.npy`` or a PyTorch file.
        data: ``data.safetensors`` of the source.
        published: number of training images of the data set as published; that many rows without ``index`` are taken to
            be in the published order.

    Raises:
        UserError: the file cannot be read safely, has no 2-D floating-point tensor, has values that are not finite or
            another number of rows, lacks training images, or belongs to other images.
    """
    targets, entries, metadata = read_representations(path)
    index = entries.get("index")
    digest = metadata.get("images") or entries.get("images")
    rows, count = data.tensor("train_index"), data.shape("train_images")[0]
    level = logging.INFO
    if HEADER_KEY in metadata:
        if Artifact(path, "targets").header["inputs"].get("data") != data.identity:
            raise UserError(f"{path} was made from other training images (another split, size or data set).")
        order = "made from these training images"
    elif digest is not None:
        _expect_digest(path, digest, data.header["digests"]["train_images"])
        order = "its digest of the training images agrees"
    elif index is not None:
        targets = targets[_places(path, index, rows, len(targets))]
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
    return Representations(targets.float().contiguous(), sha256(path), order, level)


def read_representations(path: str | Path) -> tuple[Tensor, dict[Any, Any], dict[str, str]]:
    """Read a file of representations, whatever images they belong to.

    Returns:
        ``targets``, floating [n,D]; all entries of the file by name; and the metadata of safetensors.

    Raises:
        UserError: the file cannot be read safely, or its ``targets`` are not a finite floating-point tensor [n,D].
    """
    content, metadata = load_untrusted(path)
    entries = dict(content) if isinstance(content, Mapping) else {"targets": content}
    targets = entries.get("targets")
    if not isinstance(targets, Tensor):
        got = f"the entries {list(entries)[:5]}"
    elif targets.ndim != 2 or not targets.is_floating_point():
        got = f"{targets.dtype} {list(targets.shape)}"
    elif not bool(targets.isfinite().all()):
        raise UserError(f"{path}: targets has values that are not finite.")
    else:
        return targets, entries, metadata
    raise UserError(f"{path}: expected 'targets', floating, of shape [images, D], got {got}.")


def _expect_digest(path: str | Path, digest: Any, expected: str) -> None:
    """Raise if the digest of the training images in the file is not the expected one."""
    if not isinstance(digest, str):
        raise UserError(
            f"{path}: images must be the text of a digest (docs/teachers.md), got a {type(digest).__name__}."
        )
    if digest != expected:
        raise UserError(
            f"{path} is for training images with the digest {digest}, these have {expected}: another split, size or "
            "data set."
        )


def _places(path: str | Path, index: Any, rows: Tensor, count: int) -> Tensor:
    """Return the place int64 [n] of each training image, in published ``rows``, among the ``count`` rows of the file."""
    if (
        not isinstance(index, Tensor)
        or index.shape != (count,)
        or index.dtype != torch.int64
        or len(index.unique()) < len(index)
    ):
        raise UserError(f"{path}: index must be int64 [{count}], each row of the data set once.")
    place = {int(row): k for k, row in enumerate(index)}
    missing = [row for row in rows.tolist() if row not in place]
    if missing:
        raise UserError(
            f"{path}: index lacks {len(missing)} of the {len(rows)} training images (the first is row {missing[0]})."
        )
    return torch.tensor([place[row] for row in rows.tolist()])

"""Representations from elsewhere: accepted forms, the order of rows, and what is refused."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.errors import UserError
from mkdt.teacher.external_targets import load_representations

PUBLISHED = 10  # rows of the data set, of which seven are training images
ROWS = torch.tensor([0, 2, 3, 5, 6, 8, 9])
ALL = torch.arange(PUBLISHED * 3).reshape(PUBLISHED, 3).float()  # a row says which it is
WANTED = ALL[ROWS]


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    """A source with seven training images of ten."""
    path = tmp_path / "data.safetensors"
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 1, 2, 2)
    artifacts.save(path, {"train_images": images, "train_index": ROWS}, stage="data")
    return Artifact(path, "data")


def safetensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """A user's file."""
    save_file(tensors, path / "theirs.safetensors", metadata or None)
    return path / "theirs.safetensors"


def numpy(path: Path, array: Any) -> Path:
    """A user's file."""
    np.save(path / "theirs.npy", array)
    return path / "theirs.npy"


def pytorch(path: Path, content: Any) -> Path:
    """A user's file."""
    torch.save(content, path / "theirs.pt")
    return path / "theirs.pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("rows", [ROWS, torch.arange(PUBLISHED)])
def test_one_row_an_image_in_any_container(tmp_path: Path, data: Artifact, dtype: torch.dtype, rows: Tensor) -> None:
    """In the order of the training images, or of the data set as published; unproven, so with a warning."""
    values = ALL[rows].to(dtype)
    for path in (
        safetensors(tmp_path, {"targets": values}),
        numpy(tmp_path, values.numpy()),
        pytorch(tmp_path, values),
        pytorch(tmp_path, {"targets": values}),
    ):
        found = load_representations(path, data, PUBLISHED)
        assert found.targets.dtype == torch.float32
        assert torch.equal(found.targets, WANTED)
        assert found.level == logging.WARNING
        assert "proves no order" in found.order


def test_an_index_puts_rows_in_order(tmp_path: Path, data: Artifact) -> None:
    """Shuffled rows with their place in the published order, more of them than are needed or just enough."""
    for shuffled in (torch.randperm(PUBLISHED), ROWS.flip(0)):
        found = load_representations(pytorch(tmp_path, {"targets": ALL[shuffled], "index": shuffled}), data, PUBLISHED)
        assert torch.equal(found.targets, WANTED)
        assert found.level == logging.INFO


def test_the_digest_of_the_images_proves_the_order(tmp_path: Path, data: Artifact) -> None:
    """What the rule data printed, carried in the file; another split of the same data set has another."""
    digest = data.header["digests"]["train_images"]
    for path in (
        safetensors(tmp_path, {"targets": WANTED}, images=digest),
        pytorch(tmp_path, {"targets": WANTED, "images": digest}),
    ):
        assert load_representations(path, data, PUBLISHED).level == logging.INFO
    with pytest.raises(UserError, match=rf"digest 0000, these have {digest}"):
        load_representations(safetensors(tmp_path, {"targets": WANTED}, images="0000"), data, PUBLISHED)


def test_targets_of_this_project_name_their_data(tmp_path: Path, data: Artifact) -> None:
    """From another machine, with the identity of the data in the header."""
    path = tmp_path / "targets.safetensors"
    tensors = {"targets": WANTED, "validation_targets": WANTED.clone()}
    artifacts.save(path, tensors, stage="targets", inputs={"data": data.identity})
    found = load_representations(path, data, PUBLISHED)
    assert torch.equal(found.targets, WANTED)
    assert found.level == logging.INFO
    artifacts.save(path, tensors, stage="targets", inputs={"data": "other"})
    with pytest.raises(UserError, match="other training images"):
        load_representations(path, data, PUBLISHED)


SPOILT = WANTED.clone()
SPOILT[3, 1] = torch.nan
WRONG: list[tuple[Any, str]] = [
    (ALL[:6], "has 6 rows for 7 training images"),
    (ALL[:8], "has 8 rows for 7 training images"),
    (SPOILT, "not finite"),
    (WANTED.long(), r"floating, of shape \[images, D\], got torch.int64"),
    (WANTED[:, 0], r"got torch.float32 \[7\]"),
    ({"features": WANTED}, r"got the entries \['features'\]"),
    ([1, 2], "floating"),
    ({"targets": WANTED, "index": ROWS[:3]}, r"index must be int64 \[7\]"),
    ({"targets": WANTED, "index": ROWS.float()}, r"index must be int64 \[7\]"),
    ({"targets": WANTED, "index": torch.zeros(7, dtype=torch.int64)}, "once"),
    ({"targets": WANTED, "index": list(range(7))}, r"index must be int64 \[7\]"),
    ({"targets": WANTED, "images": ROWS}, "images must be the text of a digest"),
    ({"targets": WANTED, "index": torch.arange(7)}, r"index lacks 2 of the 7 training images \(the first is row 8\)"),
]


@pytest.mark.parametrize(("content", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_targets_is_refused(tmp_path: Path, data: Artifact, content: Any, words: str) -> None:
    """In one sentence with the file, before anything is written."""
    path = pytorch(tmp_path, content)
    with pytest.raises(UserError, match=words) as caught:
        load_representations(path, data, PUBLISHED)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_in_an_array_are_not_unpickled(tmp_path: Path, data: Artifact) -> None:
    """A .npy of objects is a pickle."""
    path = numpy(tmp_path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="more than tensors"):
        load_representations(path, data, PUBLISHED)
    path.with_suffix(".pt").write_bytes(pickle.dumps(WANTED.numpy(), protocol=2))
    with pytest.raises(UserError, match="cannot be read"):
        load_representations(path.with_suffix(".pt"), data, PUBLISHED)

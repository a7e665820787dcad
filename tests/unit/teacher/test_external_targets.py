"""Imported targets: accepted files, the order of rows, and refused files."""

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

PUBLISHED = 10  # rows of the data set; seven are training images
ROWS = torch.tensor([0, 2, 3, 5, 6, 8, 9])
ALL = torch.arange(PUBLISHED * 3).reshape(PUBLISHED, 3).float()  # the values of a row show its place
WANTED = ALL[ROWS]


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    """Make a source with seven training images of ten."""
    path = tmp_path / "data.safetensors"
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 1, 2, 2)
    artifacts.save(path, {"train_images": images, "train_index": ROWS}, stage="data")
    return Artifact(path, "data")


def safetensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """Write a safetensors file of a user."""
    save_file(tensors, path / "theirs.safetensors", metadata or None)
    return path / "theirs.safetensors"


def numpy(path: Path, array: Any) -> Path:
    """Write a NumPy file of a user."""
    np.save(path / "theirs.npy", array)
    return path / "theirs.npy"


def pytorch(path: Path, content: Any) -> Path:
    """Write a PyTorch file of a user."""
    torch.save(content, path / "theirs.pt")
    return path / "theirs.pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("rows", [ROWS, torch.arange(PUBLISHED)])
def test_one_row_per_image_in_any_file_format(tmp_path: Path, data: Artifact, dtype: torch.dtype, rows: Tensor) -> None:
    """Rows may be in the order of the training images or in the published order; the log warns, since neither is proven."""
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


def test_an_index_orders_the_rows(tmp_path: Path, data: Artifact) -> None:
    """Rows may be shuffled, and there may be more than needed."""
    for shuffled in (torch.randperm(PUBLISHED), ROWS.flip(0)):
        found = load_representations(pytorch(tmp_path, {"targets": ALL[shuffled], "index": shuffled}), data, PUBLISHED)
        assert torch.equal(found.targets, WANTED)
        assert found.level == logging.INFO


def test_the_digest_of_the_images_proves_the_order(tmp_path: Path, data: Artifact) -> None:
    """The rule data logs this digest; another split of the same data set has another digest."""
    digest = data.header["digests"]["train_images"]
    for path in (
        safetensors(tmp_path, {"targets": WANTED}, images=digest),
        pytorch(tmp_path, {"targets": WANTED, "images": digest}),
    ):
        assert load_representations(path, data, PUBLISHED).level == logging.INFO
    with pytest.raises(UserError, match=rf"digest 0000, these have {digest}"):
        load_representations(safetensors(tmp_path, {"targets": WANTED}, images="0000"), data, PUBLISHED)


def test_targets_of_this_project_name_their_data(tmp_path: Path, data: Artifact) -> None:
    """The header has the identity of the data."""
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
def test_files_without_valid_targets_are_refused(tmp_path: Path, data: Artifact, content: Any, words: str) -> None:
    """The message is one sentence with the file."""
    path = pytorch(tmp_path, content)
    with pytest.raises(UserError, match=words) as caught:
        load_representations(path, data, PUBLISHED)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_in_an_array_are_not_unpickled(tmp_path: Path, data: Artifact) -> None:
    """A .npy file of objects is a pickle."""
    path = numpy(tmp_path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="more than tensors"):
        load_representations(path, data, PUBLISHED)
    path.with_suffix(".pt").write_bytes(pickle.dumps(WANTED.numpy(), protocol=2))
    with pytest.raises(UserError, match="cannot be read"):
        load_representations(path.with_suffix(".pt"), data, PUBLISHED)

"""Atomic files, equal bytes for equal content, and damaged files that are refused."""

import csv
import json
import os
import stat
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.errors import UserError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a small file with row digests of one tensor."""
    path = tmp_path / "x.safetensors"
    tensors = {"trajectory": torch.arange(12.0).view(3, 4), "losses": torch.tensor([1.0, 2.0])}
    artifacts.save(path, tensors, stage="expert", parameters={"lr": 0.1}, rows=["trajectory"])
    return path


def content_start(path: Path) -> int:
    """Return the position of the first tensor (safetensors: 8 bytes of length, then the JSON header)."""
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def overwrite(path: Path, position: int, data: bytes) -> None:
    """Change bytes of a file in place."""
    raw = bytearray(path.read_bytes())
    raw[position : position + len(data)] = data
    path.write_bytes(raw)


def read_everything(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file."""
    file = Artifact(path, "expert")
    return {name: file.tensor(name) for name in file.names}


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A partly written file could be mistaken for a result."""

    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        artifacts.write_atomically(tmp_path / "deep" / "a.txt", half)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_writer_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """The old file stays if the disk is full, and the message names it."""
    path = tmp_path / "a.txt"
    artifacts.write_text(path, "old")

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a\.txt could not be written.*No space left"):
        artifacts.write_atomically(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"b\.txt could not be written"):
        artifacts.write_text(tmp_path / "file" / "b.txt", "x")


def test_written_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """Temporary files are private, but a results folder may be shared."""
    old = os.umask(0o027)
    try:
        artifacts.write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_json_lines_can_be_read_back(tmp_path: Path) -> None:
    """There is one object per line."""
    rows = [{"step": 1, "loss": 0.25, "name": "é"}, {"step": 2, "loss": 1e-9, "name": ""}]
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == rows


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
    rows=st.booleans(),
)
def test_tensors_and_header_can_be_read_back_and_equal_calls_give_equal_bytes(
    shapes: list[list[int]], dtype: torch.dtype, seed: int, rows: bool
) -> None:
    """All shapes and dtypes; if equal runs gave other bytes, all later rules would run again."""
    stream = torch.Generator().manual_seed(seed)
    tensors = {f"t{k}": (torch.rand(shape, generator=stream) * 9).to(dtype) for k, shape in enumerate(shapes)}
    by_row = [name for name, tensor in tensors.items() if tensor.ndim] if rows else []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "a.safetensors", Path(folder) / "b.safetensors"]
        for path, items in zip(paths, (tensors.items(), reversed(tensors.items())), strict=True):
            artifacts.save(
                path,
                dict(items),
                stage="s",
                parameters={"b": [1, 2.5], "a": None},
                code="c",
                inputs={"y": "1", "x": "2"},
                rows=by_row,
            )
        assert paths[0].read_bytes() == paths[1].read_bytes()
        file = Artifact(paths[0], "s")
        assert file.identity == Artifact(paths[1]).identity
        assert file.names == sorted(tensors)
        assert (file.header["stage"], file.header["code"]) == ("s", "c")
        assert file.header["parameters"] == {"a": None, "b": [1, 2.5]}
        assert file.header["inputs"] == {"x": "2", "y": "1"}
        for name, tensor in tensors.items():
            read = file.tensor(name)
            assert (read.dtype, file.shape(name)) == (dtype, tuple(tensor.shape))
            assert torch.equal(read, tensor)
            if name in by_row:
                assert all(torch.equal(file.row(name, k), tensor[k]) for k in range(len(tensor)))


def test_the_identity_depends_on_content_and_provenance(tmp_path: Path) -> None:
    """Files that differ in a value, setting or input have different identities."""
    ways = [
        ({"a": torch.zeros(2)}, {}),
        ({"a": torch.ones(2)}, {}),
        ({"a": torch.zeros(2)}, {"parameters": {"lr": 1}}),
        ({"a": torch.zeros(2)}, {"inputs": {"data": "0"}}),
        ({"a": torch.zeros(2)}, {"code": "1"}),
        ({"a": torch.zeros(1, 2)}, {}),
        ({"a": torch.zeros(2, dtype=torch.int32)}, {}),
    ]
    seen = set()
    for tensors, options in ways:
        artifacts.save(tmp_path / "a.safetensors", tensors, stage="s", **options)
        seen.add(Artifact(tmp_path / "a.safetensors").identity)
    assert len(seen) == len(ways)


@pytest.mark.parametrize("change", [0x01, 0xFF])
def test_any_changed_byte_is_noticed(file: Path, change: int) -> None:
    """The message names the file, whichever byte of the tensors or the header changed."""
    good = file.read_bytes()
    assert set(read_everything(file)) == {"trajectory", "losses"}
    for position in range(len(good)):
        overwrite(file, position, bytes([good[position] ^ change]))
        with pytest.raises(UserError, match=r"x\.safetensors"):
            read_everything(file)
        file.write_bytes(good)


def test_a_changed_dtype_is_noticed(file: Path) -> None:
    """The digest includes the dtype."""
    raw = file.read_bytes()
    overwrite(file, raw.index(b'"F32"'), b'"I32"')
    with pytest.raises(UserError, match=r"x\.safetensors"):
        read_everything(file)


@pytest.mark.parametrize("kept", [0, 4, 40, -1, -9])
def test_a_truncated_file_is_refused(file: Path, kept: int) -> None:
    """An interrupted copy is not read in part."""
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"x\.safetensors is damaged.*rule 'expert'"):
        Artifact(file, "expert")


def test_wrong_missing_and_foreign_files_are_refused(file: Path, tmp_path: Path) -> None:
    """The messages name the file and the rule that makes it."""
    with pytest.raises(UserError, match=r"x\.safetensors was made by the rule 'expert', not by 'targets'"):
        Artifact(file, "targets")
    with pytest.raises(UserError, match=r"none\.safetensors does not exist.*rule 'targets'"):
        Artifact(tmp_path / "none.safetensors", "targets")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"foreign\.safetensors is damaged or not a file of this project"):
        Artifact(tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor file at all")
    with pytest.raises(UserError, match=r"text\.safetensors is damaged or not"):
        Artifact(tmp_path / "text.safetensors")


def test_a_missing_tensor_is_named_with_the_existing_ones(file: Path) -> None:
    """The message names the file, the missing tensor and the existing tensors."""
    artifact = Artifact(file)
    for ask in (artifact.tensor, artifact.shape, lambda name: artifact.row(name, 0)):
        with pytest.raises(UserError, match=r"x\.safetensors has no tensor 'weights' .*losses, trajectory"):
            ask("weights")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in an expert would spread to all later results."""
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.tensor([[1.0, 2.0], [1.0, bad]])}
    with pytest.raises(UserError, match=r"x\.safetensors: a has values that are not finite"):
        artifacts.save(path, tensors, stage="s")
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # a writer without the check
        patch.setattr(torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))
        artifacts.save(path, tensors, stage="s", rows=["a"])
    artifact = Artifact(path)
    assert artifact.row("a", 0).tolist() == [1.0, 2.0]
    for read in (lambda: artifact.row("a", 1), lambda: artifact.tensor("a")):
        with pytest.raises(UserError, match=r"x\.safetensors: 'a' has values that are not finite"):
            read()


def test_reading_a_row_checks_that_row_only(file: Path) -> None:
    """Distillation reads two rows per iteration; damage in other rows is not noticed."""
    artifact = Artifact(file, "expert")
    where = file.read_bytes().index(struct.pack("<4f", 4, 5, 6, 7), content_start(file))
    overwrite(file, where, struct.pack("<f", -4.0))
    artifact = Artifact(file, "expert")
    assert artifact.row("trajectory", 0).tolist() == [0, 1, 2, 3]
    assert artifact.row("trajectory", 2).tolist() == [8, 9, 10, 11]
    for read in (lambda: artifact.row("trajectory", 1), lambda: artifact.tensor("trajectory")):
        with pytest.raises(UserError, match=r"x\.safetensors.*altered.*rule 'expert'"):
            read()
    assert artifact.tensor("losses").tolist() == [1, 2]


def test_swapped_rows_are_noticed(file: Path) -> None:
    """The digests of the rows have an order: epochs in another order are another trajectory."""
    start = file.read_bytes().index(struct.pack("<4f", 0, 1, 2, 3), content_start(file))
    raw = file.read_bytes()
    overwrite(file, start, raw[start + 16 : start + 32] + raw[start : start + 16])
    artifact = Artifact(file)
    for row in (0, 1):
        with pytest.raises(UserError, match="altered"):
            artifact.row("trajectory", row)
    assert artifact.row("trajectory", 2).tolist() == [8, 9, 10, 11]


def test_canonical_json_ignores_order_and_refuses_nan() -> None:
    """The digest of settings does not depend on the order of their keys."""
    assert artifacts.digest({"a": 1, "b": [1, 2]}) == artifacts.digest({"b": [1, 2], "a": 1})
    assert artifacts.digest({"a": 1}) != artifacts.digest({"a": 2})
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.canonical({"a": float("nan")})


def test_tensor_digest_depends_on_values_not_on_layout() -> None:
    """A transposed view and its copy have the same digest."""
    tensor = torch.arange(6.0).view(2, 3)
    assert artifacts.tensor_digest(tensor.T) == artifacts.tensor_digest(tensor.T.clone())
    assert artifacts.tensor_digest(tensor.T) != artifacts.tensor_digest(tensor)


def test_tables_have_unrounded_numbers(tmp_path: Path) -> None:
    """Numbers can be read back exactly."""
    rows = [{"a": "x, y", "b": 0.1 + 0.2, "c": 3}, {"a": "z", "b": 1e-12, "c": -1}]
    artifacts.write_table(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        read = [{"a": row["a"], "b": float(row["b"]), "c": int(row["c"])} for row in csv.DictReader(file)]
    assert read == rows


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_can_be_read_back_exactly(tmp_path: Path, channels: int) -> None:
    """Grey and colour pictures keep the order of rows and columns."""
    picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    artifacts.write_picture(tmp_path / "new/p.png", picture)
    with Image.open(tmp_path / "new/p.png") as image:
        pixels = torch.from_numpy(np.array(image)).reshape(5, 7, channels)
    assert torch.equal(pixels.permute(2, 0, 1), picture)


def test_notes_are_in_the_header_and_empty_notes_change_nothing(tmp_path: Path) -> None:
    """Files without notes keep their bytes."""
    tensors = {"a": torch.arange(3)}
    for name, notes in (("none", None), ("empty", {}), ("some", {"skipped": ["größe.jpg"]})):
        artifacts.save(tmp_path / name, tensors, stage="data", notes=notes)
    assert artifacts.Artifact(tmp_path / "some").header["notes"] == {"skipped": ["größe.jpg"]}
    assert (tmp_path / "none").read_bytes() == (tmp_path / "empty").read_bytes()
    assert "notes" not in artifacts.Artifact(tmp_path / "none").header

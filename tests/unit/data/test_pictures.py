"""Decoding picture files of any mode, format and size; resuming, unreadable files, number of threads."""

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import jpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mkdt.config.image_files import FORMATS
from mkdt.data import pictures
from mkdt.data.copies import copies
from mkdt.data.pixels import adapt
from mkdt.data.preparation import _Published, _warn_of_copies, prepare
from mkdt.errors import UserError

STREAM = np.random.default_rng(0)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Encode a picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def flat(mode: str, colour: Any, width: int = 12, height: int = 8) -> Image.Image:
    """Make a picture of one colour."""
    return Image.new(mode, (width, height), colour)


PALETTE = flat("RGB", (200, 100, 50)).quantize(4)
HALF_CLEAR = flat("RGBA", (200, 100, 0, 0))
SIXTEEN = Image.fromarray(np.full((8, 12), 200 * 257, np.uint16))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(flat("RGB", (200, 100, 50))), (200, 100, 50)),
        (encoded(flat("L", 200)), (200, 200, 200)),
        (encoded(flat("1", 1)), (255, 255, 255)),
        (encoded(PALETTE), (200, 100, 50)),
        (encoded(PALETTE, "GIF"), (200, 100, 50)),
        (encoded(PALETTE, "BMP"), (200, 100, 50)),
        (encoded(HALF_CLEAR), (255, 255, 255)),
        (encoded(flat("RGBA", (200, 100, 50, 255)), "WEBP", lossless=True), (200, 100, 50)),
        (encoded(flat("LA", (0, 0))), (255, 255, 255)),
        (encoded(flat("P", 0), transparency=0), (255, 255, 255)),
        (encoded(SIXTEEN), (200, 200, 200)),
        (encoded(SIXTEEN, "TIFF"), (200, 200, 200)),
        (encoded(flat("I", 200 * 257), "TIFF"), (200, 200, 200)),
        (encoded(flat("CMYK", (0, 255, 0, 0)), "TIFF"), (255, 0, 255)),
        (encoded(flat("CMYK", (0, 255, 0, 0)), "JPEG", quality=100), (255, 0, 255)),
        (encoded(flat("RGB", (9, 8, 7), 1, 1)), (9, 8, 7)),
        (encoded(flat("RGB", (200, 100, 50), 3, 500)), (200, 100, 50)),
    ],
)
def test_any_mode_becomes_eight_bit_colour_or_grey(content: bytes, expected: tuple[int, int, int]) -> None:
    """Pictures of one colour show the conversion alone; transparent pixels are white."""
    colour = pictures.decode(content, 3, 6)
    assert colour.shape == (3, 6, 6)
    assert colour.dtype == np.uint8
    assert np.abs(colour.astype(int) - np.array(expected)[:, None, None]).max() <= 2
    grey = pictures.decode(content, 1, 6)
    luma = round(np.dot(expected, (0.299, 0.587, 0.114)))
    assert np.abs(grey.astype(int) - luma).max() <= 2


def test_grey_is_the_luma_that_adapt_computes() -> None:
    """A colour folder decoded to grey equals a colour data set adapted to a grey source."""
    colour = STREAM.integers(0, 256, (8, 8, 3), np.uint8)
    decoded = pictures.decode(encoded(Image.fromarray(colour)), 1, 8)
    adapted = adapt(torch.from_numpy(colour).permute(2, 0, 1)[None], 1, 8)[0]
    assert np.abs(decoded.astype(int) - adapted.numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(orientation: int) -> None:
    """Phones store pictures rotated and note it in EXIF."""
    pixels = STREAM.integers(0, 256, (4, 4, 3), np.uint8)
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](pixels)))
    decoded = pictures.decode(encoded(stored, exif=exif), 3, 4)
    assert np.array_equal(decoded.transpose(1, 2, 0), pixels)


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_every_size_is_resized_to_a_square(height: int, width: int, size: int, channels: int) -> None:
    """The whole picture is kept: its mean stays about the same at any aspect ratio."""
    pixels = np.linspace(0, 255, width * 3 * height).reshape(height, width, 3).astype(np.uint8)
    decoded = pictures.decode(encoded(Image.fromarray(pixels)), channels, size)
    assert decoded.shape == (channels, size, size)
    if size > 1 and min(height, width) > size:
        assert abs(decoded.mean() - pixels.mean()) < 12


def test_large_jpegs_are_reduced_without_a_visible_difference() -> None:
    """Decoding at a reduced scale is close to resizing the whole picture."""
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.linspace(0.2, 1, 480)[:, None, None] * np.ones(3)
    picture = Image.fromarray(ramp.astype(np.uint8))
    fast = pictures.decode(encoded(picture, "JPEG", quality=95), 3, 32).astype(int)
    full = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
    assert np.abs(fast - full).max() <= 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "damaged or"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "damaged or"),  # Pillow would start Ghostscript
        (b"\0\0\0\x18ftypheic", r"pip install -e '\.\[heif\]'"),
    ],
)
def test_what_is_no_image_says_so(content: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the name of an object in memory."""
    monkeypatch.setattr(pictures, "formats", lambda: tuple(name for name in FORMATS if name != "HEIF"))
    with pytest.raises(ValueError, match=words) as caught:
        pictures.decode(content, 3, 8)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        jpeg(np.array([1, 2, 3], np.uint8), 200, 200)[:1500],
        encoded(Image.fromarray(STREAM.integers(0, 256, (50, 50), np.uint8)))[:900],
        encoded(flat("F", 0.5), "TIFF"),
        encoded(flat("I", 1 << 20), "TIFF"),
        encoded(flat("1", 0, 20_000, 5_000)),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "float", "32 bit", "bomb"],
)
def test_a_file_that_cannot_be_decoded_raises(content: bytes) -> None:
    """Part of a picture is never returned."""
    with pytest.raises(Exception, match=r"."):
        pictures.decode(content, 3, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an unlabelled folder of 30 random pictures of different sizes."""
    path = tmp_path / "pictures"
    path.mkdir()
    for k in range(30):
        pixels = STREAM.integers(0, 256, (10 + k, 40 - k, 3), np.uint8)
        (path / f"{k:02d}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks of a few pictures."""
    monkeypatch.setattr(pictures, "CHUNK", 7)


def prepared(folder: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Prepare the folder at 8x8 with five validation images."""
    arguments: dict[str, Any] = {"train": None, "validation": 5, "test": None, "image_size": 8, "seed": 0}
    return prepare("folder", ".", path=str(folder), **arguments | changes)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare names and tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_threads_and_memory_map_do_not_change_the_result(folder: Path, tmp_path: Path) -> None:
    """Equal runs give equal bytes on any number of cores."""
    first, _ = prepared(folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert equal(first, prepared(folder, threads=5)[0])
    assert equal(first, prepared(folder, threads=3, resume=lambda: (None, scratch))[0])
    assert "train_labels" not in first
    assert [len(first[f"{split}_index"]) for split in ("train", "validation", "test")] == [25, 5, 0]
    assert len(torch.cat([first["train_index"], first["validation_index"]]).unique()) == 30
    assert first["test_images"].shape == (0, 3, 8, 8)


class Killed(Exception):
    """Stands for a signal that kills the job."""


class Job:
    """The part of a stage that decoding uses; it can be killed after some chunks.

    Attributes:
        state: the state of the last resume point.
        reports: number of decoded files at each report.
    """

    def __init__(self, folder: Path, chunks: int | None = None) -> None:
        self.folder, self.chunks = folder, chunks
        self.state: dict[str, Any] | None = None
        self.reports: list[int] = []
        self.expected: tuple[int, str, int] | None = None
        folder.mkdir(exist_ok=True)

    def resume(self) -> tuple[dict[str, Any] | None, Path]:
        return self.state, self.folder

    def checkpoint(self, make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        self.state = make()
        if self.chunks is not None and len(self.reports) >= self.chunks:
            raise Killed

    def callbacks(self) -> pictures.Callbacks:
        return pictures.Callbacks(
            lambda total, unit, done: setattr(self, "expected", (total, unit, done)),
            lambda step, values, pictures=None: self.reports.append(step),
            self.checkpoint,
        )


@pytest.mark.counts("kills survived")
@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_a_killed_job_resumes_and_gives_the_same_bytes(folder: Path, tmp_path: Path, chunks: int) -> None:
    """Files decoded before the interruption are not read again."""
    whole, _ = prepared(folder)
    job = Job(tmp_path / "scratch", chunks)
    with pytest.raises(Killed):
        prepared(folder, resume=job.resume, callbacks=job.callbacks(), threads=2)
    for path in sorted(folder.iterdir())[: 7 * chunks]:
        path.write_bytes(b"would fail if it were read again")
    job.chunks = None
    tensors, _ = prepared(folder, resume=job.resume, callbacks=job.callbacks())
    assert equal(whole, tensors)
    assert job.expected == (5, "chunk", min(chunks, 5) if chunks < 5 else 4)
    assert job.reports == [7, 14, 21, 28, 30]


def test_a_state_without_its_pixels_starts_again(folder: Path, tmp_path: Path) -> None:
    """The file of decoded pixels may be deleted, or another size be requested."""
    job = Job(tmp_path / "scratch", 3)
    with pytest.raises(Killed):
        prepared(folder, resume=job.resume, callbacks=job.callbacks())
    (job.folder / "pixels.u8").unlink()
    job.chunks, job.reports = None, []
    assert equal(prepared(folder)[0], prepared(folder, resume=job.resume, callbacks=job.callbacks())[0])
    assert job.reports[0] == 7


def test_a_state_of_other_files_starts_again(folder: Path, tmp_path: Path) -> None:
    """A renamed file shifts the rows after it."""
    job = Job(tmp_path / "scratch", 3)
    with pytest.raises(Killed):
        prepared(folder, resume=job.resume, callbacks=job.callbacks())
    (folder / "00.png").rename(folder / "zz.png")
    job.chunks, job.reports = None, []
    assert equal(prepared(folder)[0], prepared(folder, resume=job.resume, callbacks=job.callbacks())[0])
    assert job.reports[0] == 7


def test_all_unreadable_files_are_named_at_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After they are repaired, the next run reads only them."""
    whole, _ = prepared(folder)
    bad = ["03.png", "17.png", "29.png"]
    contents = {name: (folder / name).read_bytes() for name in bad}
    for name in bad:
        (folder / name).write_bytes(contents[name][:60] if name != bad[0] else b"no picture")
    job = Job(tmp_path / "scratch")
    monkeypatch.setattr(pictures, "LISTED", 2)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as caught:
        prepared(folder, resume=job.resume, callbacks=job.callbacks())
    message = str(caught.value)
    assert "3 of 30 images" in message
    assert "03.png" in message
    assert "17.png" in message
    assert "1 more, see the log" in message
    assert "data.on_error to skip" in message
    assert all(name in caplog.text for name in bad)
    assert " at 0x" not in message + caplog.text
    for name in bad:
        (folder / name).write_bytes(contents[name])
    job.reports = []
    assert equal(whole, prepared(folder, resume=job.resume, callbacks=job.callbacks())[0])
    assert job.reports == []


def test_links_to_nothing_pipes_and_huge_files_are_named(folder: Path) -> None:
    """Reading them would fail, block, or exhaust the memory."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere")
    (folder / "huge.jpg").touch()
    os.truncate(folder / "huge.jpg", 1 << 40)
    with pytest.raises(UserError, match=r"huge.jpg: has 1099511627776 bytes; link.jpg: is no file.*; pipe.jpg: is no"):
        prepared(folder)


@pytest.mark.parametrize("mapped", [True, False])
def test_unreadable_files_can_be_skipped_and_are_recorded(folder: Path, tmp_path: Path, mapped: bool) -> None:
    """The other images keep their split, order and row numbers."""
    whole, _ = prepared(folder)
    gone = [int(whole["train_index"][k]) for k in (0, 10)] + [int(whole["validation_index"][-1])]
    for row in gone:
        (folder / f"{row:02d}.png").write_bytes(b"damaged")
    job = Job(tmp_path / "scratch")
    tensors, notes = prepared(folder, on_error="skip", resume=job.resume if mapped else None)
    assert notes["skipped"] == sorted(f"{row:02d}.png" for row in gone)
    for split in ("train", "validation"):
        kept = torch.tensor([int(row) not in gone for row in whole[f"{split}_index"]])
        assert torch.equal(tensors[f"{split}_index"], whole[f"{split}_index"][kept])
        assert torch.equal(tensors[f"{split}_images"], whole[f"{split}_images"][kept])
    values = tensors["train_images"].double() / 255
    torch.testing.assert_close(tensors["mean"].double(), values.mean((0, 2, 3)), rtol=1e-6, atol=0)


def test_a_split_without_a_readable_image_ends_the_job(folder: Path) -> None:
    """A data set cannot be empty, even if files may be skipped."""
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="no image of the"):
        prepared(folder, on_error="skip")


def test_a_full_disk_is_reported_before_decoding(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a memory map on a full disk would kill the process without a message."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    job = Job(tmp_path / "scratch")
    with pytest.raises(UserError, match=r"no room for 0\.0 GB"):
        prepared(folder, resume=job.resume, callbacks=job.callbacks())
    assert list(job.folder.iterdir()) == []


def test_held_out_images_that_equal_a_training_image_are_counted_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By their pixels, whatever the file's format; one that differs in a pixel, and copies within a split, do not count."""
    path = tmp_path / "set"
    for name in ("train", "val", "test"):
        (path / name).mkdir(parents=True)
    shades = {"train": (1, 1, 2, 3), "val": (7, 8), "test": (9, 3, 1, 8, 8)}
    for split, values in shades.items():
        for k, value in enumerate(values):
            image = Image.new("RGB", (8, 8), (value, value, value))
            image.save(path / split / f"{k}.{'png' if split == 'train' else 'bmp'}")
    tensors, notes = prepared(path, validation=None)
    assert notes == {"copies": {"test": 2}}
    assert "2 of the 5 test images equal a training image exactly (test/1.bmp equals train/3.png)" in caplog.text
    assert {split: (one.rows, one.example) for split, one in copies(tensors).items()} == {"test": ([1, 2], 3)}
    (path / "test" / "1.bmp").unlink()
    (path / "test" / "2.bmp").unlink()
    assert prepared(path, validation=None)[1] == {}


def test_rows_stand_for_images_without_a_file(caplog: pytest.LogCaptureFixture) -> None:
    """Sets that are published as arrays."""
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[0] = 1
    splits = {"train": ("train", torch.tensor([5, 6, 7])), "test": ("test", torch.tensor([0, 4, 8]))}
    found = copies({"train_images": images, "test_images": images.flip(0), "validation_images": images[:0]})
    _warn_of_copies(_Published(), splits, found)
    assert "3 of the 3 test images equal a training image exactly (row 0 of test equals row 6 of train)" in caplog.text

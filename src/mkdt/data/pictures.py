"""Decode image files of any format, mode and size to uint8 [C,S,S]; many in parallel, resumable."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkdt.config.image_files import FORMATS, HEIF_HINT, formats, shown
from mkdt.data.readers.archives import Container, Pictures
from mkdt.errors import UserError
from mkdt.progress import Checkpoint, Report, no_checkpoint, no_report

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Reader = Callable[[], bytes]
State = dict[str, Any]
Resume = Callable[[], tuple[State | None, Path]]  # the state of an interrupted job, and a folder for decoded pixels
SplitRows = dict[str, tuple[str, Tensor]]  # split: the published split that it comes from, and rows int64 [n] of that

MOST_PIXELS = 89_478_485  # Pillow's own limit: 256 MB in colour
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}  # bytes 8 to 11 of HEIC files
LISTED = 10  # unreadable files that a message names; the log names all
CHUNK = 256  # images between two resume points: about 100 MB if they are read from a tar archive


@dataclass(frozen=True)
class Callbacks:
    """Functions of the job that decoding calls.

    Attributes:
        expect: takes the total number of chunks, the word ``chunk`` and the number of chunks already done.
        report, checkpoint: called after each chunk; see ``mkdt.progress``.
    """

    expect: Callable[[int, str, int], None] = lambda total, unit, done: None
    report: Report = no_report
    checkpoint: Checkpoint = no_checkpoint


NO_CALLBACKS = Callbacks()


def decode(content: bytes, channels: int, size: int) -> Pixels:
    """Decode one picture to uint8 [channels,size,size].

    Decoding uses the first frame and turns it upright as its EXIF data says. It scales 16 bits to 8 and puts
    transparent parts over white. Grey is repeated to three channels; colour becomes luma (ITU-R 601). The whole picture
    is then resized to a square (bilinear, antialiased), whatever its aspect ratio. Large JPEG files are decoded at a
    reduced scale of at least twice the size, which is several times faster.

    Raises:
        Exception: any error of Pillow for a file that is not a picture, damaged, truncated or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content), formats=formats())
    except UnidentifiedImageError as error:
        raise ValueError(_unreadable(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # more than twice the limit
        raise ValueError(f"more than {MOST_PIXELS:,} pixels are too many") from error
    with opened as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"more than {MOST_PIXELS:,} pixels are too many: {picture.width}x{picture.height}")
        picture.draft(None, (2 * size, 2 * size))
        picture.load()
        upright: Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        upright = Image.fromarray(_from_16_bits(np.asarray(upright)))
    if upright.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    mode = {1: "L", 3: "RGB"}[channels]
    square = upright.convert("RGB").convert(mode).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def _unreadable(content: bytes) -> str:
    """Return why Pillow cannot tell the format of a file."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS and "HEIF" not in formats():
        return HEIF_HINT
    return f"{'is damaged or' if content else 'is empty, so'} not in a format that is read ({', '.join(FORMATS)})"


def _from_16_bits(values: NDArray[Any]) -> Pixels:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no stated range")
    return np.rint(values / 257.0).astype(np.uint8)


def decode_splits(
    pictures: Pictures,
    splits: SplitRows,
    shape: tuple[int, int, int],
    on_error: str,
    threads: int,
    resume: Resume | None,
    callbacks: Callbacks,
) -> tuple[dict[str, Tensor], SplitRows, list[str]]:
    """Decode the chosen rows of each split to uint8 ``shape`` = [C,S,S].

    All splits share one array, which is memory-mapped if ``resume`` is given.

    Returns:
        images uint8 [n,C,S,S] by split, the rows of the images that could be decoded, and the names of the others.

    Raises:
        UserError: a file cannot be decoded and ``on_error`` is ``fail``; or no image of a split can be decoded.
    """
    names = [pictures.names[source][row] for source, rows in splits.values() for row in rows.tolist()]
    decoding = _Decoding(pictures.container, names, shape, resume)
    decoding.run(threads, callbacks)
    failed, pixels = decoding.failed, decoding.pixels
    readable = np.array([name not in failed for name in names], bool)
    if failed:
        _report_failures(pictures.container.path, failed, len(decoding.rows), on_error)
        pixels = _select(pixels, readable, decoding.folder)
    images: dict[str, Tensor] = {}
    kept: SplitRows = {}
    start = end = 0
    for split, (source, rows) in splits.items():
        mask = torch.from_numpy(readable[end : end + len(rows)])
        end += len(rows)
        kept[split] = source, rows[mask]
        stop = start + len(kept[split][1])
        # Each split gets a storage of its own: safetensors refuses tensors that share one.
        images[split], start = torch.from_numpy(pixels[start:stop]), stop
        if len(rows) and not len(kept[split][1]):
            raise UserError(f"{pictures.container.path}: no image of the {split} split can be read.")
    return images, kept, sorted(map(shown, failed))


class _Decoding:
    """Decode named files into the rows of one array, resumable after every chunk.

    Attributes:
        rows: rows of the array by file name; a file may occur in several rows.
        pixels: uint8 [n,C,S,S], memory-mapped if there is a folder.
        folder: folder of the memory-mapped array; None decodes in memory.
        done: number of files decoded, or found unreadable, in the order of the container.
        failed: reason by name of each file that could not be decoded.
    """

    def __init__(
        self, container: Container, names: Sequence[str], shape: tuple[int, int, int], resume: Resume | None
    ) -> None:
        """Continue from the state that ``resume`` returns if it belongs to the same names and its pixels still exist."""
        self._container = container
        self.rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self.rows.setdefault(name, []).append(row)
        # Depends on all names in order, because a renamed file shifts the rows of others.
        self._identity = hashlib.sha256(repr(names).encode()).hexdigest()
        state: State | None = None
        self.folder: Path | None = None
        if resume:
            state, self.folder = resume()
        same_names = bool(state and state["rows"] == self._identity)
        self.pixels, kept = _allocate((len(names), *shape), self.folder, "pixels", same_names)
        self.done: int = state["done"] if state and kept else 0
        self.failed: dict[str, str] = state["failed"] if state and kept else {}

    def run(self, threads: int, callbacks: Callbacks) -> None:
        """Decode all files that are left; the result does not depend on the number of threads."""
        with ThreadPoolExecutor(threads) as pool:  # threads run in parallel since Pillow releases the interpreter lock
            # Files that failed before the interruption may have been repaired since.
            failed, self.failed = self.failed, {}
            for chunk in _chunks(self._container.read(list(failed))):
                self._decode(pool, chunk)
            callbacks.expect(-(-len(self.rows) // CHUNK), "chunk", self.done // CHUNK)
            missing = set(self.rows)
            for chunk in _chunks(self._remaining(missing)):
                self._decode(pool, chunk)
                self.done += len(chunk)
                callbacks.report(self.done, {"images": self.done, "failed": len(self.failed)})
                callbacks.checkpoint(self._state)
        self.failed |= {name: "is missing" for name in self.rows if name in missing}
        callbacks.checkpoint(self._state, now=True)

    def _remaining(self, missing: set[str]) -> Iterator[tuple[str, Reader]]:
        """Yield the files that are not done and how to read each; remove the names that exist from ``missing``."""
        done_before = self.done
        for k, (name, read) in enumerate(self._container.read(self.rows)):
            missing.discard(name)
            if k >= done_before:
                yield name, read

    def _decode(self, pool: ThreadPoolExecutor, chunk: list[tuple[str, Reader]]) -> None:
        reasons = pool.map(partial(_decode_into, self.rows, self.pixels), chunk)
        self.failed |= {name: reason for name, reason in reasons if reason}

    def _state(self) -> State:
        if isinstance(self.pixels, np.memmap):
            self.pixels.flush()
        return {"rows": self._identity, "done": self.done, "failed": self.failed}


def _chunks(files: Iterable[tuple[str, Reader]]) -> Iterator[list[tuple[str, Reader]]]:
    iterator = iter(files)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _decode_into(rows: Mapping[str, list[int]], pixels: Pixels, file: tuple[str, Reader]) -> tuple[str, str]:
    """Decode one file into its rows; return its name and the reason if that fails, else an empty string."""
    name, read = file
    try:
        pixels[rows[name]] = decode(read(), pixels.shape[1], pixels.shape[2])
    except Exception as error:  # decoders raise many types for a damaged file; all damaged files are reported at once
        reason = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", " ".join(f"{error}".split()))  # Python's names of objects
        return name, reason or type(error).__name__
    return name, ""


def _allocate(shape: tuple[int, ...], folder: Path | None, name: str, keep: bool) -> tuple[Pixels, bool]:
    """Allocate an array of bytes, memory-mapped in ``folder`` if that is given.

    Returns:
        the array, and whether it holds the content of an earlier job, which ``keep`` asks for.
    """
    if folder is None:
        return np.zeros(shape, np.uint8), False
    path, size = folder / f"{name}.u8", int(np.prod(shape))
    kept = keep and path.is_file() and path.stat().st_size == size
    if not kept:
        try:
            with path.open("wb") as file:
                # Reserve the space now: writing to a memory map on a full disk would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{folder} has no room for {size / 1e9:.1f} GB of decoded images ({error}).") from error
    return np.memmap(path, np.uint8, "r+", shape=shape), kept


def _select(pixels: Pixels, readable: NDArray[np.bool_], folder: Path | None) -> Pixels:
    """Copy the readable rows to a second array; the first one must not change before the job ends."""
    rows = np.flatnonzero(readable)
    if not len(rows):
        return pixels[:0]
    selected, _ = _allocate((len(rows), *pixels.shape[1:]), folder, "whole", False)
    for start in range(0, len(rows), CHUNK):
        selected[start : start + CHUNK] = pixels[rows[start : start + CHUNK]]
    return selected


def _report_failures(source: Path, failed: Mapping[str, str], total: int, on_error: str) -> None:
    """Log every unreadable file; raise if ``on_error`` is ``fail``."""
    lines = [f"{shown(name)}: {failed[name]}" for name in sorted(failed)]
    for line in lines:
        log.warning("%s cannot be read: %s", source, line)
    if on_error == "fail":
        more = f" and {len(lines) - LISTED} more, see the log" if len(lines) > LISTED else ""
        raise UserError(
            f"{len(lines)} of {total} images in {source} cannot be read ({'; '.join(lines[:LISTED])}{more}): "
            "repair or remove them, or set data.on_error to skip."
        )

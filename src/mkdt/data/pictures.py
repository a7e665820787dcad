"""One rule that turns a picture of any format, mode and size into uint8 [C,S,S], applied to many at once."""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from mkdt.config.image_folder import shown
from mkdt.data.readers.archives import Pictures
from mkdt.errors import UserError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Reader = Callable[[], bytes]
State = dict[str, Any]
Resume = Callable[[], tuple[State | None, Path]]  # what an earlier job left, and a folder for decoded pixels
Parts = dict[str, tuple[str, Tensor]]  # split: the published split that it comes from, and rows int64 [n] of that

MOST_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte in colour
LISTED = 10  # unreadable files that a message names; the log has all
CHUNK = 256  # images between two resume points: some 100 MB where they come out of a tar archive


@dataclass(frozen=True)
class Progress:
    """What decoding tells of itself: how much will come, how far it is, and what a later job needs to go on."""

    expect: Callable[[int, str, int], None] = lambda total, unit, done: None
    report: Callable[..., None] = lambda step, values: None
    checkpoint: Callable[..., None] = lambda make, now=False: None


SILENT = Progress()


def decode(content: bytes, channels: int, size: int) -> Pixels:
    """One picture as uint8 [channels,size,size].

    The first frame, turned upright as its EXIF says; 16 bits scaled to 8; transparent parts over white; grey is
    repeated to three channels, colour becomes luma (ITU-R 601); then the whole picture is resized to a square
    (bilinear, antialiased), whatever its ratio. Large JPEG files are decoded at a reduced scale of at least twice the
    size, which is several times faster.

    Raises:
        Exception: whatever Pillow makes of a file that is no picture, damaged, truncated or too large.
    """
    from PIL import Image, ImageOps

    try:
        opened = Image.open(io.BytesIO(content))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # above twice the limit
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


def _from_16_bits(values: NDArray[Any]) -> Pixels:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no stated range")
    return np.rint(values / 257.0).astype(np.uint8)


def decode_all(
    readers: Iterable[tuple[str, Reader]],
    rows: Mapping[str, list[int]],
    pixels: Pixels,
    threads: int,
    chunk_done: Callable[[int, dict[str, str]], None],
) -> dict[str, str]:
    """Decode pictures into their rows of ``pixels``, uint8 [n,C,S,S]; the result does not depend on ``threads``.

    Args:
        readers: names and how to read each; read and decoded side by side, ``CHUNK`` at a time.
        rows: where each belongs; a name may be several images.
        pixels: filled in place, memory-mapped where the set is large.
        threads: workers; Pillow releases the interpreter lock.
        chunk_done: called after each chunk with the number of names in it and its failures.

    Returns:
        the names that failed, with the reason.
    """
    failed: dict[str, str] = {}
    work = partial(_decode_into, rows, pixels)
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(readers):
            failures = {name: reason for name, reason in pool.map(work, chunk) if reason}
            failed |= failures
            chunk_done(len(chunk), failures)
    return failed


def _chunks(items: Iterable[tuple[str, Reader]]) -> Iterator[list[tuple[str, Reader]]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _decode_into(rows: Mapping[str, list[int]], pixels: Pixels, item: tuple[str, Reader]) -> tuple[str, str]:
    """Decode one picture; the reason where that fails, else an empty text."""
    name, read = item
    try:
        pixels[rows[name]] = decode(read(), pixels.shape[1], pixels.shape[2])
    except Exception as error:  # a damaged file can raise anything in a decoder; every one is to be named at once
        return name, " ".join(f"{error}".split()) or type(error).__name__
    return name, ""


def decode_parts(
    pictures: Pictures,
    parts: Parts,
    shape: tuple[int, int, int],
    on_error: str,
    threads: int,
    resume: Resume | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], Parts, list[str]]:
    """Decode the rows of each split, one split behind the other in one array, memory-mapped where ``resume`` is given.

    Returns:
        images by split, the parts without what was skipped, and the names that were, as text.
    """
    names = [pictures.names[published][row] for published, rows in parts.values() for row in rows.tolist()]
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    identity = hashlib.sha256(repr(names).encode()).hexdigest()  # of every row: a renamed file moves others
    state, folder = resume() if resume else (None, None)
    pixels, kept = _array((len(names), *shape), folder, "pixels", bool(state and state["rows"] == identity))
    done, failed = (state["done"], state["failed"]) if state and kept else (0, {})
    # Files that failed before may have been repaired since.
    failed = decode_all(pictures.container.read(list(failed)), rows_of, pixels, threads, lambda count, failures: None)
    seen: set[str] = set()

    def readers() -> Iterator[tuple[str, Reader]]:
        for k, (name, read) in enumerate(pictures.container.read(rows_of)):
            seen.add(name)
            if k >= done:
                yield name, read

    def save() -> State:
        if isinstance(pixels, np.memmap):
            pixels.flush()
        return {"rows": identity, "done": finished, "failed": failed}

    finished = done
    progress.expect(-(-len(rows_of) // CHUNK), "chunk", done // CHUNK)

    def chunk_done(count: int, failures: dict[str, str]) -> None:
        nonlocal finished
        finished += count
        failed.update(failures)
        progress.report(finished, {"images": finished, "failed": len(failed)})
        progress.checkpoint(save)

    decode_all(readers(), rows_of, pixels, threads, chunk_done)
    failed |= {name: "is missing" for name in rows_of if name not in seen}
    progress.checkpoint(save, now=True)
    if failed:
        _explain(pictures, failed, len(rows_of), on_error)
        whole = np.array([name not in failed for name in names])
        pixels = _without(pixels, whole, folder)
    else:
        whole = np.ones(len(names), bool)
    images: dict[str, Tensor] = {}
    left: Parts = {}
    start = end = 0
    for split, (published, rows) in parts.items():
        mine = torch.from_numpy(whole[end : end + len(rows)])
        end += len(rows)
        left[split] = published, rows[mine]
        stop = start + int(mine.sum())
        images[split], start = torch.from_numpy(pixels[start:stop]), stop
        if len(rows) and not len(left[split][1]):
            raise UserError(f"{pictures.container.path}: no image of the {split} split can be read.")
    return images, left, sorted(map(shown, failed))


def _array(shape: tuple[int, ...], folder: Path | None, name: str, keep: bool) -> tuple[Pixels, bool]:
    """An array of bytes, memory-mapped in ``folder`` if that is given, and whether it holds what was left there."""
    if folder is None:
        return np.zeros(shape, np.uint8), False
    path, size = folder / f"{name}.u8", int(np.prod(shape))
    kept = keep and path.is_file() and path.stat().st_size == size
    if not kept:
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk would end the process at some write later
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{folder} has no room for {size / 1e9:.1f} GB of decoded images ({error}).") from error
    return np.memmap(path, np.uint8, "r+", shape=shape), kept


def _without(pixels: Pixels, whole: Any, folder: Path | None) -> Pixels:
    """The rows that are whole, in a second file: the first must stay as it is until the job is done."""
    rows = np.flatnonzero(whole)
    if not len(rows):
        return pixels[:0]
    compact, _ = _array((len(rows), *pixels.shape[1:]), folder, "whole", False)
    for start in range(0, len(rows), CHUNK):
        compact[start : start + CHUNK] = pixels[rows[start : start + CHUNK]]
    return compact


def _explain(pictures: Pictures, failed: Mapping[str, str], total: int, on_error: str) -> None:
    """Name every unreadable file in the log; raise where they are not to be skipped."""
    lines = [f"{shown(name)}: {failed[name]}" for name in sorted(failed)]
    for line in lines:
        log.warning("%s cannot be read: %s", pictures.container.path, line)
    if on_error == "fail":
        more = f" and {len(lines) - LISTED} more, see the log" if len(lines) > LISTED else ""
        raise UserError(
            f"{len(lines)} of {total} images in {pictures.container.path} cannot be read ({'; '.join(lines[:LISTED])}{more}): "
            "repair or remove them, or set data.on_error to skip."
        )

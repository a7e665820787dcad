"""Image files of a folder: known by their suffix, or by their content where the suffix does not say. No torch here."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Pillow's names of the formats that are read. Left out are formats of drawings, documents and measurements (EPS, WMF,
# FITS, ...), of which some start other programs.
FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "PSD", "PCX", "SGI",
    "SUN", "DDS", "QOI", "TGA",
)  # fmt: skip
UNSIGNED = {"DIB", "TGA"}  # these do not begin with a signature, so that other files pass for them: by suffix only
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k",
    ".avif", ".tga",
}  # fmt: skip
HEIF = {".heic", ".heif", ".hif"}
NAMED = 10  # suffixes or classes that a sentence names
OPENING = 20  # times as long as listing a file by name takes looking into it (docs/data.md)
HEIF_HINT = "HEIC files need pillow-heif: pip install -e '.[heif]'"
# Never opened: annotations, of which there may be one for each image; raw photos, of which Pillow reads the thumbnail;
# backups and unfinished downloads, which would bring an image twice or in part.
OTHERS = {
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".html", ".md", ".py", ".npy", ".npz", ".pt", ".mat", ".xmp", ".aae",
    ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
    ".bak", ".orig", ".tmp", ".part", ".crdownload",
}  # fmt: skip


@cache
def formats() -> tuple[str, ...]:
    """Return the names of ``FORMATS`` that Pillow can read here; HEIF is read where pillow-heif is installed."""
    from PIL import Image

    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reads_heif() -> bool:
    """Return whether pillow-heif is installed; nothing is imported."""
    return find_spec("pillow_heif") is not None


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def by_name(name: str) -> bool | None:
    """Return whether a file is an image as far as its name says; None if its content must be looked at."""
    suffix = suffix_of(name)
    if suffix in SUFFIXES or (suffix in HEIF and reads_heif()):
        return True
    return False if suffix in OTHERS or name.endswith("~") else None


def by_content(path: str) -> bool:
    """Return whether Pillow opens a file as one of ``FORMATS``; its pixels are not decoded, and no file raises an error.

    Pillow reads as much as it needs for the format and size: the start of most files, of some (a TIFF) other parts too.
    """
    from PIL import Image

    signed = [name for name in formats() if name not in UNSIGNED]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=signed):
            return True
    except Image.DecompressionBombError:  # an image, which decoding refuses by name
        return True
    except Exception:  # parsers of headers raise many types
        return False


@dataclass
class Walk:
    """Lists the images below folders, and remembers what it saw.

    Attributes:
        folders, opened: every folder that was listed and every file that was looked into, with the time of its last
            change in nanoseconds.
        passed_over: numbers of visible files that are no images, by suffix.
        files: number of visible files that were met, images or not.
    """

    folders: dict[str, int] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    files: int = 0

    def images(self, folder: Path, prefix: str, deep: bool = True) -> Iterator[str]:
        """Yield the paths of the images in a folder and, if ``deep``, below it, starting with ``prefix``.

        A folder that contains itself through links is listed once on each path, so loops of links end.
        """
        pending = [(str(folder), prefix, frozenset[tuple[int, int]]())]
        while pending:
            here, prefix, above = pending.pop()
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in above:
                continue
            self.folders.setdefault(here, status.st_mtime_ns)  # as it was first seen: an answer may depend on that
            above = above | {(status.st_dev, status.st_ino)}
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        pending += [(entry.path, f"{prefix}{entry.name}/", above)] if deep else []
                        continue
                    self.files += 1
                    if self._is_image(entry):
                        yield prefix + entry.name
                    else:
                        self.passed_over[suffix_of(entry.name)] += 1

    def has_images(self, folder: Path) -> bool:
        """Return whether a folder holds an image; what was looked at is remembered, what was passed over is not."""
        aside = Walk(self.folders, self.opened)
        found = next(aside.images(folder, ""), None) is not None
        self.files += aside.files
        return found

    def effort(self) -> int:
        """Return how long the listing took, in files that are known by their names."""
        return self.files + OPENING * len(self.opened)

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        known = by_name(entry.name)
        if known is not None:
            return known
        try:
            if not entry.is_file():  # opening a pipe would block
                return False
            self.opened.setdefault(entry.path, entry.stat().st_mtime_ns)
        except OSError:  # a link to itself
            return False
        return by_content(entry.path)

    def passed_over_in_words(self) -> str:
        """Return a sentence with the numbers of files that are no images, by suffix; empty if there are none."""
        if not self.passed_over:
            return ""
        ordered = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{count:,} {shown(suffix) or 'without suffix'}" for suffix, count in ordered]
        hint = f"; {HEIF_HINT}" if HEIF & set(self.passed_over) else ""
        return f"files that cannot be read as images are not used: {some(counts)}{hint}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def some(words: list[str]) -> str:
    """Return the first words, and how many more there are."""
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(map(shown, words[:NAMED])) + more


def shown(name: str) -> str:
    """Return a file name for messages: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")

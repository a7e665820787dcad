"""Find the published files of a data set on disk, or download them with retries, resumption and checksums."""

import itertools
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import pooch
from filelock import FileLock, Timeout
from requests import RequestException, Response

from mkdt.config.catalogue import File
from mkdt.errors import UserError

log = logging.getLogger(__name__)

TRIES = 3  # failures in a row that bring no further bytes
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 16  # bytes read at a time; a broken connection loses at most as many
WHOLE_FILE = 200  # HTTP status: the server ignores the range
RANGE_NOT_SATISFIABLE = 416  # HTTP status: the part on disk is already as long as the file


def locate(kind: str, files: tuple[File, ...], root: str | Path, download: bool) -> list[Path]:
    """Return the paths of a data set's files under ``root`` with verified checksums; download what is missing.

    Nothing is written when no file is missing, so ``root`` may be read-only.

    Raises:
        UserError: a file is missing, damaged or cannot be downloaded; the message says which file belongs where.
    """
    return [_locate(kind, file, Path(root), download) for file in files]


def _locate(kind: str, file: File, root: Path, download: bool) -> Path:
    path = root / file.name
    by_hand = f"put {file.urls[0]} at {path}"
    if path.is_file():
        _verify(kind, file, path, "run again to download it" if download else by_hand)
        return path
    if not download:
        raise UserError(
            f"data set '{kind}' is not (or not whole) under data.root '{root}': {by_hand}, or set data.download to true."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Jobs may share the root: the second one waits here and then finds the file.
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            log.info("another job downloads %s: waiting for it.", path)
            lock.acquire()
        try:
            if not path.is_file():
                _download(kind, file, path, by_hand)
        finally:
            lock.release()
    except OSError as error:
        raise UserError(
            f"data set '{kind}' cannot be stored under data.root ({error}): free or unlock it, or {by_hand}."
        ) from error
    return path


def _verify(kind: str, file: File, path: Path, remedy: str) -> None:
    try:
        actual = checksum(path, file.checksum)
    except OSError as error:
        raise UserError(f"data set '{kind}': {path} cannot be read ({error}).") from error
    if actual != file.checksum:
        raise UserError(
            f"data set '{kind}': {path} is damaged or another file ({actual}, published is {file.checksum}): "
            f"delete it and {remedy}."
        )


def checksum(path: Path, like: str) -> str:
    """Return a file's checksum, by the algorithm and in the form of ``like`` (``md5:...``, ``sha256:...``)."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{pooch.file_hash(path, algorithm)}"


def _download(kind: str, file: File, path: Path, by_hand: str) -> None:
    """Download into ``.NAME.part`` and rename it once it is whole; the addresses take turns."""
    part = path.with_name(f".{path.name}.part")
    failures, addresses = 0, itertools.cycle(file.urls)
    while failures < TRIES:
        url, before = next(addresses), _size(part)
        log.info("downloading %s%s.", url, f" from byte {before}" if before else "")
        problem = _continue(url, part, file.checksum)
        if problem is None:
            part.replace(path)
            return
        log.info("%s: %s.", url, problem)
        failures = 1 if _size(part) > before else failures + 1
        if failures < TRIES:
            time.sleep(2**failures)
    raise UserError(
        f"data set '{kind}' could not be downloaded after {TRIES} tries ({problem}): check the connection, or {by_hand}."
    )


def _continue(url: str, part: Path, wanted: str) -> str | None:
    """Append what ``part`` lacks; return None if it has the wanted checksum, else the reason."""
    have = _size(part)
    headers = {"User-Agent": "mkdt", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with part.open("ab") as sink:

            def start_anew(response: Response, **options: Any) -> None:
                if response.status_code == WHOLE_FILE:
                    sink.truncate(0)

            options = {"timeout": TIMEOUT, "headers": headers, "hooks": {"response": start_anew}}
            pooch.HTTPDownloader(sys.stderr.isatty(), BLOCK, **options)(url, sink, None)
            os.fsync(sink.fileno())
    except RequestException as error:
        if error.response is None or error.response.status_code != RANGE_NOT_SATISFIABLE:
            return str(error) or type(error).__name__
    actual = checksum(part, wanted)
    if actual == wanted:
        return None
    part.unlink()
    return f"checksum {actual}, published is {wanted}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

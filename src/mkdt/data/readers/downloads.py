"""Files of data sets: found where they lie, or fetched whole, with retries, resumption and checksums."""

import errno
import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from mkdt.config.catalogue import File
from mkdt.errors import UserError

log = logging.getLogger(__name__)

TRIES = 3  # in a row without a byte more; as long as bytes arrive, a broken connection is taken up again
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20
OUR_SIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}  # no server can help with these


def locate(kind: str, files: tuple[File, ...], root: str | Path, download: bool) -> list[Path]:
    """The paths of a data set's files under ``root``, their checksums verified; what is missing is fetched there.

    Nothing is written where nothing is missing, so ``root`` may be read-only.

    Raises:
        UserError: a file is missing, damaged or cannot be fetched; says which file belongs where.
    """
    return [_locate(kind, file, Path(root), download) for file in files]


def _locate(kind: str, file: File, root: Path, download: bool) -> Path:
    path = root / file.name
    by_hand = f"put {file.urls[0]} at {path}"
    if not path.is_file():
        if not download:
            raise UserError(
                f"data set '{kind}' is not (or not whole) under data.root '{root}': {by_hand}, or set data.download to true."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One file for all who share the root: the second waits and then finds it there.
            lock = FileLock(path.with_name(f".{path.name}.lock"))
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                log.info("another job fetches %s: waiting for it.", path)
                lock.acquire()
            try:
                if not path.is_file():
                    _fetch(kind, file, path, by_hand)
            finally:
                lock.release()
        except OSError as error:
            raise UserError(
                f"data set '{kind}' cannot be stored under data.root ({error}): free or unlock it, or {by_hand}."
            ) from error
        return path
    try:
        found = digest(path, file.checksum)
    except OSError as error:
        raise UserError(f"data set '{kind}': {path} cannot be read ({error}).") from error
    if found != file.checksum:
        raise UserError(
            f"data set '{kind}': {path} is damaged or another file ({found}, published is {file.checksum}): delete it "
            f"and {by_hand if not download else 'run again to fetch it anew'}."
        )
    return path


def digest(path: Path, like: str) -> str:
    """A file's checksum by the algorithm of ``like``, in the same form (``md5:...``)."""
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _fetch(kind: str, file: File, path: Path, by_hand: str) -> None:
    """Fetch into ``.NAME.part``, going on where an earlier try stopped, verify, and rename into place."""
    part = path.with_name(f".{path.name}.part")
    failures, tried, reason = 0, 0, ""
    while failures < TRIES:
        before = part.stat().st_size if part.is_file() else 0
        url = file.urls[tried % len(file.urls)]
        tried += 1
        try:
            log.info("fetching %s%s.", url, f" from byte {before}" if before else "")
            _append(url, part)
            if (found := digest(part, file.checksum)) == file.checksum:
                with part.open("rb+") as whole:
                    os.fsync(whole.fileno())
                part.replace(path)
                return
            reason = f"checksum {found}, published is {file.checksum}"
            part.unlink()
            failures += 1
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in OUR_SIDE:
                raise
            reason = str(error) or type(error).__name__
            after = part.stat().st_size if part.is_file() else 0
            failures = 1 if after > before else failures + 1
        log.info("%s: %s.", url, reason)
        if failures < TRIES:
            time.sleep(2**failures)
    raise UserError(
        f"data set '{kind}' could not be downloaded after {TRIES} tries ({reason}): check the connection, or {by_hand}."
    )


def _append(url: str, part: Path) -> None:
    """Add to ``part`` what it lacks; from the start where the server cannot go on in the middle.

    Raises:
        OSError: no connection, an HTTP error, or fewer bytes than were announced.
    """
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "mkdt"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking: the checksum says whether it is the file
        raise
    with response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        start = have if goes_on else 0
        length = response.headers.get("Content-Length")
        with (
            part.open("ab" if goes_on else "wb") as sink,
            tqdm(
                total=int(length) + start if length else None,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=part.name.strip(".").removesuffix(".part"),
                disable=None,
                leave=False,
            ) as bar,
        ):
            while block := response.read(BLOCK):
                sink.write(block)
                bar.update(len(block))
            got = sink.tell()
    if length and got < int(length) + start:
        raise ConnectionError(f"the connection ended after {got} of {int(length) + start} bytes")

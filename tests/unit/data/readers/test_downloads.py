"""Downloads from a local server that breaks off, ignores ranges or serves something else."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import archives
import numpy as np
import pytest

from mkdt.config.catalogue import File
from mkdt.data.readers import downloads
from mkdt.errors import UserError


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between tries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


BLOCK = downloads.BLOCK
CONTENT = np.random.default_rng(0).bytes(5 * BLOCK)


def entry(address: str, checksum: str = "") -> File:
    """A file of the catalogue on a local server."""
    return File("sub/a.bin", (f"{address}/a.bin",), checksum or f"md5:{hashlib.md5(CONTENT).hexdigest()}")


def test_a_broken_download_continues_where_it_stopped(tmp_path: Path, no_pauses: None) -> None:
    """There may be more breaks than tries, since each try brings some bytes."""
    with archives.serve({"a.bin": CONTENT}) as server:
        server.cuts = [BLOCK, BLOCK + 100, BLOCK, BLOCK]
        (path,) = downloads.locate("x", (entry(server.address),), tmp_path, True)
        ranges = [wanted for _, wanted in server.requests]
    assert path.read_bytes() == CONTENT
    assert ranges == [None, *(f"bytes={k * BLOCK}-" for k in range(1, 5))]
    assert sorted(p.name for p in path.parent.iterdir()) in ([".a.bin.lock", "a.bin"], ["a.bin"])


def test_a_server_that_ignores_ranges_is_asked_for_the_whole_file(tmp_path: Path, no_pauses: None) -> None:
    """The part with the whole file behind it has a wrong checksum and is deleted."""
    with archives.serve({"a.bin": CONTENT}) as server:
        server.ranges, server.cuts = False, [BLOCK]
        (path,) = downloads.locate("x", (entry(server.address),), tmp_path, True)
        ranges = [wanted for _, wanted in server.requests]
    assert path.read_bytes() == CONTENT
    assert ranges == [None, f"bytes={BLOCK}-", None]


def test_the_part_of_an_earlier_job_is_used_or_replaced(tmp_path: Path, no_pauses: None) -> None:
    """A partial file of a killed job is continued; one that is wrong or too long is downloaded again."""
    part = tmp_path / "sub" / ".a.bin.part"
    part.parent.mkdir()
    too_long = f"bytes={len(CONTENT) + 1}-"
    for left, expected in (
        (CONTENT[:700], ["bytes=700-"]),
        (b"wrong", ["bytes=5-", None]),
        (CONTENT + b"x", [too_long, None]),
    ):
        part.write_bytes(left)
        with archives.serve({"a.bin": CONTENT}) as server:
            (path,) = downloads.locate("x", (entry(server.address),), tmp_path, True)
            assert [wanted for _, wanted in server.requests] == expected
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_wrong_checksum_is_refused_and_no_file_is_left(tmp_path: Path, no_pauses: None) -> None:
    """The login page of a network must not be taken for a data set, now or in the next run."""
    with (
        archives.serve({"a.bin": b"please log in"}) as server,
        pytest.raises(UserError, match=r"checksum md5:.*put http"),
    ):
        downloads.locate("x", (entry(server.address),), tmp_path, True)
    assert not (tmp_path / "sub" / "a.bin").exists()
    assert not (tmp_path / "sub" / ".a.bin.part").exists()
    assert len(server.requests) == downloads.TRIES


def test_a_mirror_is_tried_and_a_missing_page_is_named(tmp_path: Path, no_pauses: None) -> None:
    """The first address may no longer exist."""
    with archives.serve({"a.bin": CONTENT}) as server:
        file = entry(server.address)
        broken = File(file.name, (f"{server.address}/gone", *file.urls), file.checksum)
        assert downloads.locate("x", (broken,), tmp_path, True)[0].read_bytes() == CONTENT
        gone = File("b.bin", broken.urls[:1], file.checksum)
        with pytest.raises(UserError, match="404"):
            downloads.locate("x", (gone,), tmp_path, True)


def test_a_damaged_file_in_the_root_is_named_and_kept(tmp_path: Path) -> None:
    """The file is the user's: it is neither deleted nor overwritten, and the message says what is wrong."""
    path = tmp_path / "sub" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{path} is damaged or another file .*delete it"):
        downloads.locate("x", (entry("http://127.0.0.1:1"),), tmp_path, True)
    assert path.read_bytes() == b"damaged"


def test_concurrent_jobs_download_once(tmp_path: Path) -> None:
    """Experiments may share a root: one downloads, the others wait and find the file."""
    with archives.serve({"a.bin": CONTENT}) as server, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: downloads.locate("x", (entry(server.address),), tmp_path, True)[0], range(4)))
        assert len(server.requests) == 1
    assert {path.read_bytes() for path in found} == {CONTENT}


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The root is below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be stored under data.root .*put http"):
        downloads.locate("x", (entry("http://127.0.0.1:1"),), tmp_path / "file", True)

"""Every known data set in its published format, downloaded from a local server and read by the real loaders."""

import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
import torch

from mkdt.config.catalogue import DATASETS, FILES, PICTURES, File, table
from mkdt.data import preparation as data
from mkdt.data.readers import archives as sources
from mkdt.data.readers import arrays, downloads
from mkdt.errors import UserError

KINDS = sorted(FILES)
SPLITS = ("train", "validation", "test")


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    """What the rule would give for a small set: a validation split of one image a class, images of 16x16."""
    facts = DATASETS[kind]
    validation = None if facts.validation else facts.classes or 2
    arguments: dict[str, Any] = {"train": None, "validation": validation, "test": None, "image_size": 16, "seed": 0}
    return {"kind": kind, **arguments, **changes}


def test_every_set_but_digits_has_files_and_one_loader() -> None:
    """A kind without a loader would fail only when somebody uses it."""
    assert set(DATASETS) == {*FILES, "digits"}
    assert set(PICTURES) == set(sources.SETS)
    for files in FILES.values():
        for file in files:
            algorithm, _, digits = file.checksum.partition(":")
            assert len(digits) == {"md5": 32, "sha256": 64}[algorithm]


def test_the_page_of_data_sets_is_current() -> None:
    """docs/data.md shows the catalogue: ``python -c 'from mkdt.config.catalogue import table; print(table())'``."""
    assert table() in (Path(__file__).parents[4] / "docs" / "data.md").read_text()


def test_checksums_are_torchvisions() -> None:
    """They are written down again so that a message needs no torch; they must not part."""
    from torchvision import datasets

    known = {
        **{kind: dict(c.resources) for kind, c in [("mnist", datasets.MNIST), ("kmnist", datasets.KMNIST)]},
        "fashion_mnist": dict(datasets.FashionMNIST.resources),
        "cifar10": {datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5},
        "cifar100": {datasets.CIFAR100.filename: datasets.CIFAR100.tgz_md5},
        "stl10": {datasets.STL10.filename: datasets.STL10.tgz_md5},
        "svhn": {name: md5 for _, name, md5 in datasets.SVHN.split_list.values()},
        "flowers102": dict(datasets.Flowers102._file_dict.values()),
    }
    for kind, sums in known.items():
        for file in FILES[kind]:
            assert file.checksum == f"md5:{sums[Path(file.name).name]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_downloaded_decoded_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Image, label and row belong together in every split; the second run needs no server and changes no file."""
    made = archives.make(kind)
    with archives.serve(made.files) as server:
        archives.install(monkeypatch, made, server.address)
        tensors, skipped = data.prepare(root=tmp_path, **settings(kind))
        assert Counter(name for name, _ in server.requests) == Counter(list(made.files))
    assert skipped == []
    for split in SPLITS:
        images, index = tensors[f"{split}_images"], tensors[f"{split}_index"]
        published = split if split in made.labels and (split != "validation" or made.facts.validation) else "train"
        assert images.shape[1:] == (made.facts.channels, 16, 16)
        assert images.dtype == torch.uint8
        colours = torch.from_numpy(made.colours[published])[index].int()
        assert int((images.int() - colours[:, :, None, None]).abs().max() if len(images) else 0) <= 4  # JPEG
        if made.facts.classes:
            assert tensors[f"{split}_labels"].tolist() == [made.labels[published][k] for k in index.tolist()]
        else:
            assert f"{split}_labels" not in tensors
    sizes = [len(tensors[f"{split}_index"]) for split in SPLITS]
    assert sizes[2] == len(made.labels.get("test", []))
    assert sizes[1] == (made.facts.classes or 2) * (2 if made.facts.validation else 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again, _ = data.prepare(root=tmp_path, download=False, **settings(kind))
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", KINDS)
def test_small_sets_come_in_the_size_that_a_test_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Smoke tests of experiment files need enough images for their label fractions."""
    made = archives.make(kind, per_class={"train": 9, "test": 2, "validation": 4}, classes=5)
    archives.install(monkeypatch, made)
    made.write(tmp_path)
    tensors, _ = data.prepare(root=tmp_path, download=False, **settings(kind))
    assert len(tensors["train_index"]) >= 40
    if made.facts.classes:
        assert tensors["train_labels"].unique().tolist() == list(range(5))


@pytest.mark.parametrize("kind", ["cifar10", "stl10", *PICTURES])
def test_a_set_that_was_unpacked_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """torchvision users have the folders and often not the archives any more."""
    made = archives.make(kind)
    archives.install(monkeypatch, made)
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    made.write(packed)
    made.write(unpacked)
    for file in [path for path in unpacked.rglob("*") if path.suffix in {".gz", ".tgz", ".tar", ".zip"}]:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(file.parent)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(file.parent)
        file.unlink()
    first, _ = data.prepare(root=packed, download=False, **settings(kind))
    second, _ = data.prepare(root=unpacked, download=False, **settings(kind))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["cifar10", "tiny_imagenet", "cub200"])
def test_a_root_that_is_read_only_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Shared data belongs to somebody else. (Root may write anywhere, so the folder is compared instead.)"""
    made = archives.make(kind)
    archives.install(monkeypatch, made)
    made.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tmp_path.chmod(0o555)
    try:
        data.prepare(root=tmp_path, **settings(kind))
    finally:
        tmp_path.chmod(0o755)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_counts_than_published_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config was checked with the published sizes."""
    made = archives.make("cub200")
    archives.install(monkeypatch, made)
    monkeypatch.setitem(DATASETS, "cub200", archives.replace(made.facts, train=99))
    made.write(tmp_path)
    with pytest.raises(UserError, match=r"CUB_200_2011.tgz lists 12 train images, published are 99"):
        sources.open_pictures("cub200", tmp_path, False)


@pytest.mark.parametrize("kind", ["cifar10", "svhn", "tiny_imagenet", "cub200", "dogs", "flowers102", "aircraft"])
def test_an_archive_with_other_content_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With a matching checksum, as after a hand-made entry of the catalogue, it is still no traceback."""
    made = archives.make(kind)
    for name in made.files:
        made.files[name] = archives.tar({"readme": b"nothing"}, "w") if "tar" in name else b"nothing"
    archives.install(monkeypatch, made)
    made.write(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}.*fetch it again"):
        data.prepare(root=tmp_path, download=False, **settings(kind))


# --- downloads ---


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


CONTENT = np.random.default_rng(0).bytes(5000)


def entry(address: str, checksum: str = "") -> File:
    """A file of the catalogue on a local server."""
    import hashlib

    return File("sub/a.bin", (f"{address}/a.bin",), checksum or f"md5:{hashlib.md5(CONTENT).hexdigest()}")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, no_pauses: None, ranges: bool) -> None:
    """More breaks than tries, since each brings some bytes; a server that cannot go on starts over."""
    with archives.serve({"a.bin": CONTENT}) as server:
        server.ranges, server.cuts = ranges, [1000, 1500, 800, 900] if ranges else [1000, 1500]
        (path,) = downloads.locate("x", (entry(server.address),), tmp_path, True)
        asked = [wanted for _, wanted in server.requests]
    assert path.read_bytes() == CONTENT
    starts = [None, "bytes=1000-", "bytes=2500-", "bytes=3300-", "bytes=4200-"]
    assert asked == (starts if ranges else [None, "bytes=1000-", "bytes=1500-"])
    assert sorted(p.name for p in path.parent.iterdir()) in ([".a.bin.lock", "a.bin"], ["a.bin"])


def test_what_an_earlier_job_left_is_used_or_replaced(tmp_path: Path, no_pauses: None) -> None:
    """A partial file of a killed job is continued; one that turns out wrong or too long is fetched anew."""
    part = tmp_path / "sub" / ".a.bin.part"
    part.parent.mkdir()
    for left, wanted in ((CONTENT[:700], ["bytes=700-"]), (b"wrong", ["bytes=5-", None]), (CONTENT + b"x", None)):
        part.write_bytes(left)
        with archives.serve({"a.bin": CONTENT}) as server:
            (path,) = downloads.locate("x", (entry(server.address),), tmp_path, True)
            asked = [r for _, r in server.requests]
        assert asked == (wanted or ["bytes=5001-", None])
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_wrong_checksum_is_refused_and_nothing_stays(tmp_path: Path, no_pauses: None) -> None:
    """A captive portal's page must not be taken for a data set, now or in the next run."""
    with (
        archives.serve({"a.bin": b"please log in"}) as server,
        pytest.raises(UserError, match=r"checksum md5:.*put http"),
    ):
        downloads.locate("x", (entry(server.address),), tmp_path, True)
    assert not (tmp_path / "sub" / "a.bin").exists()
    assert not (tmp_path / "sub" / ".a.bin.part").exists()
    assert len(server.requests) == downloads.TRIES


def test_a_mirror_is_tried_and_a_missing_page_is_named(tmp_path: Path, no_pauses: None) -> None:
    """The first address may be gone for good."""
    with archives.serve({"a.bin": CONTENT}) as server:
        file = entry(server.address)
        broken = File(file.name, (f"{server.address}/gone", *file.urls), file.checksum)
        assert downloads.locate("x", (broken,), tmp_path, True)[0].read_bytes() == CONTENT
        gone = File("b.bin", broken.urls[:1], file.checksum)
        with pytest.raises(UserError, match="404"):
            downloads.locate("x", (gone,), tmp_path, True)


def test_a_damaged_file_in_the_root_is_named_and_kept(tmp_path: Path) -> None:
    """It is the user's: the message says what is wrong, and nothing deletes or overwrites it."""
    path = tmp_path / "sub" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{path} is damaged or another file .*delete it"):
        downloads.locate("x", (entry("http://127.0.0.1:1"),), tmp_path, True)
    assert path.read_bytes() == b"damaged"


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    """Two experiments that share a root: the second waits, and finds the file."""
    from concurrent.futures import ThreadPoolExecutor

    with archives.serve({"a.bin": CONTENT}) as server, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: downloads.locate("x", (entry(server.address),), tmp_path, True)[0], range(4)))
        assert len(server.requests) == 1
    assert {path.read_bytes() for path in found} == {CONTENT}


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """Here the root is below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be stored under data.root .*put http"):
        downloads.locate("x", (entry("http://127.0.0.1:1"),), tmp_path / "file", True)


# --- hostile archives ---


def _hostile(name: str, link: str = "") -> bytes:
    import io

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        else:
            info.size = 3
            archive.addfile(info, io.BytesIO(b"bad"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "link"), [("../outside", ""), ("/tmp/outside", ""), ("inside", "/etc/passwd"), ("inside", "other")]
)
def test_nothing_is_unpacked_outside_and_no_link_is_made(tmp_path: Path, name: str, link: str) -> None:
    """Members that leave the folder, by name or by link."""
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "folder"
    archive.write_bytes(_hostile(name, link))
    folder.mkdir()
    with pytest.raises(UserError, match=r"a\.tar\.gz: the member .* (would leave|is a link)"):
        arrays._unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/outside").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive of many zeros."""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(archives.tar({"zeros": bytes(1 << 20), "more": bytes(1 << 20)}))
    monkeypatch.setattr(arrays, "LARGEST_ARCHIVE", 3 << 19)
    with pytest.raises(UserError, match="would unpack to more"):
        arrays._unpack(archive, tmp_path / "out")


def test_links_and_large_members_of_an_archive_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read from the archive itself: a link has no bytes, a bomb too many."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(_hostile("images/a.jpg", "/etc/passwd"))
    ((name, read),) = sources.Tar(path).read(["images/a.jpg", "images/b.jpg"])
    assert name == "images/a.jpg"
    with pytest.raises(OSError, match="link"):
        read()
    monkeypatch.setattr(sources, "LARGEST_MEMBER", 10)
    path.write_bytes(archives.tar({"a.jpg": bytes(11)}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(11))
    for container in (sources.Tar(path), sources.Zip(tmp_path / "a.zip")):
        ((_, read),) = container.read(["a.jpg"])
        with pytest.raises(OSError, match="claims to be 11 bytes"):
            read()

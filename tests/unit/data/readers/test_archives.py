"""Every known data set in its published format, downloaded from a local server and read by the real readers."""

import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import archives
import pytest
import torch

from mkdt.config.catalogue import DATASETS, FILES, PICTURES, table
from mkdt.data import preparation as data
from mkdt.data.readers import archives as sources
from mkdt.errors import UserError

KINDS = sorted(FILES)
SPLITS = ("train", "validation", "test")


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    """The rule's arguments for a small set: a validation split of one image per class, images of 16x16."""
    facts = DATASETS[kind]
    validation = None if facts.validation else facts.classes or 2
    arguments: dict[str, Any] = {"train": None, "validation": validation, "test": None, "image_size": 16, "seed": 0}
    return {"kind": kind, **arguments, **changes}


def test_every_set_but_digits_has_files_and_one_loader() -> None:
    """A kind without a reader would fail only when somebody uses it."""
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
    """The catalogue repeats them so that it needs no torch; both must agree."""
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
        tensors, notes = data.prepare(root=tmp_path, **settings(kind))
        assert Counter(name for name, _ in server.requests) == Counter(list(made.files))
    assert "skipped" not in notes
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
    """Users of torchvision have the folders, but often no longer the archives."""
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
    """Shared data may be read-only. Root may write anywhere, so the folder's content is compared instead."""
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
    """The checksum matches, as after an edit of the catalogue: a UserError names the file."""
    made = archives.make(kind)
    for name in made.files:
        made.files[name] = archives.tar({"readme": b"nothing"}, "w") if "tar" in name else b"nothing"
    archives.install(monkeypatch, made)
    made.write(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}.*download it again"):
        data.prepare(root=tmp_path, download=False, **settings(kind))


def test_links_and_large_members_of_an_archive_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read from the archive itself: a link has no bytes, a decompression bomb too many."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archives.tar_of_one("images/a.jpg", "/etc/passwd"))
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

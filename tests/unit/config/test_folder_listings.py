"""What the config check keeps of image folders: listings of large ones, and no pictures of the runs themselves."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import jpeg

from mkdt.config import folder_listings, image_files, image_folder
from mkdt.config.folder_listings import find
from mkdt.config.image_folder import scan
from mkdt.errors import UserError


def fill(folder: Path, tree: dict[str, int]) -> Path:
    """Write the given number of pictures to each folder below ``folder``."""
    for name, count in tree.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            (folder / name / f"{k}.jpg").write_bytes(jpeg(np.zeros(3, np.uint8), 5, 7))
    return folder


def test_a_large_tree_is_listed_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job checks the config, so an unchanged folder is not listed again and every change is noticed."""
    path, results = fill(tmp_path / "set", {"train/a": 2, "train/b/deep": 2, "val/a": 1}), tmp_path / "results"
    fill(tmp_path, {"elsewhere": 1})
    (path / "train" / "c").symlink_to(tmp_path / "elsewhere")

    def found() -> tuple[dict[str, Any], int]:
        listed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(image_folder, "scan", lambda *arguments: listed.append("") or scan(*arguments))
            find.cache_clear()
            return find(str(path), True, results).found, len(listed)

    first, listed = found()
    assert listed == 1
    assert not results.exists()  # the folder is small
    monkeypatch.setattr(folder_listings, "WORTH_KEEPING", 1)
    assert found() == (first, 1)
    assert not results.exists()  # the folder changed too recently
    places = [path, *path.rglob("*"), tmp_path / "elsewhere"]
    for place in places:
        os.utime(place, (1e9, 1e9))
    assert found() == (first, 1)
    assert found() == (first, 0)
    for changed in ("train/a/new.jpg", "train/b/deep/new.jpg", "train/c/new.jpg", "val/a/new.jpg"):
        (path / changed).write_bytes(b"")
        again, listed = found()
        assert listed == 1
        assert again["names"] != first["names"]
        first = again
    fill(path, {"test/a": 1})
    again, listed = found()
    assert (again["validation"], again["test"], listed) == (2, 1, 1)
    next(results.rglob("*.json")).write_text("damaged")
    assert found()[0] == again


def test_what_is_no_image_yet_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that was not finished, and images that pillow-heif reads once it is installed."""
    monkeypatch.setattr(folder_listings, "WORTH_KEEPING", 1)
    path, results = fill(tmp_path / "set", {"a": 2}), tmp_path / "results"

    def counted() -> int:
        for place in [path, *path.rglob("*")]:
            os.utime(place, (1e9, 1e9)) if place.name != "unfinished" else None
        find.cache_clear()
        train: int = find(str(path), True, results).found["train"]
        return train

    (path / "a" / "unfinished").write_bytes(b"")
    os.utime(path / "a" / "unfinished", (1e9, 1e9))
    (path / "a" / "phone.heic").write_bytes(b"not looked at")
    monkeypatch.setattr(image_files, "reads_heif", lambda: False)
    assert counted() == counted() == 2
    (path / "a" / "unfinished").write_bytes(jpeg(np.zeros(3, np.uint8)))
    assert counted() == 3
    monkeypatch.setattr(image_files, "reads_heif", lambda: True)
    assert counted() == 4


def settle(path: Path) -> None:
    """Let everything have changed long ago."""
    for place in [path, *path.rglob("*")]:
        os.utime(place, (1e9, 1e9))


@pytest.mark.parametrize(
    ("empty", "appearing", "message"),
    [
        ("annotations/x", "annotations/x/1.jpg", "is no split"),
        ("annotations/x", "annotations/x/1", "is no split"),
        ("training/x", "training/x/1.jpg", "all mean the train split"),
    ],
)
def test_a_folder_that_was_found_empty_is_looked_at_again(
    empty: str, appearing: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing depends on what lies in no split too: an image there would be refused."""
    monkeypatch.setattr(folder_listings, "WORTH_KEEPING", 1)
    path, results = fill(tmp_path / "set", {"train/a": 2, empty: 0}), tmp_path / "results"
    image = path / appearing
    image.with_suffix("").write_bytes(b"")  # looked into, and no image
    settle(path)
    find.cache_clear()
    find(str(path), True, results)
    assert list(results.rglob("*.json"))
    image.write_bytes(jpeg(np.zeros(3, np.uint8)))  # without a suffix, the folder stays as it was
    find.cache_clear()
    with pytest.raises(UserError, match=message):
        find(str(path), True, results)


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({"train/a": [f"{k}.jpg" for k in range(100)]}, True),
        ({"train/a": [f"{k}.jpg" for k in range(99)]}, False),
        ({"train/a": [f"{k}" for k in range(4)]}, False),
        ({"train/a": [f"{k}" for k in range(5)]}, True),
        ({"train/a": ["1.jpg", *(f"{k}.xml" for k in range(99))]}, True),
        ({"train/a": ["1.jpg"], "annotations": [f"{k}.xml" for k in range(99)]}, True),
    ],
)
def test_a_listing_is_kept_if_it_takes_long(
    files: dict[str, list[str]], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are passed over take as long as images, and those that are opened much longer."""
    monkeypatch.setattr(folder_listings, "WORTH_KEEPING", 100)
    picture = jpeg(np.zeros(3, np.uint8))
    for folder, names in files.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "set" / folder / name).write_bytes(picture)
    settle(tmp_path / "set")
    find.cache_clear()
    find(str(tmp_path / "set"), True, tmp_path / "results")
    assert bool(list((tmp_path / "results").rglob("*.json"))) == kept


@pytest.mark.parametrize("place", ["", "results", "results/photos", "../{name}", "by link", "photos"])
def test_a_folder_with_the_pictures_of_the_runs_is_refused(tmp_path: Path, place: str) -> None:
    """It contains the results, lies in them, or a link in it leads there; each run would add to its images."""
    fill(tmp_path, {"results/photos/a": 2, "photos/a": 2, "good/a": 2})
    (tmp_path / "by link").symlink_to(tmp_path)
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "results" / "photos")
    results = tmp_path / "results"
    with pytest.raises(UserError, match=r"(contains|leads into) .*results/"):
        find(str(tmp_path / place.format(name=tmp_path.name)), True, results)
    assert find(str(tmp_path / "good"), True, results).found["train"] == 2


def test_results_that_are_not_there_yet_count(tmp_path: Path) -> None:
    """Else the first run would be accepted, and the second one find its pictures."""
    with pytest.raises(UserError, match="contains"):
        find(str(fill(tmp_path, {"a": 2})), True, tmp_path / "results")
    fill(tmp_path, {"results-of-others/a": 2})
    assert find(str(tmp_path / "results-of-others"), True, tmp_path / "results").found["train"] == 2

"""An image folder as a data set: splits, classes, unusual names, links, and the config check."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from archives import jpeg
from configs import settings_of
from hypothesis import given
from hypothesis import strategies as st

from mkdt.config import loading as cfg
from mkdt.config.folder_listings import find
from mkdt.config.image_folder import scan
from mkdt.config.sizes import split_sizes
from mkdt.data.preparation import prepare
from mkdt.errors import UserError

DEFAULT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "config" / "config.yaml").read_text())


def fill(folder: Path, tree: dict[str, int]) -> Path:
    """Write the given number of pictures to each folder below ``folder``."""
    stream = np.random.default_rng(0)
    for name, count in tree.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            (folder / name / f"{k}.jpg").write_bytes(jpeg(stream.integers(0, 256, 3, np.uint8), 5, 7))
    return folder


def sizes(path: Path, labelled: bool = True) -> tuple[dict[str, int], list[str]]:
    """Return the number of images by split, and the classes."""
    tree = scan(str(path), labelled)
    return {split: len(names) for split, names in tree.names.items()}, tree.classes


@pytest.mark.parametrize(
    ("tree", "counts", "classes"),
    [
        ({"cats": 3, "dogs": 2}, {"train": 5}, ["cats", "dogs"]),
        ({"": 4}, {"train": 4}, []),
        ({"": 1}, {"train": 1}, []),
        ({"only": 1}, {"train": 1}, ["only"]),
        ({"cats": 3, "dogs": 2, "none": 0}, {"train": 5}, ["cats", "dogs"]),
        ({"train/b": 2, "train/a": 2, "test/a": 1}, {"train": 4, "test": 1}, ["a", "b"]),
        ({"train/a": 2, "val/a": 1}, {"train": 2, "test": 1}, ["a"]),
        ({"train/a": 2, "val/a": 1, "test/a": 3}, {"train": 2, "validation": 1, "test": 3}, ["a"]),
        ({"train": 2, "val": 1}, {"train": 2, "test": 1}, []),
        ({"a/x/y": 2, "a": 1, "b": 1}, {"train": 4}, ["a", "b"]),
        ({"Zürich 東京": 1, "a b": 2}, {"train": 3}, ["Zürich 東京", "a b"]),
        ({"train/a": 2, "val": 0}, {"train": 2}, ["a"]),
        ({"Train/a": 2, "Test/a": 1}, {"train": 2, "test": 1}, ["a"]),
        ({"training/a": 2, "testing/a": 1}, {"train": 2, "test": 1}, ["a"]),
        ({"TRAIN": 2, "Validation": 1, "Testing": 3}, {"train": 2, "validation": 1, "test": 3}, []),
        ({"train/a": 2, "valid/a": 1, "val": 0}, {"train": 2, "test": 1}, ["a"]),
        ({"test1": 2, "test2": 1}, {"train": 3}, ["test1", "test2"]),
        ({"bullet train": 2, "steam train": 1}, {"train": 3}, ["bullet train", "steam train"]),
        ({"invalid": 2, "latest": 1}, {"train": 3}, ["invalid", "latest"]),
        ({"a": 2, "test": 0}, {"train": 2}, ["a"]),
    ],
)
def test_a_tree_gives_its_splits_and_classes(
    tmp_path: Path, tree: dict[str, int], counts: dict[str, int], classes: list[str]
) -> None:
    """Folders below a split are classes with all deeper images; empty folders are not classes."""
    assert sizes(fill(tmp_path, tree)) == (counts, classes)


def test_folders_need_not_be_classes(tmp_path: Path) -> None:
    """An unlabelled data set may be stored in several folders."""
    assert sizes(fill(tmp_path, {"00": 2, "01": 3, "": 1}), labelled=False) == ({"train": 6}, [])


@pytest.mark.parametrize("tree", [{"test": 2, "extra": 1}, {"train2017": 2, "val2017": 1}, {"a/train": 1, "a/test": 1}])
def test_unlabelled_images_may_lie_in_any_folders(tmp_path: Path, tree: dict[str, int]) -> None:
    """Without labels, nothing is misread."""
    assert sizes(fill(tmp_path, tree), labelled=False)[0] == {"train": sum(tree.values())}


def test_a_held_out_split_without_some_classes_is_named(tmp_path: Path) -> None:
    """Choosing points on half of the classes may be meant, but is said."""
    fill(tmp_path, {f"train/{name}": 1 for name in "abcd"} | {"val/a": 1, "val/b": 1, "val/c": 1, "test/d": 1})
    validation, test = scan(str(tmp_path), True).remarks
    assert "val/ " in validation
    assert "1 of the 4 classes (d)" in validation
    assert "test/ " in test
    assert "3 of the 4 classes (a, b, c)" in test
    fill(tmp_path, {"val/d": 1, "test/a": 1, "test/b": 1, "test/c": 1})
    assert scan(str(tmp_path), True).remarks == []


def test_a_validation_folder_that_becomes_the_test_split_is_named(tmp_path: Path) -> None:
    """ImageNet's validation images are its test split by custom, others' may not be meant so."""
    fill(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (remark,) = scan(str(tmp_path), True).remarks
    assert "val/ is the test split" in remark
    fill(tmp_path, {"test/a": 1, "test/b": 1})
    assert scan(str(tmp_path), True).remarks == []


def test_classes_that_differ_in_case_alone_are_named(tmp_path: Path) -> None:
    """They are two classes on this file system, and one on others."""
    (remark,) = scan(str(fill(tmp_path, {"Disc": 2, "disc": 2, "cube": 2})), True).remarks
    assert "Disc, disc" in remark
    assert "cube" not in remark


def test_images_beside_the_splits_are_named(tmp_path: Path) -> None:
    """They would be missed without a word."""
    fill(tmp_path, {"train/a": 2, "test/a": 1, "": 2})
    (remark,) = scan(str(tmp_path), True).remarks
    assert "beside train/" in remark
    assert "2, such as 0.jpg" in remark


def test_images_of_any_name_keep_the_order_of_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those known by content are sorted among those known by suffix; other files are counted by suffix."""
    fill(tmp_path, {"a": 2, "b": 1})
    for name in ("a/00", "a/0b.photo", "b/x.JFIF", "b/x.AVIF"):
        (tmp_path / name).write_bytes(jpeg(np.zeros(3, np.uint8)))
    for name in ("a/notes.TXT", "a/more.txt", "b/clip.mp4", "b/README"):
        (tmp_path / name).write_text("no image")
    tree = scan(str(tmp_path), True)
    assert tree.names == {"train": ["a/0.jpg", "a/00", "a/0b.photo", "a/1.jpg", "b/0.jpg", "b/x.AVIF", "b/x.JFIF"]}
    (remark,) = tree.remarks
    assert "2 .txt, 1 without suffix, 1 .mp4" in remark
    arguments: dict[str, Any] = {"train": None, "validation": 0, "test": None, "image_size": 4, "seed": 0}
    assert len(prepare("folder", ".", path=str(tmp_path), **arguments)[0]["train_images"]) == 7
    assert remark in caplog.text


def test_other_files_are_ignored(tmp_path: Path) -> None:
    """Thumbnail databases, hidden files and notes are common in image folders."""
    fill(tmp_path, {"a": 2, ".cache": 1})
    for name in ("Thumbs.db", "._0.jpg", "notes.txt", "a/README.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "UPPER.JPG").write_bytes(jpeg(np.zeros(3, np.uint8)))
    assert sizes(tmp_path) == ({"train": 3}, ["a"])


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Data sets are often folders of links."""
    real = fill(tmp_path / "real", {"x": 2})
    path = fill(tmp_path / "set", {"a": 1})
    (path / "b").symlink_to(real / "x")
    (path / "a" / "up").symlink_to(path)
    (path / "a" / "self").symlink_to(path / "a" / "self")
    (path / "b.jpg").symlink_to(tmp_path / "nowhere")
    (path / "b.jpg").unlink()
    counts, classes = sizes(path)
    assert classes == ["a", "b"]
    assert counts == {"train": 3}


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    """An old archive may have names in Latin-1."""
    (tmp_path / "a").mkdir()
    name = os.fsencode(tmp_path) + b"/a/caf\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes(b"damaged")
    fill(tmp_path, {"a": 3})
    arguments: dict[str, Any] = {"train": None, "validation": 0, "test": None, "image_size": 4, "seed": 0}
    with pytest.raises(UserError) as caught:
        prepare("folder", ".", path=str(tmp_path), **arguments)
    assert "caf\N{REPLACEMENT CHARACTER}.jpg" in str(caught.value)
    tensors, notes = prepare("folder", ".", path=str(tmp_path), on_error="skip", **arguments)
    assert len(tensors["train_images"]) == 3
    torch.save({"failed": {os.fsdecode(b"a/caf\xe9.jpg"): ""}}, tmp_path / "state")  # as in a resume point
    assert torch.load(tmp_path / "state", weights_only=True) == {"failed": {os.fsdecode(b"a/caf\xe9.jpg"): ""}}
    assert notes["skipped"] == ["a/caf\N{REPLACEMENT CHARACTER}.jpg"]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "has no images"),
        ({"train": 0}, "train has no images"),
        ({"": 1, "a": 2}, r"beside class folders .*0\.jpg.*labelled: false"),
        ({"train/a": 1, "val/b": 1}, "class 'b', which train/ lacks\\.$"),
        ({"train/two": 1, "val/Two": 1}, "class 'Two', which train/ lacks: it has 'two', which differs in upper and"),
        ({"train/a": 1, "holdout/a": 1}, "holdout/ with images, which is no split: .* rename it to val/ or test/"),
        ({"train/a": 1, "test": 1}, "test has no class folders, but train/ has"),
        ({"train": 2, "plane": 2}, "has train/ and beside it plane/ with images"),
        ({"Train": 2, "plane": 2}, "has Train/ and beside it plane/ with images"),
        ({"train/a": 2, "val/a": 2, "Valid/a": 2}, "has Valid/ and val/"),
        ({"train/a": 2, "Training/a": 2}, "has Training/ and train/"),
        ({"cats": 2, "Test": 1}, r"splits \(Test/\)"),
        ({"valid": 2, "invalid": 1}, r"splits \(valid/\)"),
        ({"seg_train/a": 2, "seg_test/a": 1, "seg_pred": 1}, r"splits \(seg_test/, seg_train/\)"),
        ({"train2017": 2, "val2017": 1}, r"splits \(train2017/, val2017/\)"),
        ({"TrainSet/a": 2, "TestSet/a": 1}, r"splits \(TestSet/, TrainSet/\)"),
        ({"cats/train": 2, "cats/test": 1, "dogs/train": 2}, r"splits \(test, train\) in cats/"),
        ({"photos/Train/a": 2, "photos/val/a": 1}, r"splits \(Train, val\) in photos/"),
    ],
)
def test_a_folder_that_is_not_a_data_set_is_refused(tmp_path: Path, tree: dict[str, int], words: str) -> None:
    """The message names the folder or file at fault."""
    with pytest.raises(UserError, match=words):
        scan(str(fill(tmp_path, tree)), True)


def test_the_order_of_the_directory_does_not_matter(tmp_path: Path) -> None:
    """File systems list names in any order; the order of the images is always the same."""
    for k, order in enumerate(([3, 1, 2], [1, 2, 3])):
        folder = tmp_path / str(k) / "a"
        folder.mkdir(parents=True)
        for name in order:
            (folder / f"{name}.jpg").write_bytes(b"")
    assert scan(str(tmp_path / "0"), True) == scan(str(tmp_path / "1"), True)


@given(counts=st.lists(st.integers(2, 5), min_size=2, max_size=4), seed=st.integers(0, 3))
def test_labels_follow_the_images(tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int) -> None:
    """Each class has one colour; after splitting, colour and label still match."""
    path = tmp_path_factory.mktemp("tree")
    for k, count in enumerate(counts):
        (path / f"class {k}").mkdir()
        for n in range(count):
            (path / f"class {k}" / f"{n}.jpg").write_bytes(jpeg(np.full(3, 60 * k, np.uint8), 3, 4))
    tensors, _ = prepare(
        "folder", ".", path=str(path), train=None, validation=len(counts), test=None, image_size=2, seed=seed
    )
    for split in ("train", "validation"):
        brightness = tensors[f"{split}_images"].float().mean((1, 2, 3)) / 60
        assert torch.equal(brightness.round().long(), tensors[f"{split}_labels"])


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    """The message names the folder, the split and the class; scikit-learn's would say least populated class in y."""
    fill(tmp_path, {"a": 5, "b": 1})
    with pytest.raises(UserError, match=f"{tmp_path} cannot be split by class for validation: one image .* 'b'"):
        prepare("folder", ".", path=str(tmp_path), train=None, validation=2, test=None, image_size=2, seed=0)


@pytest.mark.parametrize(
    ("tree", "splits", "words"),
    [
        ({"a": 9, "b": 9, "c": 9}, {"validation": 2}, "2 of 27 images are split off"),
        ({"a": 9, "b": 9, "c": 9}, {"validation": 26}, "26 of 27 images are split off"),
        ({"a": 9, "b": 2}, {"test": 4, "validation": 2}, "for validation: one image is left of the class 'b'"),
        ({"a": 9, "b": 2}, {"validation": 4, "train": 4}, "for train: one image is left of the class 'b'"),
        ({"": 9}, {"validation": 9}, "9 of 9 images leave none for training"),
    ],
)
def test_splits_that_cannot_be_cut_are_refused_in_this_project_s_words(
    tmp_path: Path, tree: dict[str, int], splits: dict[str, int], words: str
) -> None:
    """Whatever scikit-learn would refuse: a class that is too small, after earlier cuts too, or a part without one."""
    arguments: dict[str, Any] = {"train": None, "validation": 0, "test": None, "image_size": 2, "seed": 0, **splits}
    with pytest.raises(UserError, match=words):
        prepare("folder", ".", path=str(fill(tmp_path, tree)), **arguments)


@pytest.mark.parametrize(
    ("tree", "entry", "words"),
    [
        ({"a": 20, "b": 1}, {}, r"datasets\.mine\.validation: the class 'b' has 1 training image, too few"),
        ({"a": 20, "b": 1, "c": 1}, {}, "the classes b, c have 1 training image each"),
        ({"train/a": 20, "train/b": 1, "test/a": 2}, {}, "validation: the class 'b'"),
        ({"a": 20, "b": 1}, {"test": 4}, "mine.test: the class 'b'"),
        ({"a": 20, "b": 2}, {"test": 11}, "validation: the class 'b' has 2 training images"),
        (
            {"train/a": 20, "train/b": 1, "val/a": 2, "test/a": 2},
            {"validation": None, "train": 9},
            "mine.train: the class",
        ),
    ],
)
def test_a_class_too_small_for_the_splits_is_refused_before_any_job(
    tmp_path: Path, tree: dict[str, int], entry: dict[str, Any], words: str
) -> None:
    """Where the job would fail whatever it draws; the job fails too."""
    config = with_folder(fill(tmp_path, tree), **entry)
    with pytest.raises(UserError, match=words):
        cfg.load(config)
    chosen = {key: value for key, value in config["datasets"]["mine"].items() if key not in {"kind", "path"}}
    with pytest.raises(UserError, match="cannot be split by class"):
        prepare("folder", ".", path=str(tmp_path), seed=0, **chosen)


def test_a_small_class_is_no_matter_where_nothing_is_cut(tmp_path: Path) -> None:
    """Every split of the folder is its own; or no image has a label."""
    path = fill(tmp_path, {"train/a": 8, "train/b": 1, "val/a": 2, "val/b": 2, "test/a": 2, "test/b": 1})
    cfg.load(with_folder(path, validation=None))
    cfg.load(with_folder(fill(tmp_path / "flat", {"a": 8, "b": 1}), labelled=False))


def with_folder(path: Path, /, **entry: Any) -> dict[str, Any]:
    """Return the default config with an image folder as its source."""
    config = copy.deepcopy(DEFAULT)
    keys = {"train": None, "validation": 4, "test": None, "image_size": 8}
    config["datasets"]["mine"] = {"kind": "folder", "path": str(path), **keys, **entry}
    config["source"] = "mine"
    config["budgets"] = [2]
    return config


def test_a_folder_is_checked_before_any_job(tmp_path: Path) -> None:
    """Its sizes are used like those of published data sets."""
    path = fill(tmp_path, {"train/a": 8, "train/b": 8, "test/a": 2, "test/b": 2})
    loaded = cfg.load(with_folder(path))
    assert split_sizes(loaded, "mine") == (12, 4, 4)
    given_ = settings_of(loaded, "data", dataset="mine")
    assert {k: v for k, v in given_["found"].items() if k != "names"} == {"train": 16, "test": 4, "classes": 2}
    assert (given_["channels"], given_["labelled"], given_["path"]) == (3, True, str(path))
    assert split_sizes(cfg.load(with_folder(path, validation=0.25)), "mine") == (12, 4, 4)
    scored = with_folder(path)
    scored["probe"] |= {"downstream": ["mine"], "label_fractions": [0.5]}
    cfg.load(scored)


@pytest.mark.parametrize(
    ("tree", "entry", "words"),
    [
        ({"a": 8}, {"path": None}, "datasets.mine.path is missing: .*~ alone is null in YAML"),
        ({"a": 8}, {"path": "/nowhere at all"}, "datasets.mine.path: .*/nowhere at all does not exist"),
        ({"a": 8}, {"image_size": None}, "image_size must be a number"),
        ({"a": 8}, {"validation": 8}, "8 images cannot give 8 .* 1 for training"),
        ({"a": 8}, {"validation": 0.01}, "validation .0.01. is less than one image"),
        ({"a": 1}, {"validation": 1}, "1 images cannot give 1"),
        ({"a": 8, "b": 8}, {"validation": 1}, "less than one image a class"),
        ({"train/a": 8, "val/a": 2}, {"test": 2}, "test must be null: folder has a published test split"),
        ({"train/a": 8, "val/a": 2, "test/a": 2}, {}, "validation must be null"),
        ({"": 8}, {"downstream": True}, "'mine', which is unlabelled"),
        ({"train/a": 8, "test/a": 2}, {"downstream": True}, "'mine', which has one class .'a'"),
        ({"images/a": 8, "images/b": 8}, {"test": 2, "downstream": True}, "one class .*images/ .*datasets.mine.path"),
        ({"a": 8}, {"channels": 2}, "channels must be one of"),
        ({"a": 8}, {"kind": "mnist", "path": "x", "validation": 10}, "path belongs to kind folder, not to mnist"),
    ],
)
def test_each_wrong_entry_of_a_folder_is_refused_in_one_sentence(
    tmp_path: Path, tree: dict[str, int], entry: dict[str, Any], words: str
) -> None:
    """The config check refuses it before any image is decoded."""
    downstream = entry.pop("downstream", False)
    config = with_folder(fill(tmp_path, tree), **entry)
    if downstream:
        config["probe"]["downstream"] = ["mine"]
    with pytest.raises(UserError, match=words) as caught:
        cfg.load(config)
    assert "\n" not in str(caught.value)


def test_a_folder_that_changes_is_decoded_again(tmp_path: Path) -> None:
    """A folder that changes between the config check and the job is refused."""
    path = fill(tmp_path, {"a": 8})
    before = settings_of(cfg.load(with_folder(path)), "data", dataset="mine")
    find.cache_clear()
    (path / "a" / "0.jpg").rename(path / "a" / "other.jpg")
    after = settings_of(cfg.load(with_folder(path)), "data", dataset="mine")
    assert before != after
    with pytest.raises(UserError, match="changed while this ran"):
        prepare(root=".", **before)

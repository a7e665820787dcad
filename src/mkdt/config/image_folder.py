"""An image folder as a data set: its splits, classes and sizes. No torch here, because the config check imports it."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mkdt.config.image_files import FORMATS, Walk, shown, some
from mkdt.errors import UserError

# Names of folders that are splits, in upper or lower case.
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
# Names with one of these in them, such as seg_train, train2017 or testset, are probably splits too.
LIKE_A_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?:set|images|imgs|data)?(?![a-z])")


@dataclass(frozen=True)
class Tree:
    """The images of a folder.

    Attributes:
        names: paths below the folder, by published split, in the order of their code points.
        classes: names of the class folders, ascending; empty if the images are unlabelled.
        labels: index into ``classes`` of each name, by split; empty if the images are unlabelled.
        remarks: sentences about what looks wrong but may be meant.
        folders: every folder that was listed, with the time of its last change in nanoseconds.
        opened: every file that was looked into, with the time of its last change in nanoseconds.
        effort: how long the listing took, as ``Walk.effort``.
    """

    names: dict[str, list[str]]
    classes: list[str]
    labels: dict[str, list[int]]
    remarks: list[str] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict, compare=False)
    opened: dict[str, int] = field(default_factory=dict, compare=False)
    effort: int = field(default=0, compare=False)

    def summary(self) -> dict[str, Any]:
        """Return the number of images by split, the number of classes, and a digest of all names and labels."""
        sha = hashlib.sha256()
        for split in sorted(self.names):
            for name in self.names[split]:
                sha.update(os.fsencode(name) + b"\0")
            sha.update(repr((split, self.labels.get(split))).encode())
        counts: dict[str, Any] = {split: len(names) for split, names in self.names.items()}
        return counts | {"classes": len(self.classes), "names": sha.hexdigest()[:16]}


def scan(path: str, labelled: bool) -> Tree:
    """List the images of a folder.

    If there is a folder ``train/``, the splits are ``train/``, ``val/`` and ``test/``, or their other names in
    ``SPLITS``; otherwise all images are the split ``train``. If there is no ``test/``, ``val/`` is the test split, as
    for ImageNet. Folders directly below a split are its classes; images in deeper folders belong to them. Folders
    without images are not classes. Hidden files are ignored, and so are files that are no images by
    ``mkdt.config.image_files``. Links are followed, each real folder once on a path.

    Args:
        path: the folder.
        labelled: whether folders are classes; if false, all images are unlabelled.

    Raises:
        UserError: no folder, no images, images beside class folders, a held-out class missing from training, or folders
            that look like splits but cannot be used as such.
    """
    root, walk = Path(path), Walk()
    if not root.is_dir():
        raise UserError(f"the image folder {root} does not exist or is no folder.")
    try:
        folders = _split_folders(root, labelled, walk)
        names = {split: sorted(walk.images(root / folder, folder)) for split, folder in folders.items()}
        beside = sorted(walk.images(root, "", deep=False)) if folders["train"] else []
    except OSError as error:
        raise UserError(f"the image folder {root} cannot be read ({error}).") from error
    names = {split: images for split, images in names.items() if images or split == "train"}
    passed_over = walk.passed_over_in_words()
    if not names["train"]:
        raise UserError(
            f"the image folder {root / folders['train']} has no images{passed_over and f' ({passed_over})'}: "
            f"{', '.join(FORMATS)} are read."
        )
    classes, labels = _classes(root, folders, names) if labelled else ([], {})
    remarks = [*_lacking(folders, classes, labels), *_alike(classes), *filter(None, [passed_over])]
    if SPLITS.get(folders.get("test", "").rstrip("/").lower()) == "validation":
        remarks.append(
            f"{folders['test']} is the test split, as there is no test/; validation images are split off {folders['train']}"
        )
    if beside:
        remarks.append(
            f"images beside {folders['train']} belong to no split and are not used: {len(beside):,}, such as "
            f"{shown(beside[0])}"
        )
    return Tree(names, classes, labels, remarks, walk.folders, walk.opened, walk.effort())


# -- splits


def _split_folders(root: Path, labelled: bool, walk: Walk) -> dict[str, str]:
    """Folder of each split below ``root``, with a slash at the end; empty if ``root`` itself is the training split."""
    folders = sorted(name for name in os.listdir(root) if not name.startswith(".") and (root / name).is_dir())
    named = {split: [name for name in folders if SPLITS.get(name.lower()) == split] for split in SPLITS.values()}
    if not named["train"]:
        if labelled:
            _refuse_splits_as_classes(root, folders, walk)
        return {"train": ""}
    chosen = {split: _one_of(root, split, names, walk) for split, names in named.items() if names}
    for other in folders:
        if other not in chosen.values() and walk.has_images(root / other):
            raise UserError(
                f"the image folder {root} has {chosen['train']}/ and beside it {shown(other)}/ with images, which is no "
                f"split: move it away, rename it to val/ or test/ if it is one, or rename {chosen['train']}/ if that is a class."
            )
    if "test" not in chosen and "validation" in chosen:
        chosen["test"] = chosen.pop("validation")
    return {split: f"{name}/" for split, name in chosen.items()}


def _one_of(root: Path, split: str, names: list[str], walk: Walk) -> str:
    """The folder of a split among those with such a name: the one that is not empty."""
    full = [name for name in names if walk.has_images(root / name)] if len(names) > 1 else names
    if len(full) > 1:
        raise UserError(
            f"the image folder {root} has {'/ and '.join(full)}/, which all mean the {split} split: leave one of them."
        )
    return (full or names)[0]


def _refuse_splits_as_classes(root: Path, folders: list[str], walk: Walk) -> None:
    """Refuse folders that would be classes, but look like splits: ``test`` alone, or ``seg_train`` beside ``seg_test``."""
    words = {name: LIKE_A_SPLIT.search(name.lower()) for name in folders}
    like = {name: SPLITS[word[1]] for name, word in words.items() if word and walk.has_images(root / name)}
    if any(name.lower() in SPLITS for name in like) or ("train" in like.values() and len(set(like.values())) > 1):
        raise UserError(
            f"the image folder {root} has no train/, but folders that look like splits "
            f"({', '.join(f'{shown(name)}/' for name in like)}): name the splits train/, val/ and test/ and put the class "
            "folders into them, or give a class another name, or say labelled: false."
        )


# -- classes


def _classes(
    root: Path, folders: Mapping[str, str], names: Mapping[str, list[str]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Classes and labels as in ``Tree``; both empty if no image lies in a class folder."""
    class_of = {split: [_class_folder(name[len(folders[split]) :]) for name in names[split]] for split in names}
    loose = [name for split in names for name, c in zip(names[split], class_of[split], strict=True) if c is None]
    if len(loose) == sum(map(len, names.values())):
        return [], {}
    train = folders["train"]
    for split in names:
        if any(class_of["train"]) and not any(class_of[split]):
            raise UserError(
                f"the image folder {root / folders[split]} has no class folders, but {train} has: move it away (images "
                "without labels cannot be scored), or say labelled: false."
            )
    if loose:
        raise UserError(
            f"the image folder {root} has images beside class folders (such as {shown(loose[0])}): move them into one, "
            "or say labelled: false."
        )
    if not train:
        _refuse_splits_in_classes(root, names["train"])
    classes = sorted(set(filter(None, class_of["train"])))
    number: dict[str | None, int] = {name: k for k, name in enumerate(classes)}
    for split in names:
        unknown = sorted(name for name in set(class_of[split]) - set(number) if name)
        if unknown:
            near = [name for name in classes if name.casefold() == unknown[0].casefold()]
            hint = f": it has '{shown(near[0])}', which differs in upper and lower case" if near else ""
            raise UserError(
                f"the image folder {root / folders[split]} has the class '{shown(unknown[0])}', which {train} lacks{hint}."
            )
    return classes, {split: [number[name] for name in class_of[split]] for split in names}


def _refuse_splits_in_classes(root: Path, names: list[str]) -> None:
    """Refuse ``cat/train/`` beside ``cat/test/``: the images of both would be training images."""
    inside: dict[str, set[str]] = {}
    for name in names:
        above, *deeper = name.split("/")[:-1]
        if deeper and deeper[0].lower() in SPLITS:
            inside.setdefault(above, set()).add(deeper[0])
    for above, splits in inside.items():
        if len({SPLITS[name.lower()] for name in splits}) > 1:
            raise UserError(
                f"the image folder {root} has splits ({', '.join(sorted(splits))}) in {shown(above)}/, which is taken as a "
                f"class: put the classes into train/, val/ and test/, or give {shown(above)}/ as path, or say labelled: false."
            )


def _class_folder(name: str) -> str | None:
    """First folder of a path below its split; None if the image lies beside the class folders."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def _alike(classes: list[str]) -> Iterator[str]:
    """Yield a remark about classes whose names differ in upper and lower case alone."""
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(name.casefold(), []).append(name)
    for names in spelled.values():
        if len(names) > 1:
            yield f"the classes {some(names)} differ in upper and lower case alone, and are taken as different classes"


def _lacking(folders: Mapping[str, str], classes: list[str], labels: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield a remark about each split without images of some classes."""
    for split, numbers in labels.items():
        lacking = [classes[k] for k in sorted(set(range(len(classes))) - set(numbers))]
        if lacking:
            yield (
                f"{folders[split]} has no image of {len(lacking)} of the {len(classes)} classes ({some(lacking)}): "
                f"accuracies on the {split} split say nothing about these"
            )

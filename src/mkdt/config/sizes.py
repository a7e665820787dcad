"""Counts of images: splits and budgets."""

import math
import os

from mkdt.config.catalogue import DATASETS, PICTURES, Dataset
from mkdt.config.folder_listings import Listing, find
from mkdt.config.result_folders import RESULTS
from mkdt.config.sections import Config
from mkdt.errors import UserError


def facts_of(config: Config, dataset: str) -> Dataset:
    """Return the published shape and sizes of a data set of the config; of a folder, those of the images in it."""
    entry = config["datasets"][dataset]
    if entry["kind"] != "folder":
        return DATASETS[entry["kind"]]
    found = folder_listing(config, dataset).found
    train, test, validation = (found.get(split, 0) for split in ("train", "test", "validation"))
    return Dataset(entry.get("channels") or 3, 0, found["classes"], train, test, validation, entry["path"] or "")


def folder_listing(config: Config, dataset: str) -> Listing:
    """Return what lies in the folder of a data set."""
    entry = config["datasets"][dataset]
    try:
        return find(os.path.abspath(entry["path"] or ""), entry.get("labelled") is not False, RESULTS)
    except UserError as error:
        raise UserError(f"config: datasets.{dataset}.path: {error}") from error


def folder_remarks(config: Config, dataset: str) -> list[str]:
    """Return sentences about what looks wrong in a data set's folder but may be meant; none of other kinds."""
    return folder_listing(config, dataset).remarks if config["datasets"][dataset]["kind"] == "folder" else []


def image_shape(config: Config, dataset: str) -> tuple[int, int]:
    """Return the number of channels of a data set's images, and their height and width in pixels."""
    facts = facts_of(config, dataset)
    return facts.channels, config["datasets"][dataset]["image_size"] or facts.size


def split_sizes(config: Config, dataset: str) -> tuple[int, int, int]:
    """Return the numbers of training, validation and test images, each at most ``limit``."""
    train, validation, test = cut_sizes(config, dataset)
    limit = config["datasets"][dataset].get("limit") or math.inf
    return int(min(train, limit)), int(min(validation, limit)), int(min(test, limit))


def cut_sizes(config: Config, dataset: str) -> tuple[int, int, int]:
    """Return the numbers of images as the splits are cut, before ``limit``.

    A fraction is one of the published training images.
    """
    entry, facts = config["datasets"][dataset], facts_of(config, dataset)
    given = {"train": entry["train"], "validation": entry["validation"], "test": entry["test"]}
    counts = {
        split: round(value * facts.train) if value < 1 else int(value)
        for split, value in given.items()
        if value is not None
    }
    left = facts.train - counts.get("validation", 0) - counts.get("test", 0)
    return counts.get("train", left), counts.get("validation", facts.validation), counts.get("test", facts.test)


def train_images(config: Config, dataset: str) -> int:
    """Return the number of training images after the splits."""
    return split_sizes(config, dataset)[0]


def consists_of_files(config: Config, dataset: str) -> bool:
    """Return whether a data set is image files, which are decoded a chunk at a time; others are published as arrays."""
    return config["datasets"][dataset]["kind"] in {*PICTURES, "folder"}

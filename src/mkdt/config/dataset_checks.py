"""Check the entry of a data set in a config: its folder, labels and splits. No torch here."""

from collections.abc import Mapping

from mkdt.config import plan, sizes
from mkdt.config.image_files import shown, some
from mkdt.config.sections import Config
from mkdt.config.slices import FOLDER_OPTIONS
from mkdt.errors import UserError


def fail_if(condition: bool, sentence: str) -> None:
    """Raise a ``UserError`` about the config, where the condition holds."""
    if condition:
        raise UserError(f"config: {sentence}")


def check_components(config: Config, dimension: int, whose: str) -> None:
    """Refuse more components than the representations have.

    Args:
        config: of the run.
        dimension: of the representations.
        whose: what has so many dimensions, the middle of the sentence, with its verb.
    """
    components = config["targets"]["space"]["components"]
    fail_if(
        components is not None and components > dimension,
        f"targets.space.components is {components}, but {whose} {dimension} dimensions.",
    )


def check_dataset(config: Config, name: str) -> None:
    """Check one used data set of a config.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    _check_folder(config, name)
    _check_labels(config, name)
    _check_published(config, name)
    _check_splits(config, name)
    _check_classes(config, name)
    for fraction in config["probe"]["label_fractions"] if name in plan.scored_datasets(config) else ():
        count = sizes.train_images(config, name)
        fail_if(
            round(fraction * count) < 2,
            f"probe.label_fractions: {fraction:g} of the {count} training labels of '{name}' is less than two labels.",
        )


def _check_folder(config: Config, name: str) -> None:
    """The keys that belong to folders, there and nowhere else."""
    entry, key = config["datasets"][name], f"datasets.{name}"
    if entry["kind"] == "folder":
        hint = "where is the folder? (~ alone is null in YAML: write ~/ for your home folder)"
        fail_if(entry.get("path") is None, f"{key}.path is missing: {hint}")
    else:
        given = [option for option in FOLDER_OPTIONS if entry.get(option) is not None]
        fail_if(bool(given), f"{key}.{', '.join(given)} belongs to kind folder, not to {entry['kind']}.")


def _check_labels(config: Config, name: str) -> None:
    """A set that is scored has labels of two classes or more; one of pictures says their size."""
    entry, facts, kind = config["datasets"][name], sizes.facts_of(config, name), config["datasets"][name]["kind"]
    scored = name in plan.scored_datasets(config)
    fail_if(
        scored and not facts.classes,
        f"probe names the data set '{name}', which is unlabelled ({kind}): it can be the source, but the selection set "
        "and the downstream sets need labels.",
    )
    fail_if(
        scored and facts.classes == 1,
        f"probe names the data set '{name}', which has one class{_only_class(config, name)}: it needs two.",
    )
    fail_if(
        entry["image_size"] is None and not facts.size,
        f"datasets.{name}.image_size must be a number, the height and width to which the images of this {kind} are resized.",
    )


def _only_class(config: Config, name: str) -> str:
    """Name the one class of a folder, which may be a folder around the class folders; empty of other sets."""
    classes = sizes.folder_listing(config, name).classes if config["datasets"][name]["kind"] == "folder" else {}
    if len(classes) != 1:
        return ""
    only = shown(next(iter(classes)))
    return f" ('{only}'; if {only}/ holds the class folders, add it to datasets.{name}.path)"


def _check_published(config: Config, name: str) -> None:
    """A split is cut where none is published, and nowhere else."""
    entry, facts, key = config["datasets"][name], sizes.facts_of(config, name), f"datasets.{name}"
    splits = [
        ("test", entry["test"], facts.test, name in config["probe"]["downstream"]),
        ("validation", entry["validation"], facts.validation, True),
    ]
    for split, value, published, needed in splits:
        fail_if(
            bool(published) and value is not None,
            f"{key}.{split} must be null: {entry['kind']} has a published {split} split.",
        )
        fail_if(
            not published and value is None and needed,
            f"{key}.{split} must be a number: {entry['kind']} has no published {split} split.",
        )


def _check_splits(config: Config, name: str) -> None:
    """The splits are whole numbers of images, fit into the set, and have an image of each class."""
    entry, facts, key = config["datasets"][name], sizes.facts_of(config, name), f"datasets.{name}"
    given = {"train": entry["train"], "validation": entry["validation"], "test": entry["test"]}
    for split, value in given.items():
        fail_if(
            value is not None and value >= 1 and value != int(value),
            f"{key}.{split} ({value}) is neither a fraction below 1 nor a whole number.",
        )
    train, validation, test = sizes.cut_sizes(config, name)
    least = max(1, facts.classes)
    for split, count in (("validation", validation), ("test", test)):
        fail_if(
            0 < count < least or (count == 0 and given[split] not in {None, 0}),
            f"{key}.{split} ({given[split]}) is less than one image a class ({least}).",
        )
    fail_if(
        validation == 0 and name in {config["source"], config["probe"]["selection"]},
        f"{key}.validation is 0, which only sets can have that are neither source nor probe.selection.",
    )
    split_off = (0 if entry["validation"] is None else validation) + (0 if entry["test"] is None else test)
    left = facts.train - split_off
    fail_if(
        left < max(least, train),
        f"{key}: {facts.train} images cannot give {split_off} for validation and test and "
        f"{max(least, train)} for training.",
    )
    fail_if(train < 1, f"{key}.train ({entry['train']}) is less than one image.")
    fail_if(
        entry["train"] is not None and 0 < left - train < facts.classes,
        f"{key}.train ({train}) leaves {left - train} images out, too few to draw a subset "
        f"stratified by {facts.classes} classes: take {left} (or null), or at most {left - facts.classes}.",
    )


def _check_classes(config: Config, name: str) -> None:
    """Each class of a folder has two images or more wherever a split is cut by class.

    Which images a cut takes is drawn in the job, which refuses the rest: here only what no draw can split.
    """
    entry, key = config["datasets"][name], f"datasets.{name}"
    classes = sizes.folder_listing(config, name).classes if entry["kind"] == "folder" else {}
    if not classes:
        return
    train, validation, test = sizes.cut_sizes(config, name)
    left, most = sum(classes.values()), min(classes.values())
    cuts = {
        "test": test if entry["test"] is not None else 0,
        "validation": 0 if entry["validation"] is None else validation,
    }
    for split, count in (*cuts.items(), ("train", left - sum(cuts.values()) - train)):
        if not count:
            continue
        fail_if(most < 2, f"{key}.{split}: {_too_small(classes, min(classes.values()))}")
        most = -(-most * (left - count) // left)  # no class keeps more than its share, rounded up
        left -= count


def _too_small(classes: Mapping[str, int], least: int) -> str:
    """Return which classes have ``least`` training images, and what to do about it."""
    few = [name for name, count in classes.items() if count == least]
    which = f"the class '{shown(few[0])}' has" if len(few) == 1 else f"the classes {some(few)} have"
    return (
        f"{which} {least} training image{'s' * (least > 1)}{' each' * (len(few) > 1)}, too few for splits cut by class: "
        "add images, move the class folder away, or bring these splits as folders beside train/ (docs/data.md)."
    )

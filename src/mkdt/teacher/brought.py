"""What a user brings in the place of a trained teacher: read and described before any job needs it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mkdt.artifacts import Artifact
from mkdt.config.dataset_checks import check_components
from mkdt.config.sections import Config
from mkdt.config.sizes import image_shape
from mkdt.config.stages import STAGES
from mkdt.teacher.external_checkpoint import load_checkpoint, summary
from mkdt.teacher.external_targets import load_representations, read_representations


def checks_of(config: Config) -> dict[str, Callable[[], str]]:
    """Return what reads each of the files that the config brings, by the stage whose output it becomes."""
    checkpoint, found = config["teacher"]["checkpoint"], dict[str, Callable[[], str]]()
    if checkpoint["file"] or checkpoint["model"]:
        found["teacher"] = partial(describe_checkpoint, config)
    if config["targets"]["file"]:
        found["targets"] = partial(describe_targets, config)
    return found


def check_brought(config: Config) -> None:
    """Read each file that the config brings.

    Raises:
        UserError: the job that imports it would refuse it.
    """
    for describe in checks_of(config).values():
        describe()


def describe_checkpoint(config: Config) -> str:
    """Read the checkpoint that the config names and return it in words; nothing is downloaded.

    Raises:
        UserError: the job that imports it would refuse it.
    """
    options = config["teacher"]["checkpoint"]
    source, kind = config["source"], config["datasets"][config["source"]]["kind"]
    found = load_checkpoint(options["file"], options, *image_shape(config, source), kind, download=False)
    check_components(config, found.dimension, f"the representations of {options['file'] or options['model']} have")
    return summary(found) if options["file"] else f"{summary(found)}; the first run downloads its weights"


def describe_targets(config: Config) -> str:
    """Read the targets that the config names and return them in words; they fit the images, if the config's are decoded.

    Raises:
        UserError: the job that imports them would refuse them.
    """
    path, source = config["targets"]["file"], {"dataset": config["source"]}
    assert path is not None
    decoded = Path(STAGES["data"].path(config, "data", source))
    # Images that will be decoded anew may be others.
    if not decoded.is_file() or Artifact(decoded).header["parameters"] != STAGES["data"].slice(config, source):
        targets = read_representations(path)[0]
        said = f"{path} has {len(targets):,} rows; the first run compares them with the images"
    else:
        published = STAGES["targets_import"].slice(config, {})["published"]
        found = load_representations(path, Artifact(decoded, "data"), published)
        targets, said = found.targets, f"{path}: {found.order}"
    check_components(config, targets.shape[1], f"the representations of {path} have")
    return said

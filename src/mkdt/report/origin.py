"""What the tables of a report are of: config, code, sets, and the images and labels that accuracies are measured on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mkdt.artifact_header import digest
from mkdt.config.plan import parameters
from mkdt.config.result_folders import RESULTS
from mkdt.config.sections import Config
from mkdt.errors import UserError

if TYPE_CHECKING:  # it imports torch, which reading does not need
    from mkdt.artifacts import Artifact


@dataclass(frozen=True)
class Origin:
    """What a report notes.

    Attributes:
        config: as it was checked and scaled, without ``tracking``.
        code: version of the checkout.
        data: by downstream set the digests of its ``test`` and ``train`` splits, images and labels together.
        sets: identities of training sets, by their path below the results: of all distilled ones, and of a real one of each
            method and budget.
    """

    config: Config
    code: str
    data: Mapping[str, Mapping[str, str]]
    sets: Mapping[str, str] = field(default_factory=dict)


def as_text(config: Config, code: str, data: Mapping[str, "Artifact"], sets: Iterable["Artifact"]) -> str:
    """Format as JSON what ``read`` returns.

    Args:
        config: of the experiment; ``tracking``, which may hold a password, is left out.
        code: version of the checkout.
        data: the decoded downstream sets, by name.
        sets: the training sets.
    """
    noted = {
        "config": {key: value for key, value in config.items() if key != "tracking"},
        "code": code,
        "data": {name: {split: _split(file, split) for split in ("test", "train")} for name, file in data.items()},
        "sets": {file.path.relative_to(RESULTS).as_posix(): file.identity for file in sets},
    }
    return json.dumps(noted, indent=1) + "\n"


def _split(file: "Artifact", split: str) -> str:
    return digest([file.header["digests"][f"{split}_{what}"] for what in ("images", "labels")])


def read(path: Path) -> Origin:
    """Read what a report noted.

    Raises:
        UserError: the file is missing, as in reports of earlier versions, or damaged.
    """
    try:
        found = Origin(**json.loads(path.read_text(encoding="utf-8")))
        parameters(found.config)
        return found
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: snakemake makes it with the rule 'report'.") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged, or of another version ({error}): delete it, and snakemake makes it again with the rule 'report'."
        ) from error

"""What the jobs that score students open: the students of one method, and labelled data sets as the students see them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mkdt.artifacts import Artifact, by_rule
from mkdt.errors import UserError
from mkdt.evaluate.labels import Downstream, View
from mkdt.evaluate.probing import Flags, chosen_points
from mkdt.evaluate.student_grid import Point, StudentGrid
from mkdt.jobs.stage import StageJob
from mkdt.networks.precision import current
from mkdt.report.tables import read_table


def open_students(stage: StageJob) -> tuple[StudentGrid, View, dict[str, str]]:
    """Open the source for its shape and normalisation, and the students or the teacher in their place.

    Returns:
        the students, the form of their images, and the column ``precision`` of their scores: of training and of encoding.
    """
    source = stage.open("source", stage.input.source, "data")
    channels, size = source.shape("train_images")[1:3]
    view = View(channels, size, source.tensor("mean"), source.tensor("std"))
    if stage.wildcards.method == "teacher":
        file = stage.open("teacher", stage.input.students, "teacher")
        return *StudentGrid.of_teacher(file, view), _precisions([file])
    paths = {(int(Path(path).parent.name), int(Path(path).stem)): path for path in stage.input.students}
    files = {student: stage.open(path, path, "pretrain") for student, path in paths.items()}
    return StudentGrid.of_files(files), view, _precisions(files.values())


def _precisions(files: Iterable[Artifact]) -> dict[str, str]:
    """Return the column ``precision``; a teacher that is brought has none of its own."""
    found = {current(), *(file.header["notes"].get("precision", current()) for file in files)}
    return {"precision": " and ".join(sorted(found))}


def open_labelled(
    stage: StageJob, view: View, validation: Collection[str] = (), test: Collection[str] = ()
) -> dict[str, Downstream]:
    """Open the labelled data sets that are inputs; held-out splits only of those that are named."""
    sets = {}
    for path in stage.input.data:
        name = Path(path).parent.name
        splits = ["train", *["validation"] * (name in validation), *["test"] * (name in test)]
        sets[name] = Downstream.read(name, stage.open(path, path, "data"), view, splits)
    return sets


def open_choice(path: str, students: StudentGrid) -> dict[Point, Flags]:
    """Read the points that the rule select chose for these students.

    Raises:
        UserError: the table is damaged, or not of these students.
    """
    rows: list[dict[Any, Any]] = read_table(path, "select").to_dict("records")
    try:
        return chosen_points(rows, students)
    except (ValueError, LookupError) as error:
        raise UserError(
            f"{path} does not choose among these students ({error}): delete it, and snakemake makes it again{by_rule('select')}."
        ) from error

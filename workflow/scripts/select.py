"""Stage select: score one method's students on validation, and choose a point of the grid."""

from collections.abc import Mapping

from mkdt.artifacts import write_table
from mkdt.evaluate.selection import select
from mkdt.jobs import stage as job
from mkdt.jobs.evaluation import open_labelled, open_students
from mkdt.jobs.shown_values import grid_with_choice

with job.stage(snakemake, "select") as stage:
    students, view, made = open_students(stage)
    name = stage.settings["selection"]
    data = open_labelled(stage, view, validation=[name])[name]
    stage.expect(len(students.points) + 1, "point")
    grid: dict[tuple[float, float], Mapping[str, float]] = {}  # the chosen point is reported again at the end

    def report(number: int, point: Mapping[str, float]) -> None:
        grid[point["rate"], point["steps"]] = point
        stage.report(number, point)

    rows = select(students, data, stage.settings, seed=stage.seed, device=stage.device, report=report)
    write_table(stage.output[0], [dict(stage.wildcards.items()) | row | made for row in rows])
    stage.table("grid", grid_with_choice(grid.values(), rows))

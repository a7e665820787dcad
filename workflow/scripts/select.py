"""Stage select: score one method's students on validation, and choose a point of the grid."""

from mkdt.artifacts import write_table
from mkdt.evaluate.selection import select
from mkdt.jobs import stage as job
from mkdt.jobs.evaluation import open_labelled, open_students

with job.stage(snakemake, "select") as stage:
    students, view = open_students(stage)
    name = stage.settings["selection"]
    data = open_labelled(stage, view, validation=[name])[name]
    stage.expect(len(students.points) + 1, "point")
    rows = select(students, data, stage.settings, seed=stage.seed, device=stage.device, report=stage.report)
    write_table(stage.output[0], [dict(stage.wildcards.items()) | row for row in rows])

"""Stage probe: score one method's students on test once, at the points of the grid that validation chose."""

from mkdt.artifacts import write_table
from mkdt.evaluate.probing import probe
from mkdt.jobs import stage as job
from mkdt.jobs.evaluation import open_choice, open_labelled, open_students

with job.stage(snakemake, "probe") as stage:
    students, view, made = open_students(stage)
    chosen = open_choice(stage.input.selection, students)
    downstream = stage.settings["downstream"]
    chooser = stage.settings.get("selection")  # of fine-tuning's learning rate
    sets = open_labelled(stage, view, validation=[chooser], test=downstream)
    stage.expect(len(downstream), "data set")
    rows = probe(
        students,
        chosen,
        [sets[name] for name in downstream],
        stage.settings,
        selection=sets.get(chooser),
        seed=stage.seed,
        device=stage.device,
        report=stage.report,
    )
    write_table(stage.output[0], [dict(stage.wildcards.items()) | row | made for row in rows])

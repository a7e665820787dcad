"""Stage teacher_import: a checkpoint from elsewhere, checked and written in the form of a trained teacher."""

from mkdt.jobs import stage as job
from mkdt.teacher.external_checkpoint import load_checkpoint, summary

with job.stage(snakemake, "teacher_import") as stage:
    data = stage.open("data", stage.input.data, "data")
    channels, size = data.shape("train_images")[1:3]
    found = load_checkpoint(stage.input.get("checkpoint"), stage.settings["checkpoint"], channels, size)
    job.log.info("%s", summary(found))
    stage.provenance.note("checkpoint", found.identity, stage.input.get("checkpoint"))
    known = {"format": found.format, "backbone": found.backbone, "view": found.view}
    stage.save(stage.output.teacher, found.weights, parameters=known)

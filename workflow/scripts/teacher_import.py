"""Stage teacher_import: a checkpoint from elsewhere, checked and written in the form of a trained teacher."""

from mkdt.jobs import stage as job
from mkdt.teacher.external_checkpoint import caution, load_checkpoint, summary

with job.stage(snakemake, "teacher_import") as stage:
    data = stage.open("data", stage.input.data, "data")
    channels, size = data.shape("train_images")[1:3]
    kind = data.header["parameters"]["kind"]
    found = load_checkpoint(stage.input.get("checkpoint"), stage.settings["checkpoint"], channels, size, kind)
    job.log.info("%s", summary(found))
    if sentence := caution(found):
        job.log.warning("%s", sentence)
    stage.provenance.note("checkpoint", found.identity, stage.input.get("checkpoint"))
    known = {"format": found.format, "backbone": found.backbone, "view": found.view, "statistics": found.statistics}
    stage.save(stage.output.teacher, found.weights, parameters=known)

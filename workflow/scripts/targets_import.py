"""Stage targets_import: representations from elsewhere, checked against the training images."""

from mkdt.jobs import stage as job
from mkdt.teacher.external_targets import load_representations

with job.stage(snakemake, "targets_import") as stage:
    data = stage.open("data", stage.input.data, "data")
    found = load_representations(stage.input.file, data, stage.settings["published"])
    stage.provenance.note("file", found.identity, stage.input.file)
    job.log.log(found.level, "%s: %s", stage.input.file, found.order)
    stage.save(stage.output[0], {"targets": found.targets})

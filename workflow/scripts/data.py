"""Stage data: decode a data set once, split it, write uint8 tensors."""

from mkdt import artifacts
from mkdt.data.pictures import Callbacks
from mkdt.data.preparation import prepare
from mkdt.jobs import stage as job

with job.stage(snakemake, "data") as stage:
    tensors, notes = prepare(
        **stage.settings,
        **snakemake.config["data"],
        threads=snakemake.threads,
        resume=lambda: (stage.resume(take_over=False), stage.scratch),
        callbacks=Callbacks(stage.expect, stage.report, stage.checkpoint),
    )
    stage.save(stage.output[0], tensors, notes=notes)
    images = artifacts.Artifact(stage.output[0]).header["digests"]["train_images"]
    job.log.info("digest of the training images, which proves the order of targets.file: %s", images)

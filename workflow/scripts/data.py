"""Rule data: decode a data set once, split it, write uint8 tensors."""

from mkdt import artifacts, job
from mkdt.data import prepare

with job.stage(snakemake) as stage:
    tensors = prepare(root=stage.data["root"], download=stage.data["download"], **stage.settings)
    stage.save(stage.output[0], tensors)
    images = artifacts.Artifact(stage.output[0]).header["digests"]["train_images"]
    job.log.info("digest of the training images, which proves the order of targets.file: %s", images)

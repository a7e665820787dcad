"""Rule data: decode a data set once, split it, write uint8 tensors."""

from mkdt import job
from mkdt.data import prepare

with job.stage(snakemake) as stage:
    tensors = prepare(root=stage.data["root"], download=stage.data["download"], **stage.settings)
    stage.save(stage.output[0], tensors)

"""Rule krr: distillation by kernel ridge regression, from a real subset to the synthetic set."""

from mkdt.distill.krr_st import distill_krr
from mkdt.jobs import stage as job

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    stage.distill(distill_krr, data.tensor("train_images"), targets)

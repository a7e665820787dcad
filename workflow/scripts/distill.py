"""Rule distill: trajectory matching, from a real subset to the synthetic set."""

from mkdt import job
from mkdt.distill import distill

with job.stage(snakemake) as stage:
    experts = stage.open_all("experts", stage.input.experts, "experts")
    stage.distill(distill, experts)

"""Rule distill: trajectory matching, from a real subset to the synthetic set."""

from mkdt.distill.mkdt import distill
from mkdt.jobs import stage as job

with job.stage(snakemake) as stage:
    experts = stage.open_all("experts", stage.input.experts, "experts")
    stage.distill(distill, experts)

"""Rule mtt: trajectory matching of SSL training, from a real subset to the synthetic set."""

from mkdt.distill.mtt_ssl import distill_ssl
from mkdt.jobs import stage as job

with job.stage(snakemake) as stage:
    experts = stage.open_all("experts", stage.input.experts, "sslexperts")
    stage.distill(distill_ssl, experts)

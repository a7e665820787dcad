"""Rule own: a distillation method of ``mkdt.extensions``, from a real subset to the synthetic set."""

from importlib import import_module

from mkdt import job
from mkdt.methods import METHODS
from mkdt.selection import open_source

with job.stage(snakemake) as stage:
    method = stage.wildcards.method
    stage.distill(getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_set"), open_source(stage, method))

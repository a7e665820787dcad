"""Rule own: a distillation method of ``mkdt.extensions``, from a real subset to the synthetic set."""

from importlib import import_module
from typing import Any

from torch import Tensor

from mkdt.config.methods import METHODS
from mkdt.distill.synthetic_set import SyntheticSet, check_distilled
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import open_source

with job.stage(snakemake) as stage:
    method = stage.wildcards.method
    distil = getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_set")

    def checked(initial: SyntheticSet, *inputs: Any, **names: Any) -> tuple[SyntheticSet, Tensor]:
        found, history = distil(initial, *inputs, **names)
        check_distilled(method, initial, found, history)
        return found, history

    stage.distill(checked, open_source(stage, stage.open("data", stage.input.data, "data")))

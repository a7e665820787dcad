"""Rule own: a distillation method of ``mkdt.extensions``, from a real subset to the synthetic set."""

from importlib import import_module
from typing import Any

from torch import Tensor

from mkdt import job
from mkdt.errors import UserError
from mkdt.methods import METHODS
from mkdt.selection import open_source
from mkdt.synthetic import SyntheticSet

with job.stage(snakemake) as stage:
    method = stage.wildcards.method
    distil = getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_set")

    def checked(initial: SyntheticSet, *inputs: Any, **names: Any) -> tuple[SyntheticSet, Tensor]:
        """What the method returns, if it is a set of the size that it was given."""
        found, history = distil(initial, *inputs, **names)
        for name, tensor in initial.tensors().items():
            made = getattr(found, name)
            if made.shape != tensor.shape or made.dtype != tensor.dtype or not bool(made.isfinite().all()):
                raise UserError(
                    f"{method}: its {name} are {made.dtype} {list(made.shape)} or not finite; expected {tensor.dtype} "
                    f"{list(tensor.shape)}, as in the subset that it started from."
                )
        return found, history

    stage.distill(checked, open_source(stage, stage.open("data", stage.input.data, "data")))

"""Rule subset: a real subset with its targets, in the form of a synthetic set."""

from importlib import import_module

import torch

from mkdt.config.methods import METHODS
from mkdt.data.pixels import normalise
from mkdt.distill.subsets import STEP_SIZE
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import open_source

with job.stage(snakemake) as stage:
    method = stage.wildcards.method
    data = stage.open("data", stage.input.data, "data")
    source = open_source(stage, data)
    select = getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_subset")
    rows = select(source, stage.settings, stage.seed, int(stage.wildcards.distill_seed))
    mean, std = data.tensor("mean"), data.tensor("std")  # the teacher's, in `source`, may be others
    step_size = torch.tensor(STEP_SIZE)
    subset = SyntheticSet(normalise(source.images[rows], mean, std), source.targets[rows], step_size, mean, std, rows)
    stage.save(stage.output[0], subset.tensors())

"""Stage subset: a real subset with its targets, in the form of a synthetic set."""

import torch

from mkdt.config.methods import METHODS
from mkdt.data.pixels import normalise
from mkdt.distill.subsets import STEP_SIZE
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import function_of, open_source

with job.stage(snakemake, "subset") as stage:
    method = METHODS[stage.wildcards.method]
    source, data = open_source(stage, method)
    rows = function_of(method.function)(source, stage.settings, stage.seed, int(stage.wildcards.distill_seed))
    mean, std = data.tensor("mean"), data.tensor("std")  # the teacher's, in `source`, may be others
    step_size = torch.tensor(STEP_SIZE)
    subset = SyntheticSet(normalise(source.images[rows], mean, std), source.targets[rows], step_size, mean, std, rows)
    stage.save(stage.output.set, subset.tensors())

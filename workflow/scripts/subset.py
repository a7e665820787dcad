"""Stage subset: a real subset with its targets, in the form of a synthetic set."""

from mkdt.config.methods import METHODS
from mkdt.distill.storage import stored
from mkdt.distill.subsets import real_set
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import function_of, open_source

with job.stage(snakemake, "subset") as stage:
    method = METHODS[stage.wildcards.method]
    source, data = open_source(stage, method)
    rows = function_of(method.function)(source, stage.settings, stage.seed, int(stage.wildcards.distill_seed))
    subset = real_set(source, rows, stage.settings["fixed_views"], data.tensor("mean"), data.tensor("std"))
    stage.save(stage.output.set, stored(subset.tensors(), stage.settings["storage"], real=True), notes=subset.notes())

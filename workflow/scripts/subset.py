"""Stage subset: a real subset with its targets, in the form of a synthetic set."""

from dataclasses import replace

from mkdt.config.methods import METHODS
from mkdt.distill.real_set import real_set
from mkdt.distill.storage import stored
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import function_of, open_source

with job.stage(snakemake, "subset") as stage:
    method = METHODS[stage.wildcards.method]
    source, data = open_source(stage, method)
    # With views the teacher is an input of every subset; a method that does not ask for it chooses as it does without views.
    mean, std = data.tensor("mean"), data.tensor("std")
    seen = source if method.teacher else replace(source, teacher=None, space=None, mean=mean, std=std)
    rows = function_of(method.function)(seen, stage.settings, stage.seed, int(stage.wildcards.distill_seed))
    subset = real_set(source, rows, stage.settings["fixed_views"], mean, std)
    stage.save(stage.output.set, stored(subset.tensors(), stage.settings["storage"], real=True), notes=subset.notes())

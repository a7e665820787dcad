"""Stage method_experts: train a batch of experts of a method's own kind."""

from functools import partial

from mkdt.config.methods import METHODS
from mkdt.jobs import stage as job
from mkdt.jobs.experts import train_batch
from mkdt.jobs.method_inputs import function_of, open_source

with job.stage(snakemake, "method_experts") as stage:
    method = METHODS[stage.wildcards.method]
    train = function_of(f"{method.module}.{stage.wildcards.method}_expert")
    settings = stage.settings
    source, _ = open_source(stage, method)
    train = partial(train, source, settings["student"], settings, seed=stage.seed, device=stage.device)
    train_batch(stage, lambda expert, **callbacks: train(expert=expert, **callbacks))

"""Stage experts: train a batch of experts; those that an earlier job finished are taken over."""

from mkdt.data.pixels import Normalised
from mkdt.distill.experts import train_expert
from mkdt.jobs import stage as job
from mkdt.jobs.experts import train_batch

with job.stage(snakemake, "experts") as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets").to(stage.device)
    images = Normalised(data.tensor("train_images"), data.tensor("mean"), data.tensor("std")).to(stage.device)
    train_batch(
        stage,
        lambda expert, **callbacks: train_expert(
            images, targets, stage.settings["student"], stage.settings, seed=stage.seed, expert=expert, **callbacks
        ),
    )

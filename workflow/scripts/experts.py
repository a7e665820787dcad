"""Rules experts_*: train a batch of experts; those that an earlier job finished are taken over."""

from mkdt.data.pixels import Normalised
from mkdt.distill.experts import train_expert
from mkdt.jobs import stage as job

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets").to(stage.device)
    images = Normalised(data.tensor("train_images"), data.tensor("mean"), data.tensor("std")).to(stage.device)
    stage.train_experts(
        lambda expert, **callbacks: train_expert(
            images, targets, stage.settings["student"], stage.settings, seed=stage.seed, expert=expert, **callbacks
        )
    )

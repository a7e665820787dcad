"""Rules sslexperts_*: train a batch of experts by SSL; those that an earlier job finished are taken over."""

from mkdt.data.pixels import Normalised
from mkdt.distill.mtt_ssl import train_ssl_expert
from mkdt.jobs import stage as job

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    mean, std = data.tensor("mean"), data.tensor("std")
    images = Normalised(data.tensor("train_images"), mean, std).to(stage.device)
    stage.train_experts(
        lambda expert, **callbacks: train_ssl_expert(
            images, mean, std, stage.settings["student"], stage.settings, seed=stage.seed, expert=expert, **callbacks
        )
    )

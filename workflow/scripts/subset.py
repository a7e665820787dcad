"""Rule subset: a real subset with its targets, in the form of a synthetic set."""

import torch

from mkdt import job
from mkdt.data import normalise
from mkdt.subset import STEP_SIZE, high_loss_subset, random_subset
from mkdt.synthetic import SyntheticSet

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    images, mean, std = (data.tensor(name) for name in ("train_images", "mean", "std"))
    if stage.wildcards.method == "random":
        rows = random_subset(len(images), stage.settings["count"], stage.seed, int(stage.wildcards.distill_seed))
    else:
        experts = stage.open_all("experts", stage.input.experts, "experts")
        rows = high_loss_subset([expert.tensor("losses") for expert in experts], stage.settings["count"])
    step_size = torch.tensor(STEP_SIZE)
    subset = SyntheticSet(normalise(images[rows], mean, std), targets[rows], step_size, mean, std, rows)
    stage.save(stage.output[0], subset.tensors())

"""Rule subset: a real subset with its targets, in the form of a synthetic set."""

from importlib import import_module

import torch

from mkdt import job
from mkdt.data import normalise
from mkdt.methods import METHODS
from mkdt.subset import STEP_SIZE, Source
from mkdt.synthetic import SyntheticSet
from mkdt.teacher import load_teacher

with job.stage(snakemake) as stage:
    method = stage.wildcards.method
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    images, mean, std = (data.tensor(name) for name in ("train_images", "mean", "std"))
    losses = []
    if METHODS[method].experts:
        losses = [file.tensor("losses") for file in stage.open_all("experts", stage.input.experts, "experts")]
    teacher, own_mean, own_std = None, mean, std
    if METHODS[method].teacher:
        file = stage.open("teacher", stage.input.teacher, "teacher")
        teacher, own_mean, own_std = load_teacher(file, *images.shape[1:3], mean, std)
    source = Source(images, own_mean, own_std, targets, losses, teacher, stage.device)
    select = getattr(import_module(f"mkdt.{METHODS[method].module}"), f"{method}_subset")
    rows = select(source, stage.settings, stage.seed, int(stage.wildcards.distill_seed))
    step_size = torch.tensor(STEP_SIZE)
    subset = SyntheticSet(normalise(images[rows], mean, std), targets[rows], step_size, mean, std, rows)
    stage.save(stage.output[0], subset.tensors())

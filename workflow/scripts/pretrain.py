"""Rule pretrain: fresh students, one a seed, pre-trained on one training set over the grid of rates and steps."""

from mkdt import job
from mkdt.artifacts import Artifact
from mkdt.data import normalise
from mkdt.pretraining import grid, pretrain_grid
from mkdt.synthetic import load_synthetic

with job.stage(snakemake) as stage:
    method, step_size = stage.wildcards.method, stage.settings.get("step_size", 0.0)
    if hasattr(stage.input, "set"):
        stage.open("set", stage.input.set)
        training_set = load_synthetic(stage.input.set)
        images, targets, step_size = training_set.images, training_set.targets, float(training_set.step_size)
    else:
        data = stage.open("data", stage.input.data, "data")
        targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
        images = normalise(data.tensor("train_images"), data.tensor("mean"), data.tensor("std"))
    images, targets = images.to(stage.device), targets.to(stage.device)
    state = stage.resume()
    rates, steps = grid(stage.settings, method, len(images), step_size)
    seeds = [int(path.rsplit("/", 1)[1].split(".")[0]) for path in stage.output.students]
    stage.expect(len(seeds) * len(rates) * len(steps), "point")
    for seed, path in zip(seeds, stage.output.students, strict=True):
        if stage.restore(path):
            continue
        tensors = pretrain_grid(
            images,
            targets,
            stage.settings["student"],
            stage.settings,
            rates=rates,
            steps=steps,
            seed=seed,
            state=state if state and state["seed"] == seed else None,
            report=stage.report,
            checkpoint=stage.checkpoint,
        )
        stage.save(path, tensors)
        stage.keep(path)
    files = [(seed, Artifact(path)) for seed, path in zip(seeds, stage.output.students, strict=True)]
    stage.write_metrics(
        stage.output.metrics,
        [
            {"step": step, f"loss/seed {seed} rate {rate:g}": loss}
            for seed, file in files
            for rate, losses in zip(rates, file.tensor("losses").tolist(), strict=True)
            for step, loss in zip(steps, losses, strict=True)
        ],
    )

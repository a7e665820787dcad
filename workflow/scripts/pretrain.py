"""Stage pretrain: fresh students, one a seed, pre-trained on one training set over the grid of rates and steps."""

from functools import partial
from pathlib import Path

from mkdt.artifacts import Artifact
from mkdt.config.methods import METHODS
from mkdt.config.result_folders import RESULTS
from mkdt.config.set_checks import doubts
from mkdt.data.pixels import Normalised
from mkdt.data.views import decode
from mkdt.distill.synthetic_set import STEP_SIZE, load_synthetic
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import grid_points, pretrain_grid
from mkdt.jobs import stage as job
from mkdt.seeding import derive


def report(seed, step, values):
    """One curve a seed."""
    stage.report(step, {f"{key}/seed {seed}": value for key, value in values.items()})


with job.stage(snakemake, "pretrain") as stage:
    method, data = stage.wildcards.method, stage.open("data", stage.input.data, "data")
    mean, std, step_size = data.tensor("mean"), data.tensor("std"), STEP_SIZE
    if hasattr(stage.input, "set"):
        maker = METHODS[method].stage if method in METHODS else None  # a file that is brought has any
        training_set = load_synthetic(stage.open("set", stage.input.set, maker))
        arrays = {name: tensor.numpy() for name, tensor in training_set.tensors().items()}
        for sentence in doubts(snakemake.config, arrays) if maker is None else ():
            job.log.warning("%s: %s", stage.input.set, sentence)
        targets, step_size = training_set.targets, float(training_set.step_size)
        images = decode(training_set.normalised(mean, std), training_set.views, mean, std)
        if images.shape[1:] != data.shape("train_images")[1:]:
            shapes = f"{tuple(images.shape[1:])}, the source's {data.shape('train_images')[1:]}"
            raise UserError(f"{stage.input.set}: the images' shape is {shapes}: distil at the source's size.")
    else:
        targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
        images = Normalised(data.tensor("train_images"), mean, std)
    images, targets = images.to(stage.device), targets.to(stage.device)
    state = stage.resume(shared=Path(stage.output.metrics).parent.relative_to(RESULTS))
    rates, steps = grid_points(stage.settings, method, len(images), step_size)
    paths = {int(Path(path).stem): path for path in stage.output.students}
    missing = {seed: path for seed, path in paths.items() if not stage.restore(path)}
    stage.expect(len(missing) * len(rates) * len(steps), "point")
    for seed, path in missing.items():
        # The root seed reaches the students too: another root seed is an independent replication.
        student_seed = derive(stage.seed, "student", seed)
        tensors = pretrain_grid(
            images,
            targets,
            stage.settings["student"],
            stage.settings,
            rates=rates,
            steps=steps,
            seed=student_seed,
            state=state if state and state["seed"] == student_seed else None,
            report=partial(report, seed),
            checkpoint=stage.checkpoint,
        )
        stage.save(path, tensors, rows=["snapshots"])
        stage.keep(path)
    files = [(seed, Artifact(path)) for seed, path in paths.items()]
    stage.write_metrics(
        stage.output.metrics,
        [
            {"step": step, f"loss/rate {rate:g}/seed {seed}": loss}
            for seed, file in files
            for rate, losses in zip(rates, file.tensor("losses").tolist(), strict=True)
            for step, loss in zip(steps, losses, strict=True)
        ],
    )

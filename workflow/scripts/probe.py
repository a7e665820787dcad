"""Stage probe: score one method's students on validation, choose a point of the grid, then score it on test once."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mkdt.artifacts import write_table
from mkdt.data.pixels import Normalised, adapt
from mkdt.evaluate.labels import Downstream
from mkdt.evaluate.pretraining import snapshots
from mkdt.evaluate.selection import probe
from mkdt.jobs import stage as job
from mkdt.jobs.shown_values import grid_with_choice, probe_metrics
from mkdt.networks.precision import current
from mkdt.teacher.encoding import load_teacher

UNREAD = torch.empty(0), torch.empty(0)

with job.stage(snakemake, "probe") as stage:
    source = stage.open("source", stage.input.source, "data")
    channels, size = source.shape("train_images")[1:3]
    mean, std, files = source.tensor("mean"), source.tensor("std"), []
    if stage.wildcards.method == "teacher":  # one network for all students
        files = [stage.open("teacher", stage.input.students, "teacher")]
        teacher, mean, std = load_teacher(files[0], channels, size, mean, std)
        rates, steps, students = {(0, 0): [0.0]}, [0], {(0, 0): lambda rate, step: teacher}
    else:
        students, rates = {}, {}
        for path in stage.input.students:
            files.append(stage.open(path, path, "pretrain"))
            student = int(Path(path).parent.name), int(Path(path).stem)
            students[student], rates[student] = snapshots(files[-1]), files[-1].tensor("rates").tolist()
        steps = files[-1].tensor("steps").tolist()
    sets = {}
    for path in stage.input.data:
        data, name = stage.open(path, path, "data"), Path(path).parent.name
        needed = {
            "train": True,
            "validation": name == stage.settings["selection"],
            "test": name in stage.settings["downstream"],
        }
        splits = [
            (
                Normalised(adapt(data.tensor(f"{split}_images"), channels, size), mean, std),
                data.tensor(f"{split}_labels"),
            )
            if wanted
            else UNREAD
            for split, wanted in needed.items()
        ]
        sets[name] = Downstream(name, *splits)
    stage.expect(len(next(iter(rates.values()))) * len(steps), "point")
    grid: list[Mapping[str, float]] = []

    def report(number: int, point: Mapping[str, float]) -> None:
        grid.append(point)
        stage.report(number, {f"grid/{name}": value for name, value in point.items()})

    rows = probe(
        students,
        rates,
        steps,
        sets[stage.settings["selection"]],
        [sets[name] for name in stage.settings["downstream"]],
        stage.settings,
        seed=stage.seed,
        device=stage.device,
        report=report,
    )
    # Of training and of encoding; a teacher that is brought has none.
    precisions = {current(), *(file.header["notes"].get("precision", current()) for file in files)}
    made = {"precision": " and ".join(sorted(precisions))}
    write_table(stage.output[0], [dict(stage.wildcards.items()) | row | made for row in rows])
    stage.conclude(grid_with_choice(grid, rows), probe_metrics(rows))

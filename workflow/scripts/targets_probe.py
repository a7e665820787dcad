"""Stage targets_probe: compare a linear probe on the targets with one on the pixels; log it, and warn of poor targets."""

import logging
import sys
from pathlib import Path

from mkdt.evaluate.labels import at_chance
from mkdt.evaluate.targets_probe import probe_targets
from mkdt.jobs import stage as job

with job.stage(snakemake, "targets_probe") as stage:
    data = stage.open("data", stage.input.data, "data")
    file = stage.open("targets", stage.input.targets, "targets")
    rows, level = [], logging.INFO
    said = "the source has no labels to probe with."
    if "train_labels" in data.names:
        held_out = None
        if "validation_targets" in file.names:
            images, labels = (data.tensor(f"validation_{name}") for name in ("images", "labels"))
            held_out = file.tensor("validation_targets"), images, labels
        images, labels = (data.tensor(f"train_{name}") for name in ("images", "labels"))
        rows = probe_targets(
            file.tensor("targets"),
            images,
            labels,
            held_out,
            stage.settings,
            seed=stage.seed,
            dataset=Path(stage.input.data).parent.name,
        )
        scores = [f"{row['targets']:.1f} and {row['pixels']:.1f} % with {row['labels']} labels" for row in rows]
        said = f"a linear classifier scores on targets and on pixels: {', '.join(scores)}; chance is {rows[0]['chance']:.1f} %."
        if at_chance(rows):
            level = logging.WARNING
            said += (
                " Neither is above chance: check that the labels belong to the images. If they do not, accuracies compare "
                "nothing."
            )
        elif all(row["targets"] < row["pixels"] for row in rows):
            level = logging.WARNING
            said += " These targets say less than the images themselves; experts will imitate them (docs/teachers.md)."
        if level == logging.WARNING:
            print(f"{snakemake.rule}: {said}", file=sys.stderr)
    job.log.log(level, "%s", said)
    for step, row in enumerate(rows):
        stage.report(step, row)
    stage.write_metrics(stage.output[0])

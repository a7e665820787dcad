"""Rule targets_probe: a linear probe on the targets beside one on the pixels, said in the log and warned of."""

import logging
import sys

from mkdt import job
from mkdt.targets_probe import probe_targets

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    file = stage.open("targets", stage.input.targets, "targets")
    if "train_labels" in data.names:
        held_out = None
        if "validation_targets" in file.names:
            images, labels = (data.tensor(f"validation_{name}") for name in ("images", "labels"))
            held_out = file.tensor("validation_targets"), images, labels
        images, labels = (data.tensor(f"train_{name}") for name in ("images", "labels"))
        found = probe_targets(file.tensor("targets"), images, labels, held_out, stage.seed)
        stage.report(0, found)
        said = (
            f"a linear classifier with {found['labels']:.0f} labels scores {found['targets']:.1f} % on the targets, "
            f"{found['pixels']:.1f} % on the pixels"
        )
        if found["targets"] < found["pixels"]:
            said += ": these targets are worse than the images themselves, and experts will imitate them (docs/teachers.md)."
            print(f"{stage.rule}: {said}", file=sys.stderr)
        job.log.log(logging.WARNING if found["targets"] < found["pixels"] else logging.INFO, "%s", said)
    else:
        job.log.info("the source has no labels to probe with.")
    stage.write_metrics(stage.output[0])

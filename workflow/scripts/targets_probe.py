"""Stage targets_probe: compare a linear probe on the targets with one on the pixels; log it, and warn of poor targets."""

import logging
import sys
from pathlib import Path

import torch

from mkdt.evaluate.labels import at_chance
from mkdt.evaluate.targets_probe import Encoder, probe_statistics, probe_targets, statistics_in_words
from mkdt.jobs import stage as job
from mkdt.teacher.encoding import load_teacher


def say(sentence, warn):
    """To the log; a warning also to the terminal."""
    job.log.log(logging.WARNING if warn else logging.INFO, "%s", sentence)
    if warn:
        print(f"{snakemake.rule}: {sentence}", file=sys.stderr)


def other_statistics(file, own_mean, own_std, probed, named):
    """With a brought teacher that was given others than the source's statistics: what these would give instead."""
    channels, size = probed[1].shape[1:3]
    backbone, mean, std = load_teacher(file, channels, size, own_mean, own_std)
    parameters = file.header["parameters"]
    # An input of another size than the source's comes with statistics of its own, and takes long to encode.
    resized = parameters["view"].get("size") not in (None, size)
    if resized or (torch.equal(mean, own_mean) and torch.equal(std, own_std)):
        return {}
    found = probe_statistics(Encoder(backbone, own_mean, own_std), *probed, stage.settings, **named)
    say(*statistics_in_words(found, parameters["statistics"]))
    return {"targets_with_source_statistics": found["other"]}


with job.stage(snakemake, "targets_probe") as stage:
    data = stage.open("data", stage.input.data, "data")
    file = stage.open("targets", stage.input.targets, "targets")
    teacher = stage.input.get("teacher")
    rows = []
    if "train_labels" in data.names:
        held_out = None
        if "validation_targets" in file.names:
            images, labels = (data.tensor(f"validation_{name}") for name in ("images", "labels"))
            held_out = file.tensor("validation_targets"), images, labels
        probed = file.tensor("targets"), *(data.tensor(f"train_{name}") for name in ("images", "labels")), held_out
        named = {"seed": stage.seed, "dataset": Path(stage.input.data).parent.name}
        rows = probe_targets(*probed, stage.settings, **named)
        scores = [f"{row['targets']:.1f} and {row['pixels']:.1f} % with {row['labels']} labels" for row in rows]
        said = f"a linear classifier scores on targets and on pixels: {', '.join(scores)}; chance is {rows[0]['chance']:.1f} %."
        guesses, poor = at_chance(rows), all(row["targets"] < row["pixels"] for row in rows)
        if guesses:
            said += (
                " Neither is above chance: check that the labels belong to the images. If they do not, accuracies compare "
                "nothing."
            )
        elif poor:
            said += " These targets say less than the images themselves; experts will imitate them (docs/teachers.md)."
        say(said, guesses or poor)
        if teacher:
            opened = stage.open("teacher", teacher, "teacher")
            first = min(rows, key=lambda row: row["label_fraction"])
            first |= other_statistics(opened, data.tensor("mean"), data.tensor("std"), probed, named)
    else:
        say("the source has no labels to probe with.", False)
    for step, row in enumerate(rows):
        stage.report(step, row)
    stage.write_metrics(stage.output[0])

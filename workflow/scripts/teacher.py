"""Rule teacher: train a backbone by self-supervised learning on the source's training images."""

from mkdt import distributed, job
from mkdt.teacher import train_teacher

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    devices = snakemake.config["teacher"]["devices"]
    state = stage.resume(processes=devices)
    stage.expect(stage.settings["epochs"], "epoch", state["epoch"] if state else 0)
    backbone = distributed.run(
        train_teacher,
        devices,
        stage.device,
        shared={
            **{name: data.tensor(key) for name, key in (("images", "train_images"), ("mean", "mean"), ("std", "std"))},
            "settings": stage.settings,
            "seed": stage.seed,
            "state": state,
        },
        own={
            "validation": [data.tensor(name) for name in ("train_labels", "validation_images", "validation_labels")],
            "report": stage.report,
            "checkpoint": stage.checkpoint,
        },
    )
    stage.write_metrics(stage.output.metrics)
    stage.save(stage.output.teacher, backbone.state_dict())

"""Stage teacher: train a backbone by self-supervised learning on the source's training images."""

from mkdt.jobs import stage as job
from mkdt.teacher import distributed
from mkdt.teacher.training import train_teacher

with job.stage(snakemake, "teacher") as stage:
    data = stage.open("data", stage.input.data, "data")
    devices, monitor_every = (snakemake.config["teacher"][key] for key in ("devices", "monitor_every"))
    state = stage.resume(processes=devices)
    stage.expect(stage.settings["epochs"], "epoch", state["epoch"] if state else 0)
    watched = ("train_labels", "validation_images", "validation_labels")  # absent where the source is unlabelled
    backbone = distributed.run(
        train_teacher,
        devices,
        stage.device,
        shared={
            "images": data.tensor("train_images"),
            "mean": data.tensor("mean"),
            "std": data.tensor("std"),
            "settings": stage.settings,
            "monitor_every": monitor_every,
            "seed": stage.seed,
            "state": state,
        },
        own={
            "validation": tuple(map(data.tensor, watched)) if set(watched) <= set(data.names) else None,
            "report": stage.report,
            "checkpoint": stage.checkpoint,
        },
    )
    stage.write_metrics(stage.output.metrics)
    # For whoever brings this teacher to another source: it goes on seeing images as it was trained.
    view = {name: data.tensor(name).tolist() for name in ("mean", "std")}
    stage.save(stage.output.teacher, backbone.state_dict(), parameters={"view": view})

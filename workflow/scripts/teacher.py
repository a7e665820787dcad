"""Rule teacher: train a backbone by self-supervised learning on the source's training images."""

from mkdt import job
from mkdt.teacher import train_teacher

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    state = stage.resume()
    stage.expect(stage.settings["epochs"], "epoch", state["epoch"] if state else 0)
    watched = ("train_labels", "validation_images", "validation_labels")  # absent where the source is unlabelled
    backbone = train_teacher(
        data.tensor("train_images"),
        data.tensor("mean"),
        data.tensor("std"),
        stage.settings,
        seed=stage.seed,
        device=stage.device,
        validation=tuple(map(data.tensor, watched)) if set(watched) <= set(data.names) else None,
        state=state,
        report=stage.report,
        checkpoint=stage.checkpoint,
    )
    stage.write_metrics(stage.output.metrics)
    stage.save(stage.output.teacher, backbone.state_dict())

"""Rules experts_*: train a batch of experts; those that an earlier job finished are taken over."""

from pathlib import Path

from mkdt import job
from mkdt.artifacts import Artifact
from mkdt.data import Normalised
from mkdt.experts import train_expert

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets").to(stage.device)
    state = stage.resume(shared=Path(stage.output.experts[0]).parent.relative_to("results"))
    missing = [path for path in stage.output.experts if not stage.restore(path)]
    images = Normalised(data.tensor("train_images"), data.tensor("mean"), data.tensor("std")).to(stage.device)
    stage.expect(len(missing) * stage.settings["epochs"], "epoch")
    for path in missing:
        expert = int(Path(path).stem)
        tensors = train_expert(
            images,
            targets,
            stage.settings["student"],
            stage.settings,
            seed=stage.seed,
            expert=expert,
            state=state if state and state["expert"] == expert else None,
            report=stage.report,
            checkpoint=stage.checkpoint,
        )
        stage.save(path, tensors, rows=["trajectory"])
        stage.keep(path)
    stage.write_metrics(
        stage.output.metrics,
        [
            {"step": epoch + 1, f"loss/{int(Path(path).stem)}": loss}
            for path in stage.output.experts
            for epoch, loss in enumerate(Artifact(path).tensor("epoch_losses").tolist())
        ],
    )

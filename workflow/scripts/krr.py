"""Rule krr: distillation by kernel ridge regression, from a real subset to the synthetic set."""

import torch

from mkdt import job
from mkdt.artifacts import write_picture
from mkdt.krr_st import distill_krr
from mkdt.synthetic import load_synthetic

with job.stage(snakemake) as stage:
    stage.open("initial", stage.input.initial, "subset")
    initial = load_synthetic(stage.input.initial)
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    state = stage.resume()
    stage.show(0, initial.pixels())
    stage.expect(stage.settings["iterations"], "iteration", state["iteration"] if state else 0)
    synthetic, history = distill_krr(
        initial,
        data.tensor("train_images"),
        targets,
        stage.settings["student"],
        stage.settings,
        seed=stage.seed,
        distill_seed=int(stage.wildcards.distill_seed),
        device=stage.device,
        state=state,
        report=stage.report,
        checkpoint=stage.checkpoint,
    )
    stage.write_metrics(stage.output.metrics)
    pictures = torch.cat([synthetic.pixels(images) for images in history])
    write_picture(stage.output.evolution, job.grid(pictures, columns=history.shape[1], most=len(pictures)))
    stage.save(stage.output.set, synthetic.tensors())

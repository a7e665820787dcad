"""Rule distill: trajectory matching, from a real subset to the synthetic set."""

import torch

from mkdt import job
from mkdt.artifacts import write_picture
from mkdt.distill import distill
from mkdt.synthetic import load_synthetic

with job.stage(snakemake) as stage:
    stage.open("initial", stage.input.initial, "subset")
    initial = load_synthetic(stage.input.initial)
    experts = stage.open_all("experts", stage.input.experts, "experts")
    state = stage.resume()
    stage.show(0, initial.pixels())
    stage.expect(stage.settings["iterations"], "iteration", state["iteration"] if state else 0)
    synthetic, history = distill(
        initial,
        experts,
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

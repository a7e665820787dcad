"""Stage distill: from a real subset to the synthetic set, by the method in the path."""

from functools import partial

import torch

from mkdt.artifacts import write_picture
from mkdt.config.methods import METHODS
from mkdt.data.pixels import image_grid
from mkdt.distill.storage import stored
from mkdt.distill.synthetic_set import check_distilled, load_synthetic
from mkdt.jobs import stage as job
from mkdt.jobs.method_inputs import function_of, open_source

with job.stage(snakemake, "distill") as stage:
    method = stage.wildcards.method
    source, _ = open_source(stage, METHODS[method])
    # Last, since all inputs decide the resume state.
    initial = load_synthetic(stage.open("initial", stage.input.initial, "subset"))
    state = stage.resume()
    stage.show(0, initial.pixels())
    stage.expect(stage.settings["iterations"], "iteration", state.get("iteration", 0) if state else 0)
    distil = partial(function_of(METHODS[method].function), initial, source, stage.settings["student"], stage.settings)
    synthetic, history = distil(
        seed=stage.seed,
        distill_seed=int(stage.wildcards.distill_seed),
        device=stage.device,
        state=state,
        report=stage.report,
        checkpoint=stage.checkpoint,
    )
    check_distilled(method, initial, synthetic, history)
    stage.write_metrics(stage.output.metrics)
    pictures = torch.cat([synthetic.pixels(images) for images in history])
    write_picture(stage.output.evolution, image_grid(pictures, columns=history.shape[1], most=len(pictures)))
    tensors = stored(synthetic.tensors(), stage.settings["storage"], real=False)
    stage.save(stage.output.set, tensors, notes=synthetic.notes())

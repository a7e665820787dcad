"""Rule distill: trajectory matching, from a real subset to the synthetic set."""

from mkdt import job
from mkdt.distill import distill, moments
from mkdt.report import plot_images, save_figure
from mkdt.synthetic import load_synthetic

with job.stage(snakemake) as stage:
    stage.open("initial", stage.input.initial, "subset")
    initial = load_synthetic(stage.input.initial)
    experts = stage.open_all("experts", stage.input.experts, "experts")
    state = stage.resume()
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
    rows = [
        (str(moment), synthetic.pixels(images)) for moment, images in zip(moments(stage.settings), history, strict=True)
    ]
    save_figure(stage.output.evolution, plot_images(rows))
    stage.save(stage.output.set, synthetic.tensors())

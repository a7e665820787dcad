"""Rule distill: trajectory matching, from a real subset to the synthetic set."""

from mkdt import job
from mkdt.distill import distill

with job.stage(snakemake) as stage:
    experts = stage.open_all("experts", stage.input.experts, "experts")
    initial, state = stage.start_distilling()
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
    stage.save_distilled(synthetic, history)

"""Rule mtt: trajectory matching of SSL training, from a real subset to the synthetic set."""

from mkdt import job
from mkdt.mtt_ssl import distill_ssl

with job.stage(snakemake) as stage:
    experts = stage.open_all("experts", stage.input.experts, "sslexperts")
    initial, state = stage.start_distilling()
    synthetic, history = distill_ssl(
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

"""Rule krr: distillation by kernel ridge regression, from a real subset to the synthetic set."""

from mkdt import job
from mkdt.krr_st import distill_krr

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    initial, state = stage.start_distilling()
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
    stage.save_distilled(synthetic, history)

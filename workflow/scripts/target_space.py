"""Stage target_space: the targets in another space, fitted on the training images' representations."""

from mkdt.jobs import stage as job
from mkdt.teacher.target_space import fit_space

with job.stage(snakemake, "target_space") as stage:
    file = stage.open("representations", stage.input.representations, "targets")
    space = fit_space(file.tensor("targets"), stage.settings)
    names = [name for name in ("targets", "validation_targets") if name in file.names]
    mapped = {name: space.apply(file.tensor(name)) for name in names}
    kept = float(space.explained.sum())
    job.log.info(
        "%d of %d dimensions, %.1f %% of the second moments", len(space.explained), len(space.mean), 100 * kept
    )
    stage.save(stage.output.targets, mapped | space.tensors())

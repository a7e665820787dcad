"""Stage targets: the teacher's representation of every training image, and of the validation images, in eval mode."""

from mkdt.jobs import stage as job
from mkdt.teacher.encoding import load_teacher, represent

with job.stage(snakemake, "targets") as stage:
    data = stage.open("data", stage.input.data, "data")
    teacher = stage.open("teacher", stage.input.teacher, "teacher")
    images, held_out = data.tensor("train_images"), data.tensor("validation_images")
    backbone, mean, std = load_teacher(teacher, *images.shape[1:3], data.tensor("mean"), data.tensor("std"))
    targets, validation = (represent(backbone, part, mean, std, stage.device) for part in (images, held_out))
    stage.save(stage.output[0], {"targets": targets, "validation_targets": validation})

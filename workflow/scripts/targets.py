"""Rule targets: the teacher's representation of every training image, in eval mode."""

from mkdt import job
from mkdt.models import build_backbone
from mkdt.teacher import represent

with job.stage(snakemake) as stage:
    data = stage.open("data", stage.input.data, "data")
    teacher = stage.open("teacher", stage.input.teacher, "teacher")
    images = data.tensor("train_images")
    backbone = build_backbone(stage.settings["backbone"], images.shape[1], images.shape[2])
    backbone.load_state_dict({name: teacher.tensor(name) for name in teacher.names})
    targets = represent(backbone, images, data.tensor("mean"), data.tensor("std"), stage.device)
    stage.save(stage.output[0], {"targets": targets})

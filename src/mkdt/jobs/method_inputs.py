"""What a job lets a method look at, opened from the artifacts that the method asks for."""

from typing import TYPE_CHECKING

from mkdt.artifacts import Artifact
from mkdt.config.methods import METHODS
from mkdt.distill.source import Source
from mkdt.teacher.encoding import load_teacher

if TYPE_CHECKING:
    from mkdt.jobs.stage import Stage


def open_source(stage: "Stage", data: Artifact) -> Source:
    """The source's images and targets, with the experts and the teacher where the method needs them.

    Args:
        stage: a job of a method, with the input ``targets``, and where ``METHODS`` says so ``experts`` and ``teacher``.
        data: its input ``data``, open.
    """
    method = METHODS[stage.wildcards.method]
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    images, mean, std = (data.tensor(name) for name in ("train_images", "mean", "std"))
    experts = stage.open_all("experts", stage.input.experts, "experts") if method.experts else []
    teacher, own_mean, own_std = None, mean, std
    if method.teacher:
        file = stage.open("teacher", stage.input.teacher, "teacher")
        teacher, own_mean, own_std = load_teacher(file, images.shape[1], images.shape[2], mean, std)
    losses = [file.tensor("losses") for file in experts]
    return Source(images, own_mean, own_std, targets, losses, teacher, stage.device, experts)

"""What a job lets a method look at, opened from the artifacts that the method asks for."""

from typing import TYPE_CHECKING

from mkdt.methods import METHODS
from mkdt.subset import Source
from mkdt.teacher import load_teacher

if TYPE_CHECKING:
    from mkdt.job import Stage


def open_source(stage: "Stage", method: str) -> Source:
    """The source's images and targets, with the experts and the teacher where the method needs them.

    Args:
        stage: a job whose inputs are ``data`` and ``targets``, and where needed ``experts`` and ``teacher``.
        method: its entry of ``METHODS`` says what it needs.
    """
    data = stage.open("data", stage.input.data, "data")
    targets = stage.open("targets", stage.input.targets, "targets").tensor("targets")
    images, mean, std = (data.tensor(name) for name in ("train_images", "mean", "std"))
    experts = stage.open_all("experts", stage.input.experts, "experts") if METHODS[method].experts else []
    teacher, own_mean, own_std = None, mean, std
    if METHODS[method].teacher:
        file = stage.open("teacher", stage.input.teacher, "teacher")
        teacher, own_mean, own_std = load_teacher(file, images.shape[1], images.shape[2], mean, std)
    losses = [file.tensor("losses") for file in experts]
    return Source(images, own_mean, own_std, targets, losses, teacher, stage.device, experts)

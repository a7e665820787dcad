"""What a job gives to the function of a method: the inputs that the method asks for, opened."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mkdt.artifacts import Artifact
from mkdt.config.methods import Method
from mkdt.distill.source import Source
from mkdt.jobs.stage import StageJob
from mkdt.teacher.encoding import load_teacher
from mkdt.teacher.target_space import stored_space


def function_of(name: str) -> Callable[..., Any]:
    """Return a function by its dotted name below ``mkdt``."""
    module, _, function = name.rpartition(".")
    function_object: Callable[..., Any] = getattr(import_module(f"mkdt.{module}"), function)
    return function_object


def open_source(stage: StageJob, method: Method) -> tuple[Source, Artifact | None]:
    """Open the inputs of a method, as far as the job has them: images and targets, experts, the teacher.

    Returns:
        what the method may look at; and the file of the data, where it is an input: the teacher may normalise otherwise.
    """
    opened: dict[str, Any] = {}
    inputs, data = stage.input, None
    given = set(inputs.keys())
    if "data" in given:
        data = stage.open("data", inputs.data, "data")
        opened |= {"images": data.tensor("train_images"), "mean": data.tensor("mean"), "std": data.tensor("std")}
    if "targets" in given:
        targets = stage.open("targets", inputs.targets, "targets")
        opened["targets"] = targets.tensor("targets")
        if "space_basis" in targets.names:
            opened["space"] = stored_space({name: targets.tensor(name) for name in targets.names})
    if "experts" in given:
        kind = "method_experts" if method.own_experts else "experts"
        opened["experts"] = stage.open_all("experts", inputs.experts, kind)
        if data is not None and not method.own_experts:
            opened["losses"] = [file.tensor("losses") for file in opened["experts"]]
    if "teacher" in given:
        file = stage.open("teacher", inputs.teacher, "teacher")
        channels, size = opened["images"].shape[1:3]
        teacher, mean, std = load_teacher(file, channels, size, opened["mean"], opened["std"])
        opened |= {"teacher": teacher, "mean": mean, "std": std}
    return Source(**opened, device=stage.device), data

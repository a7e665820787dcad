"""A small results folder, as the rules would have written it."""

import json
from pathlib import Path
from typing import Any

import torch

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.evaluate.pretraining import pretrain_grid
from mkdt.networks.backbones import build_backbone

TEACHER = {"architecture": "resnet", "blocks": [1], "width": 4}
SET, STUDENT = "study/sets/mkdt/4img/0.safetensors", "study/pretrain/convnet/mkdt/4img/0/1.safetensors"


def make_results(folder: Path, spec: dict[str, Any], tiny: SyntheticSet) -> None:
    """Write a data set, a teacher, a distilled set and a student, each made from those before, and the choice for the student."""
    (folder / ".experiments").mkdir(parents=True)
    (folder / ".experiments" / "study.json").write_text(json.dumps({"digits": {}, "digits/bt": {}}))
    images = {"train_images": torch.zeros(30, 1, 8, 8, dtype=torch.uint8), "mean": tiny.mean, "std": tiny.std}
    inputs: dict[str, str] = {}

    def save(role: str, path: str, tensors: dict[str, torch.Tensor], **rest: Any) -> None:
        artifacts.save(folder / path, tensors, inputs=dict(inputs), **rest)
        inputs[role] = Artifact(folder / path).identity

    save("data", "digits/data.safetensors", images, stage="data", parameters={"kind": "digits"})
    teacher = build_backbone(TEACHER, 1, 8).state_dict()
    trained = {"backbone": TEACHER, "method": "simclr", "epochs": 3}
    save("teacher", "digits/bt/teacher.safetensors", teacher, stage="teacher", parameters=trained)
    save("set", SET, tiny.tensors(), stage="distill", parameters={"student": spec})
    settings = {"batch": 2, "momentum": 0.9, "weight_decay": 0.0}
    students = pretrain_grid(tiny.images, tiny.targets, spec, settings, rates=[0.01, 0.1], steps=[1, 2], seed=0)
    students["valid"][1, 0] = False
    save("student", STUDENT, students, stage="pretrain", parameters={"student": spec}, rows=["snapshots"])
    points = [
        {"rate": 0.01, "steps": 1, "distill_seed": 0, "seed": 1, "chosen": False},
        {"rate": 0.3, "steps": 2, "distill_seed": 1, "seed": 1, "chosen": True},  # another set, as under the protocol `paper`
        {"rate": 0.1, "steps": 2, "distill_seed": 0, "seed": 1, "chosen": True},
    ]  # fmt: skip
    artifacts.write_table(folder / "study/select/convnet/mkdt/4img.csv", points)

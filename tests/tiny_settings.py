"""Settings of stages at the smallest size, that several tests train with."""

from typing import Any

KRR_ST: dict[str, Any] = {
    "iterations": 6, "batch": 10, "students": 3, "student_steps": 3, "student_lr": 0.05, "student_weight_decay": 1e-3,
    "lr": 0.01, "weight_decay": 0.0, "pictures": 2,
}  # fmt: skip
TEACHER: dict[str, Any] = {
    "method": "barlow_twins",
    "loss": {"off_diagonal": 0.005},
    "backbone": {"architecture": "convnet", "depth": 2, "width": 8, "norm": "batch"},
    "projector": [16, 8],
    "augment": {
        "crop_scale": [0.7, 1.0],
        "flip": False,
        "rotate": 5,
        "shift": 0.05,
        "jitter": 0.2,
        "grayscale": 0,
        "blur": 0,
        "noise": 0.05,
    },
    "optimizer": "adamw",
    "lr": 3e-3,
    "weight_decay": 1e-4,
    "batch": 16,
    "epochs": 3,
    "warmup_epochs": 1,
}
LOSSES = {
    "barlow_twins": {"off_diagonal": 0.005},
    "simclr": {"temperature": 0.5},
    "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
}

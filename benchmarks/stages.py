"""Compare targets, experts, probe, k-means, recording and the start of a job with plain implementations: `make bench`.

Writes ratios to results/benchmarks/stages.json; benchmarks/README.md explains the rows.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine import DEMO, PAPER, Case
from plain import plain_clusters, plain_epoch, plain_probe, plain_targets
from sklearn.datasets import load_digits
from torch import Tensor

from mkdt.data.pixels import in_batches
from mkdt.distill.experts import train_expert
from mkdt.distill.kmeans import clusters
from mkdt.evaluate.linear_probe import fit_linear
from mkdt.jobs.tracking import Run
from mkdt.networks.backbones import build_backbone
from mkdt.networks.students import build_student
from mkdt.teacher.encoding import represent

CPU = torch.device("cpu")


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median seconds of a few calls, after one that is not counted."""
    function()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def targets(spec: dict[str, Any], shape: tuple[int, int], count: int) -> float:
    """Return the time of one image at a time over the time of the stage."""
    torch.manual_seed(0)
    backbone = build_backbone(spec, *shape).eval()
    images = torch.randint(0, 256, (count, shape[0], shape[1], shape[1]), dtype=torch.uint8)
    mean, std = torch.full((shape[0],), 0.5), torch.full((shape[0],), 0.25)
    plain = seconds(lambda: plain_targets(backbone, images, mean, std))
    return plain / seconds(lambda: represent(backbone, images, mean, std, CPU))


ENCODING = """
import resource, sys, time, torch
from mkdt.networks import batching
from mkdt.networks.backbones import build_backbone
from mkdt.teacher.encoding import represent

torch.set_num_threads(1)
torch.manual_seed(0)
backbone, images = build_backbone({"architecture": "resnet18"}, 3, 32), torch.randint(0, 256, (1024, 3, 32, 32), dtype=torch.uint8)
arguments = torch.full((3,), 0.5), torch.full((3,), 0.25), torch.device("cpu")
represent(backbone, images[:8], *arguments)
if sys.argv[1] == "whole":
    batching.CPU_PIXELS = images[:, 0].numel()
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
represent(backbone, images, *arguments)
print(time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def encoding() -> tuple[float, float]:
    """Return CPU time and additional peak resident memory of a batch of 1,024 over those of the stage's batches."""
    made = []
    for way in ("whole", "stage"):
        child = subprocess.run([sys.executable, "-c", ENCODING, way], check=True, capture_output=True, text=True)
        made.append(tuple(map(float, child.stdout.split())))
    return made[0][0] / made[1][0], made[0][1] / made[1][1]


def experts() -> float:
    """Return the time of an epoch with a DataLoader of single items (4 workers) over an epoch of the stage."""
    spec = {"architecture": "convnet", "depth": 2, "width": 32, "norm": "instance"}
    settings = {"batch": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    torch.manual_seed(0)
    images, wanted = torch.randn(5000, 1, 8, 8), torch.randn(5000, 128)
    model = build_student(spec, 1, 8, 128, 0, "benchmark")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    plain = seconds(lambda: plain_epoch(model, optimizer, images, wanted, 256, workers=4))

    def epochs(count: int) -> Callable[[], Any]:
        return lambda: train_expert(images, wanted, spec, {**settings, "epochs": count}, seed=0, expert=0)

    # The difference is the time of two epochs: the start, and the losses after epoch 1, are in both.
    return 2 * plain / (seconds(epochs(3)) - seconds(epochs(1)))


def features(spec: dict[str, Any], shape: tuple[int, int], classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return standardised features float64 [n,D] of an untrained student, and labels, of pairs of digits.

    The labels are the left digit (10 classes), or both (100).
    """
    torch.manual_seed(0)
    digits, labels = load_digits().images, torch.from_numpy(load_digits().target)
    left, right = torch.randint(len(labels), (2, count))
    pairs = torch.cat([torch.from_numpy(digits)[side] / 16 for side in (left, right)], 2)[:, None].float()
    images = torch.nn.functional.interpolate(pairs, (shape[1], shape[1]), mode="bilinear").expand(-1, shape[0], -1, -1)
    student = build_student(spec, *shape, 512, 0, "benchmark").eval()
    values = in_batches(student.backbone, (images + 0.1 * torch.randn_like(images)).split(256)).double()
    standardised = (values - values.mean(0)) / values.std(0).clamp(min=1e-8)
    return standardised, labels[left] if classes == 10 else 10 * labels[left] + labels[right]


def linear_probe(spec: dict[str, Any], shape: tuple[int, int], classes: int, count: int, draws: int) -> float:
    """Return the time of scikit-learn's fits of ``draws`` times ``count`` labels over that of the stage's fit."""
    values, labels = (part.unflatten(0, (draws, count)) for part in features(spec, shape, classes, draws * count))
    plain = seconds(lambda: plain_probe(values, labels, 1e-3), 1)
    return plain / seconds(lambda: fit_linear(values, labels, 1e-3))


def kmeans(count: int, images: int) -> float:
    """Return the time of scikit-learn's k-means over that of the stage's, of 512 features."""
    values = features(PAPER, (3, 32), 100, images)[0][:, ::4].float()
    return seconds(lambda: plain_clusters(values, count), 1) / seconds(
        lambda: clusters(values, count, 0, "benchmark", 0)
    )


def start() -> float:
    """Return the time to import what a distillation job needs over that of `import torch`, in new processes."""
    statements = {
        "torch": "import torch",
        "job": "import mkdt.jobs.stage, mkdt.distill.mkdt, mkdt.distill.synthetic_set",
    }
    taken: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(5):
        for name, statement in statements.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            taken[name].append(time.perf_counter() - begun)
    return statistics.median(taken["job"]) / statistics.median(taken["torch"])


def tracking() -> float:
    """Return the CPU time of recording over the time of distilling, with one report for each step, for 12 seconds."""
    case = Case(DEMO, (1, 8), 14, 128, 20, torch.float32)
    pace, step = seconds(lambda: case.ours(20), 20), 0
    values = dict.fromkeys(["loss", "step_size", "image_gradient", "expert", "start_epoch"], 0.123456789)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), "distill", "distill", {}, {})
        begun, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < 12:
            run.metrics(step, values)
            step += 1
            time.sleep(pace)
        used = time.process_time() - used
        run.close("FINISHED")
    return used / (step * pace)


def main() -> None:
    """Measure on one thread, print one line for each row, and write the JSON."""
    torch.set_num_threads(1)
    results: dict[str, float] = {}
    rows: list[tuple[str, str, Callable[[], float]]] = [
        (
            "targets, one by one / stage, ResNet-18 at 32x32",
            ">= 1.3",
            lambda: targets({"architecture": "resnet18"}, (3, 32), 64),
        ),
        (
            "targets, one by one / stage, demo's teacher",
            ">= 3",
            lambda: targets({"architecture": "resnet", "blocks": [1, 1, 1], "width": 32}, (1, 8), 1300),
        ),
        ("targets, 1,024 at once / stage, CPU time, ResNet-18", ">= 1.1", lambda: encoding()[0]),
        ("the same, additional peak resident memory", ">= 10", lambda: encoding()[1]),
        ("experts, DataLoader of single items / stage, an epoch", ">= 2", experts),
        ("probe, scikit-learn / stage, CIFAR-10, 1 %", ">= 3", lambda: linear_probe(PAPER, (3, 32), 10, 450, 5)),
        ("probe, scikit-learn / stage, 100 classes, 1 %", ">= 3", lambda: linear_probe(PAPER, (3, 32), 100, 450, 2)),
        ("probe, scikit-learn / stage, CIFAR-10, 5 %", ">= 1", lambda: linear_probe(PAPER, (3, 32), 10, 2250, 1)),
        ("probe, scikit-learn / stage, demo, 2 %", ">= 1", lambda: linear_probe(DEMO, (1, 8), 10, 26, 5)),
        ("probe, scikit-learn / stage, demo, 10 %", ">= 1", lambda: linear_probe(DEMO, (1, 8), 10, 130, 5)),
        ("k-means, scikit-learn / stage, 600 of 12,000", ">= 5", lambda: kmeans(600, 12000)),
        ("k-means, scikit-learn / stage, 14 of 1,300", ">= 1", lambda: kmeans(14, 1300)),
        ("start of a job / import torch", "<= 1.5", start),
        ("recording for MLflow / distilling, demo's size", "<= 0.01", tracking),
    ]
    for name, goal, compute in rows:
        results[name] = compute()
        print(f"{name:<58} {goal:<9} {results[name]}", flush=True)
    folder = Path("results/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stages.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Compare the hypergradient with the plain unroll at the paper's sizes on a GPU: `make bench-gpu`.

Measures seconds and peak bytes of an outer step, in float32 and with TF32, and writes results/benchmarks/gpu.json. It
needs 45 GB of device memory. benchmarks/h100.json holds one such run.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from engine import PAPER, Case, relative

SIZES = {"cifar10_2pct": (PAPER, 32, 40), "tinyimagenet_2pct": ({**PAPER, "depth": 4}, 64, 10)}
BATCH, DIMENSION, REPEATS = 256, 512, 3


def measure(case: Case, variant: str) -> tuple[tuple[torch.Tensor, ...], dict[str, float]]:
    """Run outer steps; return the loss and gradients of one, and its time and memory.

    The first call compiles, so its seconds are apart from the median of later calls. The peak is of all calls, in bytes of
    tensors beyond those of the case.
    """
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(1 + REPEATS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        outcome = case.run(variant)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() - held
    return outcome, {"first_seconds": taken[0], "seconds": statistics.median(taken[1:]), "peak_bytes": peak}


def main() -> None:
    """Measure, print one line for each row, and write the JSON."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU, and torch sees none here: `make bench` measures without one.")
    # The same settings as in a job (mkdt.jobs.stage.stage).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    rows: list[dict[str, Any]] = []
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        for size, (spec, pixels, steps) in SIZES.items():
            case = Case(spec, (3, pixels), BATCH, DIMENSION, steps, torch.float32, torch.device("cuda"))
            plain = None
            for variant in ("plain", "0", str(steps), "compiled"):
                outcome, row = measure(case, variant)
                plain = plain or outcome
                errors = [relative(value, reference) for value, reference in zip(outcome, plain, strict=True)]
                differences = dict(zip(("loss", "images", "targets", "step_size"), errors, strict=True))
                rows.append({"size": size, "tf32": tf32, "variant": variant, **row, "relative_to_plain": differences})
                print(rows[-1], flush=True)
    made_with = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    folder = Path("results/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps({**made_with, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

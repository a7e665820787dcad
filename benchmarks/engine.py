"""Compare the hypergradient with the plain unroll in error, memory and time: `make bench`.

Writes results/benchmarks/engine.json; benchmarks/README.md explains the rows. All goals are for ratios and errors.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from plain import plain_unroll
from torch import Tensor

from mkdt.distill.compiled_step import CompiledStep
from mkdt.distill.hypergradient import distance_to, unroll
from mkdt.networks.flat import flat_mse, flatten
from mkdt.networks.students import build_student

CPU = torch.device("cpu")
PAPER = {"architecture": "convnet", "depth": 3, "width": 128, "norm": "instance"}
DEMO = {"architecture": "convnet", "depth": 2, "width": 32, "norm": "instance"}


class Case:
    """The tensors of one matching problem.

    Args:
        spec: the student.
        shape: channels and size of the images.
        count: number of synthetic images; each batch has all of them.
        dimension: of the targets.
        steps: N.
        dtype, device: of all tensors.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        shape: tuple[int, int],
        count: int,
        dimension: int,
        steps: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(0)
        student = build_student(spec, *shape, dimension, 0, "benchmark").to(device, dtype)
        self.loss_fn = flat_mse(student)
        self.theta0 = flatten(student)
        self.target = self.theta0 + 0.01 * torch.randn_like(self.theta0)
        self.images = torch.randn(count, shape[0], shape[1], shape[1], dtype=dtype, device=device)
        self.targets = torch.randn(count, dimension, dtype=dtype, device=device)
        self.lr = torch.tensor(0.05, dtype=dtype, device=device)
        self.batches = [torch.randperm(count).to(device) for _ in range(steps)]
        self.compiled = CompiledStep(self.loss_fn)

    def ours(self, retain: int = 0, compiled: CompiledStep | None = None) -> tuple[Tensor, ...]:
        """Compute loss and gradients by ``unroll``."""
        return unroll(
            self.loss_fn,
            self.theta0,
            {len(self.batches): distance_to(self.target, self.theta0)},
            self.images,
            self.targets,
            self.lr,
            self.batches,
            retain=retain,
            compiled=compiled,
        )

    def plain(self) -> tuple[Tensor, ...]:
        """Compute loss and gradients by ``plain_unroll``."""
        return plain_unroll(self.loss_fn, self.theta0, self.target, self.images, self.targets, self.lr, self.batches)

    def run(self, variant: str) -> tuple[Tensor, ...]:
        """Compute loss and gradients by a variant: ``plain``, ``compiled``, or a number that is ``retain``."""
        if variant == "plain":
            return self.plain()
        return self.ours(compiled=self.compiled) if variant == "compiled" else self.ours(int(variant))


def relative(first: Tensor, second: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of ``second``."""
    return float((first - second).norm() / second.norm())


def gradient_errors() -> dict[str, float]:
    """Return the largest relative error of loss and gradients (float64), to the plain unroll and finite differences."""
    case = Case({**DEMO, "width": 8}, (1, 8), 6, 5, 8, torch.float64)
    wanted = case.plain()
    worst = max(relative(a, b) for retain in (0, 3, 8) for a, b in zip(case.ours(retain), wanted, strict=True))
    direction = [torch.randn_like(value) for value in (case.images, case.targets, case.lr)]
    slope = sum(float((g * d).sum()) for g, d in zip(case.ours(0)[1:], direction, strict=True))
    # A small step, because the loss jumps where a ReLU switches, and a large one would step over such a place.
    step, values = 1e-7, []
    originals = case.images, case.targets, case.lr
    for sign in (1, -1):
        case.images, case.targets, case.lr = (
            value + sign * step * d for value, d in zip(originals, direction, strict=True)
        )
        values.append(float(case.ours(0)[0]))
    difference = (values[0] - values[1]) / (2 * step)
    return {"against_plain": worst, "against_finite_differences": abs(slope - difference) / abs(difference)}


def _tensors(case: Case, variant: str) -> int:
    """Measure the extra peak of bytes in tensors by the profiler: the memory that a GPU's allocator would provide."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.run(variant)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


def _resident(case: Case, variant: str) -> int:
    """Measure the extra peak of the resident set in bytes: tensors, and freed memory that the C library keeps."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.run(variant)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def _measure(measure: Callable[[Case, str], int], arguments: tuple[Any, ...], variant: str, queue: Any) -> None:
    torch.set_num_threads(1)
    case = Case(*arguments)
    case.loss_fn(
        case.theta0, case.images[:1], case.targets[:1]
    )  # before the measurement, for what torch initialises at its first use
    queue.put(measure(case, variant))


def peak(measure: Callable[[Case, str], int], arguments: tuple[Any, ...], variant: str) -> int:
    """Measure the extra peak bytes of one call in a new process, because a peak would hide a later, smaller one."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(measure, arguments, variant, queue))
    process.start()
    value: int = queue.get()
    process.join()
    return value


def times(case: Case, variants: Sequence[str], threads: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each variant; runs are interleaved, so that a disturbance affects all variants."""
    torch.set_num_threads(threads)
    for variant in variants:
        case.run(variant)
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            begun = time.perf_counter()
            case.run(variant)
            taken[variant].append(time.perf_counter() - begun)
    return {variant: statistics.median(values) for variant, values in taken.items()}


def _side(seconds: float, start: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    case = Case(DEMO, (1, 8), 14, 128, 20, torch.float32)
    case.ours(20)
    start.wait()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        case.ours(20)
        done += 1
    queue.put((time.perf_counter() - begun) / done)


def side_by_side(seconds: float = 10.0) -> float:
    """Return the time of an outer step beside another job over its time alone (demo's size, one thread each)."""
    context = multiprocessing.get_context("spawn")

    def measure(jobs: int) -> float:
        queue, start = context.Queue(), context.Barrier(jobs)
        processes = [context.Process(target=_side, args=(seconds, start, queue)) for _ in range(jobs)]
        for process in processes:
            process.start()
        values = [queue.get() for _ in processes]
        for process in processes:
            process.join()
        return max(values)

    return measure(2) / measure(1)


def main() -> None:
    """Measure, print one line for each row, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each variant")
    parser.add_argument("--small", action="store_true", help="smaller sizes for a quick look, not for the table")
    options = parser.parse_args()
    batch, steps = (8, 10) if options.small else (32, 40)
    results: dict[str, Any] = {}

    def row(name: str, goal: str, compute: Callable[[], Any]) -> None:
        results[name] = compute()
        print(f"{name:<58} {goal:<9} {results[name]}", flush=True)

    errors = gradient_errors()
    row("relative gradient error against the plain unroll", "< 1e-10", lambda: errors["against_plain"])
    row("relative gradient error against finite differences", "< 1e-5", lambda: errors["against_finite_differences"])

    size = (PAPER, (3, 32), batch, 512)
    counts = (steps // 4, steps, 2 * steps)
    vectors = Case(*size, 1, torch.float32).theta0.nbytes * (counts[2] - counts[0])
    for name, measure in (("tensors", _tensors), ("resident set", _resident)):
        plain = peak(measure, (*size, steps, torch.float32), "plain")
        mine = {n: peak(measure, (*size, n, torch.float32), "0") for n in counts}
        row(f"peak bytes of {name}, plain unroll", "", lambda p=plain: p)
        row(f"peak bytes of {name}, retain=0", "", lambda m=mine: m[steps])
        row(f"peak of {name}, retain=0 / plain unroll", "<= 0.1", lambda m=mine, p=plain: m[steps] / p)
        growth = (mine[counts[2]] - mine[counts[0]] - vectors) / mine[counts[0]]
        row(f"growth of {name}, N={counts[0]} to {counts[2]} beyond N vectors", "< 0.1", lambda g=growth: g)

    for threads in (1, 2):
        case = Case(
            *size, 20, torch.float32
        )  # the time of a step hardly depends on N; 20 limits the plain unroll's memory
        taken = times(case, ["plain", "20", "0", "compiled"], threads, options.repeats)
        row(f"time, retain=N / plain unroll, {threads} thread(s)", "<= 1.05", lambda t=taken: t["20"] / t["plain"])
        goal = "<= 1.4" if threads == 1 else "<= 1.2"
        row(f"time, retain=0 / plain unroll, {threads} thread(s)", goal, lambda t=taken: t["0"] / t["plain"])
        row(f"time, compiled / plain unroll, {threads} thread(s)", goal, lambda t=taken: t["compiled"] / t["plain"])

    demo = Case(DEMO, (1, 8), 14, 128, 20, torch.float32)
    ours = times(demo, ["plain", "20", "0", "compiled"], 1, 8 * options.repeats)
    best = min(ours["plain"], times(demo, ["plain"], 2, 8 * options.repeats)["plain"])
    row("demo size, retain=N on 1 thread / best plain unroll", "<= 1.05", lambda: ours["20"] / best)
    row("demo size, retain=0 on 1 thread / best plain unroll", "", lambda: ours["0"] / best)
    row("demo size, compiled on 1 thread / best plain unroll", "", lambda: ours["compiled"] / best)
    row("two jobs side by side / one alone", "<= 1.3", side_by_side)

    folder = Path("results/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

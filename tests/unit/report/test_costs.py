"""Costs: each stage's own files are counted, those of other experiments and of what is no longer asked for are not."""

from pathlib import Path

import pytest
from configs import with_sections

from mkdt.report.costs import costs

HEAD = "s\th:m:s\tmax_rss\tmax_vms\n"


def benchmark(name: str, seconds: float, memory: str, device: str = "cpu") -> None:
    """A job's benchmark file and its log."""
    path = Path("results/benchmarks") / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}{seconds}\t0:00:01\t{memory}\t1\n")
    log = Path("results/logs") / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"12:00:00 stage on {device}, 1 thread(s)\n12:00:01 went on to cuda\n")


def test_costs_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, the longest job, the largest memory (a short job has none), disk and devices; in the workflow's order."""
    monkeypatch.chdir(tmp_path)
    config = with_sections()
    for seed, (seconds, memory, device) in enumerate([(10, "300.5", "cpu"), (20, "-", "cuda"), (5, "NA", "cpu")]):
        benchmark(f"digits_1pct/sets/mkdt/1pct/{seed}", seconds, memory, device)
    benchmark("digits/data", 1, "100")
    benchmark("digits_1pct/experts/mtt_ssl_000", 2, "100")
    benchmark("digits_1pct/sets/mtt_ssl/1pct/0", 7, "100")
    config["methods"] += ["mtt_ssl"]
    for name in ("other/sets/mkdt/1pct/0", "digits_1pct/sets/sas/1pct/0", "digits_1pct/sets/mkdt/2pct/0", "mnist/data"):
        benchmark(name, 1000, "9999")
    Path("results/digits").mkdir()
    Path("results/digits/data.safetensors").write_bytes(bytes(70))
    made = Path("results/digits_1pct/sets/mkdt/1pct")
    made.mkdir(parents=True)
    for name in ("0.safetensors", "0.jsonl", "1.safetensors"):
        (made / name).write_bytes(bytes(10))
    table = costs(config)
    assert table.to_dict("records") == [
        {"stage": "data", "jobs": 1, "seconds": 1, "longest": 1, "memory": 100, "disk": 70, "device": "cpu"},
        {"stage": "method_experts", "jobs": 1, "seconds": 2, "longest": 2, "memory": 100, "disk": 0, "device": "cpu"},
        {"stage": "distill", "jobs": 4, "seconds": 42, "longest": 20, "memory": 300.5, "disk": 30, "device": "cpu, cuda"},
    ]  # fmt: skip


def test_no_benchmark_files_is_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so."""
    monkeypatch.chdir(tmp_path)
    config = with_sections()
    assert costs(config).empty

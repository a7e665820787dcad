"""Costs: each stage's own files are counted, those of other experiments and of what is no longer asked for are not."""

from pathlib import Path

import yaml

from mkdt.config import loading as cfg
from mkdt.report.costs import costs

ROOT = Path(__file__).parents[3]
HEAD = "s\th:m:s\tmax_rss\tmax_vms\n"


def benchmark(results: Path, name: str, seconds: float, memory: str, device: str = "cpu") -> None:
    """A job's benchmark file and its log."""
    path = results / "benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}{seconds}\t0:00:01\t{memory}\t1\n")
    log = results / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"12:00:00 stage on {device}, 1 thread(s)\n12:00:01 went on to cuda\n")


def test_costs_of_the_stages(tmp_path: Path) -> None:
    """Sums, the longest job, the largest memory (a short job has none), disk and devices; in the workflow's order."""
    config = cfg.load(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    for seed, (seconds, memory, device) in enumerate([(10, "300.5", "cpu"), (20, "-", "cuda"), (5, "NA", "cpu")]):
        benchmark(tmp_path, f"digits_1pct/sets/mkdt/1pct/{seed}", seconds, memory, device)
    benchmark(tmp_path, "digits/data", 1, "100")
    benchmark(tmp_path, "digits_1pct/sslexperts_0", 2, "100")
    benchmark(tmp_path, "digits_1pct/sets/mtt_ssl/1pct/0", 7, "100")
    config = dict(config) | {"methods": [*config["methods"], "mtt_ssl"]}
    for name in ("other/sets/mkdt/1pct/0", "digits_1pct/sets/sas/1pct/0", "digits_1pct/sets/mkdt/2pct/0", "mnist/data"):
        benchmark(tmp_path, name, 1000, "9999")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/data.safetensors").write_bytes(bytes(70))
    made = tmp_path / "digits_1pct/sets/mkdt/1pct"
    made.mkdir(parents=True)
    for name in ("0.safetensors", "0.jsonl", "1.safetensors"):
        (made / name).write_bytes(bytes(10))
    table = costs(config, tmp_path)
    assert table.to_dict("records") == [
        {"stage": "data", "jobs": 1, "seconds": 1, "longest": 1, "memory": 100, "disk": 70, "device": "cpu"},
        {"stage": "sslexperts", "jobs": 1, "seconds": 2, "longest": 2, "memory": 100, "disk": 0, "device": "cpu"},
        {"stage": "distill", "jobs": 3, "seconds": 35, "longest": 20, "memory": 300.5, "disk": 30, "device": "cpu, cuda"},
        {"stage": "mtt", "jobs": 1, "seconds": 7, "longest": 7, "memory": 100, "disk": 0, "device": "cpu"},
    ]  # fmt: skip


def test_no_benchmark_files_is_an_empty_table(tmp_path: Path) -> None:
    """The page says so."""
    config = cfg.load(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    assert costs(config, tmp_path).empty

"""What the stages of an experiment cost: time and memory from Snakemake's benchmark files, disk from what they wrote."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.config.loading import budget_label, method_name, used_datasets
from mkdt.config.methods import METHODS, SET_RULES

COLUMNS = ["stage", "jobs", "seconds", "longest", "memory", "disk", "device"]


def files(config: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """For each stage: its name, a pattern of its benchmark files, patterns of what it makes; both below the results.

    A log file is where the benchmark file is, in another folder.
    """
    config = dict(config)
    experiment, teacher = config["experiment"], f"{config['source']}/{config['teacher']['name']}"
    for name in used_datasets(config):
        yield "data", f"{name}/data.tsv", [f"{name}/data.safetensors"]
    yield "teacher", f"{teacher}/teacher.tsv", [f"{teacher}/teacher.*"]
    yield "targets", f"{teacher}/targets.tsv", [f"{teacher}/targets.safetensors"]
    yield "targets_probe", f"{teacher}/targets_probe.tsv", [f"{teacher}/targets_probe.jsonl"]
    experts = f"{teacher}/{config['student']}/experts"
    yield "experts", f"{experts}_*.tsv", [f"{experts}/*"]
    methods = list(dict.fromkeys(map(method_name, config["methods"])))
    budgets = [*map(budget_label, config["budgets"]), "all"]
    inits = {config["distill"]["init"], config["krr_st"]["init"], *(m.init for m in METHODS.values())}
    yield "sslexperts", f"{experiment}/sslexperts_*.tsv", [f"{experiment}/ssl_experts/*"]
    for stage in SET_RULES:
        for method in [name for name, method in METHODS.items() if method.rule == stage and name in {*methods, *inits}]:
            for budget in budgets:
                yield stage, f"{experiment}/sets/{method}/{budget}/*.tsv", [f"{experiment}/sets/{method}/{budget}/*"]
    for student in config["pretrain"]["students"]:
        for method in methods:
            for budget in budgets:
                place = f"{student}/{method}/{budget}"
                yield "pretrain", f"{experiment}/pretrain/{place}/*.tsv", [f"{experiment}/pretrain/{place}/*/*"]
                yield "probe", f"{experiment}/probe/{place}.tsv", [f"{experiment}/probe/{place}.csv"]


def costs(config: Mapping[str, Any], results: Path) -> pd.DataFrame:
    """One row a stage, in the order of the workflow.

    A benchmark file is of the last run of its job: what was interrupted, or made again, is not counted. Stages
    without any (made elsewhere, say) are left out.

    Args:
        config: of the experiment.
        results: folder of everything produced.

    Returns:
        ``jobs``; ``seconds`` of all and of the ``longest``; ``memory``, the largest resident set in MB (2^20 bytes);
        ``disk``, the bytes of what was made; ``device``, which the logs name.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage, benchmarks, outputs in files(config):
        for path in sorted((results / "benchmarks").glob(benchmarks)):
            table = pd.read_csv(path, sep="\t", na_values=["-"])
            new = {"stage": stage, "jobs": 0, "seconds": 0.0, "longest": 0.0, "memory": 0.0, "disk": 0, "device": ""}
            row = found.setdefault(stage, new)
            seconds, memory = float(table["s"].iloc[0]), float(table["max_rss"].iloc[0])
            row["jobs"] += 1
            row["seconds"] += seconds
            row["longest"] = max(row["longest"], seconds)
            row["memory"] = max(row["memory"], memory)  # NaN of a job too short to be looked at never wins
            log = results / "logs" / path.relative_to(results / "benchmarks").with_suffix(".log")
            row["device"] = ", ".join(sorted({*filter(None, row["device"].split(", ")), *_devices(log)}))
        if stage in found:
            made = {file for pattern in outputs for file in results.glob(pattern) if file.is_file()}
            found[stage]["disk"] += sum(file.stat().st_size for file in made)
    return pd.DataFrame(list(found.values()), columns=COLUMNS)


def _devices(log: Path) -> list[str]:
    """The device that the first line of a job's log names."""
    try:
        with log.open(encoding="utf-8") as file:
            return re.findall(r" on (cpu|cuda)", file.readline())
    except OSError:
        return []

"""What the stages of an experiment cost: time and memory from Snakemake's benchmark files, disk from what they wrote."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.config.plan import jobs
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES, files

COLUMNS = ["stage", "jobs", "seconds", "longest", "memory", "disk", "device"]


def costs(config: Config) -> pd.DataFrame:
    """Return one row a stage, in the order of the workflow.

    A benchmark file is of the last run of its job: what was interrupted, or made again, is not counted. Stages without any
    (made elsewhere, say) are left out.

    Args:
        config: of the experiment; its results lie below the working directory.

    Returns:
        ``jobs``; ``seconds`` of all and of the ``longest``; ``memory``, the largest resident set in MB (2^20 bytes);
        ``disk``, the bytes of what was made; ``device``, which the logs name.
    """
    rows: dict[str, dict[str, Any]] = {}
    written: dict[str, int] = {}
    for job in jobs(config):
        stage = STAGES[job.stage]
        names = job.wildcards
        benchmark = Path(stage.benchmark(config, names))
        written[job.stage] = written.get(job.stage, 0) + sum(_size(Path(path)) for path in files(config, job))
        if not benchmark.is_file():
            continue
        table = pd.read_csv(benchmark, sep="\t", na_values=["-"])
        new = {"stage": job.stage, "jobs": 0, "seconds": 0.0, "longest": 0.0, "memory": 0.0, "disk": 0, "device": ""}
        row = rows.setdefault(job.stage, new)
        seconds, memory = float(table["s"].iloc[0]), float(table["max_rss"].iloc[0])
        row["jobs"] += 1
        row["seconds"] += seconds
        row["longest"] = max(row["longest"], seconds)
        row["memory"] = max(row["memory"], memory)  # NaN of a job too short to be looked at never wins
        devices = {*filter(None, row["device"].split(", ")), *_devices(Path(stage.log(config, names)))}
        row["device"] = ", ".join(sorted(devices))
    for stage_name, row in rows.items():
        row["disk"] = written[stage_name]
    return pd.DataFrame(list(rows.values()), columns=COLUMNS)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _devices(log: Path) -> list[str]:
    """Return the device that the first line of a job's log names."""
    try:
        with log.open(encoding="utf-8") as file:
            return re.findall(r" on (cpu|cuda)", file.readline())
    except OSError:
        return []

"""What MLflow shows of an experiment's tables: the metrics of a parent run and the grid of a choice, and the descriptions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdt.config.plan import method_name, scored_name
from mkdt.config.sections import Config

NOTE = "mlflow.note.content"  # the tag that MLflow shows as the description, of a run or of an experiment
NOTE_LENGTH = 8000  # characters that MLflow takes in a tag of a run
# Columns of summary.csv, and the names of the metrics that they become.
SUMMARY = {
    "mean": "accuracy",
    "difference": "difference",
    "low": "difference_low",
    "high": "difference_high",
    "recovered": "recovered",
}
COSTS = {"seconds": "seconds", "memory": "memory_megabytes", "disk": "bytes"}


def summary_metrics(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Return the metrics of the rows of summary.csv: accuracies in per cent, and the images and bytes of sets."""
    values: dict[str, float] = {}
    for row in rows:
        trained = f"{row['method']}/{row['budget']}"
        names = {column: f"{name}/{trained}/{row['student']}/{scored_name(row)}" for column, name in SUMMARY.items()}
        names |= {column: f"{column}/{trained}" for column in ("images", "bytes")}
        values |= {name: float(row[column]) for column, name in names.items() if row.get(column)}
    return values


def cost_metrics(rows: Iterable[Mapping[Any, Any]]) -> dict[str, float]:
    """Return the metrics of the rows of ``mkdt.report.costs``; what is not known is left out."""
    return {f"cost/{row['stage']}/{name}": float(row[key]) for row in rows for key, name in COSTS.items() if row[key]}


def grid_with_choice(grid: Iterable[Mapping[str, float]], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a grid with the column ``chosen``.

    Args:
        grid: what was reported of each point: ``validation_accuracy``, ``rate`` of the first student, ``steps``.
        rows: as from ``mkdt.evaluate.selection.select``.
    """
    first = next(row for row in rows if row["chosen"])
    chosen = first["rate"], first["steps"]
    return [{**point, "chosen": (point["rate"], point["steps"]) == chosen} for point in grid]


def experiment_note(config: Config) -> str:
    """Describe an experiment: what is distilled, and how to compare its runs."""
    return (
        f"`{config['source']}`, distilled with the teacher `{config['teacher']['name']}`.\n\n"
        "The run with the tag `stage = experiment` holds config and results; a changed config makes another one. Below it there is "
        "one run a job. To compare experiments, choose such runs (filter: `tags.stage = 'experiment'`) and *Compare*. Metrics:\n\n"
        "- `accuracy/METHOD/BUDGET/STUDENT/DOWNSTREAM/FRACTION`: mean test accuracy in per cent (linear probe; others end in "
        "their name)\n"
        "- `difference/...`, `difference_low/...`, `difference_high/...`: paired difference to `random` in percentage points, and "
        "its 95 % interval\n"
        "- `recovered/...`: share of the gain of pre-training on all images\n"
        "- `cost/STAGE/...`: seconds of all jobs, memory of the largest, bytes written"
    )


def run_note(config: Config, summary: str, files: Sequence[Path]) -> str:
    """Describe a parent run: what is compared, the report's tables as far as MLflow takes them, and the names of its pictures.

    Args:
        config: of the experiment.
        summary: the report's tables as Markdown.
        files: of the report.
    """
    methods = ", ".join(f"`{method_name(method)}`" for method in config["methods"])
    pictures = ", ".join(f"`{path.name}`" for path in files if path.suffix == ".png")
    first = f"{methods} on `{config['source']}`.\n\n"
    last = f"\n\nPictures (*Artifacts*, folder `report`): {pictures}. The page with everything: `index.html`."
    room = NOTE_LENGTH - len(first) - len(last)
    if len(summary) > room:
        last = f"\n\n... and more in `summary.md`.{last}"
        summary = summary[: room - 40]
        summary = summary[: summary.rfind("\n")]
    return f"{first}{summary.strip()}{last}"

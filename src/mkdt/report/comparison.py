"""Two experiments side by side: what differs in their configs, paired differences of accuracies, and costs."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.config.plan import parameters
from mkdt.config.result_folders import RESULTS
from mkdt.config.stages import STAGES
from mkdt.errors import UserError
from mkdt.report import costs, origin
from mkdt.report.notices import SMOKE
from mkdt.report.page import duration, size
from mkdt.report.statistics import RUN, compare
from mkdt.report.tables import KEYS, difference, markdown, read_table

SETTING = ["evaluation", "budget", "student", "downstream", "label_fraction", "method"]
COLUMNS = [*SETTING, "A", "B", "difference", "low", "high", "pairs"]


@dataclass(frozen=True)
class Experiment:
    """An experiment with a report.

    Attributes:
        name: as it was given.
        folder: of the experiment in its results folder, absolute.
    """

    name: str
    folder: Path

    def path(self, role: str) -> Path:
        """Return the path of an output of rule report."""
        return self.folder.parent / STAGES["report"].outputs[role].format(experiment=self.folder.name)

    @cached_property
    def origin(self) -> origin.Origin:
        """The config, code and data of the report."""
        return origin.read(self.path("origin_json"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config by dotted key, and the version of the code."""
        return {"code": self.origin.code, **parameters(self.origin.config)}

    @cached_property
    def accuracy(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        """The rows of accuracy.csv by ``SETTING``."""
        table = _table_of(self.path("accuracy_csv"))
        return {tuple(values): rows for values, rows in table.groupby(SETTING, sort=False)}

    @cached_property
    def means(self) -> dict[tuple[Any, ...], float]:
        """The means of summary.csv, in per cent, by ``SETTING``."""
        table = _table_of(self.path("summary_csv"))
        return dict(zip(table[SETTING].itertuples(index=False, name=None), table["mean"], strict=True))

    @cached_property
    def costs(self) -> pd.DataFrame:
        """The costs of the stages; no row where the results folder holds none, or the config is of another version."""
        if self.folder.parent.name == RESULTS.name:
            with chdir(self.folder.parent.parent):
                try:
                    return costs.costs(self.origin.config)
                except (KeyError, ValueError):  # of another version, or a benchmark that was cut short
                    pass
        return pd.DataFrame(columns=costs.COLUMNS)


def _table_of(path: Path) -> pd.DataFrame:
    """Read a table of the report; its names are strings, though all of a column may look like numbers.

    Raises:
        UserError: it is missing or damaged.
    """
    table = read_table(path, "report")
    missing = [key for key in KEYS if key not in table]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': delete it, and snakemake makes it again.")
    return table.astype({key: str for key in KEYS if key != "label_fraction"})


# -- configs


def differing(a: Experiment, b: Experiment) -> list[tuple[str, ...]]:
    """Return (key, value of A, value of B) of what differs, values as JSON, ``-`` where there is none."""
    keys = dict.fromkeys([*a.settings, *b.settings])
    rows = [(key, *(_json(one.settings, key) for one in (a, b))) for key in keys if key != "experiment"]
    return [row for row in rows if row[1] != row[2]]


def _json(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "-"


# -- accuracies


def apart(a: Experiment, b: Experiment, downstream: str) -> str:
    """Return what keeps scores on a downstream set of both from being pairs; empty where nothing does.

    Raises:
        UserError: a report does not note the set that its tables name.
    """
    try:
        tests, trains = ([one.origin.data[downstream][split] for one in (a, b)] for split in ("test", "train"))
    except (LookupError, TypeError) as error:
        files = " or ".join(str(one.path("origin_json")) for one in (a, b))
        raise UserError(
            f"{files} does not note the data set '{downstream}': delete it, and snakemake makes it again."
        ) from error
    if len(set(tests)) > 1:
        return "other test images"
    if len(set(trains)) > 1 or a.settings["seed"] != b.settings["seed"]:
        return "other label draws"
    return ""


def differences(a: Experiment, b: Experiment) -> pd.DataFrame:
    """Compare the accuracies in each setting of A or B.

    Returns:
        one row a setting: ``SETTING``; ``A`` and ``B``, the means of their summaries in per cent; ``difference``, B - A over
        runs with the same distill seed, student seed and label draw, with its 95 % interval ``low`` to ``high``, NaN where there
        are no such runs; ``pairs``, how many there are, or why there are none.

    Raises:
        UserError: a run is missing in a table.
    """
    rows = []
    for where in dict.fromkeys([*a.means, *b.means]):
        row = dict(zip(SETTING, where, strict=True)) | {"A": a.means.get(where), "B": b.means.get(where)}
        try:
            rows.append(row | _paired(a, b, where))
        except ValueError as error:
            tables = " or ".join(str(one.path("accuracy_csv")) for one in (a, b))
            raise UserError(f"{tables} lacks runs ({error}): delete it, and snakemake makes it again.") from error
    return pd.DataFrame(rows, columns=COLUMNS)


def _paired(a: Experiment, b: Experiment, where: tuple[Any, ...]) -> dict[str, Any]:
    """Return difference, interval and pairs of one setting, as for ``differences``."""
    for one, name in ((a, "A"), (b, "B")):
        if where not in one.accuracy:
            return {"pairs": f"none: not in {name}"}
    if reason := apart(a, b, where[SETTING.index("downstream")]):
        return {"pairs": f"none: {reason}"}
    mine, theirs = a.accuracy[where], b.accuracy[where]
    for factor in RUN:
        both = set(mine[factor]) & set(theirs[factor])
        if not both:
            return {"pairs": f"none: no {factor.replace('_', ' ')} in both"}
        mine, theirs = (runs[runs[factor].isin(both)] for runs in (mine, theirs))
    runs = len(a.accuracy[where]), len(b.accuracy[where])
    pairs = str(len(mine)) if {*runs} == {len(mine)} else f"{len(mine)} of {runs[0]} and {runs[1]}"
    return compare(theirs, mine) | {"pairs": pairs}


# -- text


def as_text(a: Experiment, b: Experiment) -> str:
    """Format a comparison as Markdown.

    Raises:
        UserError: a table of a report is missing or damaged.
    """
    smoke = [SMOKE] if "smoke" in (a.settings["scale"], b.settings["scale"]) else []
    settings = _table(["key", "A", "B"], differing(a, b)) or "None."
    parts = [f"# A: {a.name}, B: {b.name}", *smoke, "## Settings that differ", settings]
    table = differences(a, b)
    parts += ["## Accuracy", *_reading(a, b, table), _accuracies(table)]
    return "\n\n".join([*parts, "## Costs", *_costs(a, b)]) + "\n"


def _reading(a: Experiment, b: Experiment, table: pd.DataFrame) -> Iterator[str]:
    """Yield how to read the accuracies, and which of them cannot be compared."""
    constant = {column: table[column].iloc[0] for column in SETTING if table[column].nunique() == 1}
    common = "".join(f"; {column.replace('_', ' ')} {value}" for column, value in constant.items())
    yield (
        "Test accuracy in per cent; B - A over pairs of runs with the same distill seed, student seed and label draw, with its "
        f"95 % interval{common}. Each interval is for its row alone: among 20 rows without a difference, about one excludes zero."
    )
    for downstream in sorted(a.origin.data.keys() & b.origin.data.keys()):
        reason = apart(a, b, downstream)
        if reason:
            seeds = {one.settings["seed"] for one in (a, b)}
            why = "their splits differ" if len(seeds) == 1 or "test" in reason else "their `seed` differs"
            yield f"**{downstream}: A and B were scored with {reason} ({why}), so no runs are pairs.**"


def _accuracies(table: pd.DataFrame) -> str:
    shown = [column for column in SETTING if column == "method" or table[column].nunique() > 1]
    rows = [
        [
            *(f"{row[column]:.4g}" if column == "label_fraction" else row[column] for column in shown),
            *("-" if pd.isna(row[name]) else f"{row[name]:.1f}" for name in "AB"),
            difference(row),
            row["pairs"],
        ]
        for row in table.to_dict("records")
    ]
    return _table([*(column.replace("_", " ") for column in shown), "A", "B", "B - A", "pairs"], rows)


def _costs(a: Experiment, b: Experiment) -> Iterator[str]:
    """Yield a table of the costs of both, and what it does not say."""
    tables = [{str(row["stage"]): row for row in one.costs.to_dict("records")} for one in (a, b)]
    for name, table in zip("AB", tables, strict=True):
        if not table:
            yield f"The costs of {name} are not known: its results folder holds no benchmarks that fit its config."
    devices = {row["device"] for table in tables for row in table.values()} - {""}
    shown = [column for column in _COSTS if column != "device" or len(devices) > 1]
    rows = [
        [stage, *(_COSTS[column](table[stage]) if stage in table else "-" for column in shown for table in tables)]
        for stage in STAGES
        if any(stage in table for table in tables)
    ]
    if rows:
        yield _table(["stage", *(f"{column} {name}" for column in shown for name in "AB")], rows)
        yield "Time of all jobs; memory of the largest. What both share was made once, and stands on both sides."


_COSTS: dict[str, Callable[[Mapping[Any, Any]], str]] = {
    "jobs": lambda row: str(row["jobs"]),
    "time": lambda row: duration(row["seconds"]),
    "memory": lambda row: size(row["memory"] * 2**20) if row["memory"] else "-",
    "disk": lambda row: size(row["disk"]),
    "device": lambda row: str(row["device"]),
}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table whose columns are aligned; empty without rows."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *cells]]
    return markdown(padded[0], padded[1:]) if cells else ""

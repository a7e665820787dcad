"""Tables that several studies of docs/studies make from the scores that exist so far."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.artifacts import write_text
from mkdt.config.budgets import budget_label
from mkdt.config.plan import method_name
from mkdt.config.result_folders import RESULTS
from mkdt.config.sections import Config
from mkdt.errors import UserError
from mkdt.report import statistics
from mkdt.report import tables as report

Row = dict[Any, Any]
POINT = [*report.KEYS, "rate", "steps"]


def read_scores(config: Config) -> pd.DataFrame:
    """Read the scores of an experiment, as far as they exist; rule report needs them all.

    Scores of methods, budgets and students that the config does not name are left out.

    Raises:
        UserError: there are no scores yet.
    """
    folder = RESULTS / config["experiment"] / "probe"
    methods, budgets = list(map(method_name, config["methods"])), [*map(budget_label, config["budgets"]), "all"]
    files = [
        file
        for file in sorted(folder.glob("*/*/*.csv"))
        if file.parts[-3] in config["pretrain"]["students"] and file.parts[-2] in methods and file.stem in budgets
    ]
    if not files:
        raise UserError(f"{folder} holds no scores yet: run snakemake with the study's config first.")
    selections = [folder.with_name("select") / file.relative_to(folder) for file in files]
    return report.read_scores(selections, files, config["source"], config["pretrain"]["students"])


def tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return scores (``read_scores``), ``report.accuracies`` and ``report.summarise`` of an experiment."""
    scores = read_scores(config)
    accuracy = report.accuracies(scores, _budgets(config, scores))
    return scores, accuracy, report.summarise(accuracy, list(map(method_name, config["methods"])))


def _budgets(config: Config, scores: pd.DataFrame) -> list[str]:
    return [label for label in map(budget_label, config["budgets"]) if label in set(scores["budget"])]


def validation_by_point(scores: pd.DataFrame) -> pd.DataFrame:
    """Average the validation accuracy of the linear probe at every point of a method's grid.

    Returns:
        one row a point and label fraction of the selection set, with ``validation`` in per cent and ``chosen``.
    """
    rows = scores[(scores["split"] == "validation") & (scores["evaluation"] == "linear")]
    means = rows.groupby(POINT, sort=True).agg(validation=("accuracy", "mean"), chosen=("chosen", "any"))
    return means.reset_index()


def runs_by_steps(scores: pd.DataFrame) -> pd.DataFrame:
    """Select the runs that ``report.curve`` averages: every number of steps at the rate that validation prefers there."""
    rows = report.best_at_steps(scores)
    return rows[[*report.KEYS, *statistics.RUN, "rate", "steps", "accuracy"]].sort_values([*POINT, *statistics.RUN])


def save(page: Path, config: Config) -> dict[str, pd.DataFrame]:
    """Write the tables that every page of a study has.

    Returns:
        the tables by the name of their file: accuracy, summary, curve (in the order of methods), grid, runs_by_steps,
        against_best_subset.
    """
    scores, accuracy, summary = tables(config)
    points = report.curve(scores, _budgets(config, scores))
    order = {name: k for k, name in enumerate(map(method_name, config["methods"]))}
    made = {
        "accuracy": accuracy,
        "summary": summary,
        "curve": points.sort_values("method", key=lambda names: names.map(order), kind="stable"),
        "grid": validation_by_point(scores),
        "runs_by_steps": runs_by_steps(scores),
        "against_best_subset": report.against_best_subset(scores, accuracy),
    }
    for name, table in made.items():
        report.save_table(page / f"{name}.csv", table)
    write_text(page / "summary.md", report.as_text(summary, config["pretrain"]["protocol"]))
    return made


def at_equal_steps(
    runs: pd.DataFrame, pairs: list[tuple[str, str]], budgets: list[str], steps: list[int]
) -> pd.DataFrame:
    """Compare two methods at the same number of steps, each at the rate that validation prefers there.

    Args:
        runs: as from ``runs_by_steps``, of one student, downstream set and label fraction.
        pairs: (method, baseline).
        budgets: labels.
        steps: numbers of steps.

    Returns:
        one row a pair, budget and number of steps, with the paired difference as from ``statistics.compare``.
    """
    rows = []
    for (method, baseline), budget, count in product(pairs, budgets, steps):
        here = runs[(runs["steps"] == count) & runs["budget"].isin([budget, "all"])]
        parts = [here[here["method"] == name] for name in (method, baseline)]
        row = {"method": method, "baseline": baseline, "budget": budget, "steps": count}
        rows.append(row | statistics.compare(parts[0], parts[1]))
    return pd.DataFrame(rows)


def holm(p: pd.Series) -> pd.Series:
    """Correct p values for the number of comparisons, by Holm's step-down method; NaN is no comparison and stays."""
    ordered = p.dropna().sort_values()
    factors = range(len(ordered), 0, -1)
    return (ordered * list(factors)).cummax().clip(upper=1).reindex(p.index)


def corrected(accuracy: pd.DataFrame, best: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Correct a page's p values in two families: differences to random, and of distilled sets to the best real subset.

    Args:
        accuracy: as from ``report.accuracies``; the linear probe alone is compared.
        best: as from ``report.against_best_subset``.
        methods: which are compared with random.

    Returns:
        one row a difference: ``family``, its setting, ``method``, ``baseline``, ``difference`` in percentage points, ``p``
        (``statistics.p_value``) and ``holm``, the corrected p.
    """
    setting = ["student", "budget", "downstream", "label_fraction"]
    parts = dict(iter(accuracy[accuracy["evaluation"] == "linear"].groupby([*setting, "method"])))
    settings = dict.fromkeys(key[:-1] for key in parts)
    families = {
        "random": [(where, method, "random") for where in settings for method in methods],
        "best subset": [
            (tuple(row[key] for key in setting), row["method"], row["subset"]) for row in best.to_dict("records")
        ],
    }
    tables = []
    for family, pairs in families.items():
        rows = []
        for where, method, baseline in pairs:
            if not {(*where, method), (*where, baseline)} <= parts.keys():
                continue  # not measured yet
            differences = statistics.paired(parts[(*where, method)], parts[(*where, baseline)])
            row = {"family": family, **dict(zip(setting, where, strict=True)), "method": method, "baseline": baseline}
            rows.append(row | {"difference": differences["difference"].mean(), "p": statistics.p_value(differences)})
        table = pd.DataFrame(rows, columns=["family", *setting, "method", "baseline", "difference", "p"])
        tables.append(table.assign(holm=holm(table["p"])))
    return pd.concat(tables, ignore_index=True)


def crossed(table: pd.DataFrame, by: str, across: str, columns: Mapping[Any, str], cell: Callable[[Row], str]) -> str:
    """Format a Markdown table with a row for each value of ``by`` and a column for each of ``across``.

    Args:
        table: at most one row for each pair of values; ``-`` stands for a missing row.
        by: the column of ``table`` that gives the rows, in its order; whole numbers get separators of thousands.
        across: the column of ``table`` that gives the columns.
        columns: the values of ``across`` in order, with their headings.
        cell: formats a row of ``table``.

    Raises:
        ValueError: there are two rows for a pair of values.
    """
    cells = {(row[by], row[across]): cell(row) for row in table.to_dict("records")}
    if len(cells) < len(table):
        raise ValueError(f"several rows for a pair of {by} and {across}")
    names = dict.fromkeys(table[by].tolist())
    rows = [
        [f"{name:,}" if isinstance(name, int) else str(name), *(cells.get((name, value), "-") for value in columns)]
        for name in names
    ]
    return report.markdown([by, *columns.values()], rows) + "\n"


def differences_as_text(table: pd.DataFrame, by: str) -> str:
    """Format rows of ``at_equal_steps`` as Markdown: a row for each value of ``by`` (budget or steps), a column a pair."""
    pairs = table["method"] + " - " + table["baseline"]
    return crossed(table.assign(pair=pairs), by, "pair", {pair: pair for pair in pairs}, report.difference)

"""What the studies of docs/studies share: the scores that the workflow has made so far, as tables."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.artifacts import write_text
from mkdt.config.loading import Config
from mkdt.config.plan import method_name
from mkdt.config.sizes import budget_label
from mkdt.config.stages import RESULTS
from mkdt.errors import UserError
from mkdt.report import statistics
from mkdt.report import tables as report

Row = dict[Any, Any]
POINT = [*report.KEYS, "rate", "steps"]


def read_scores(config: Config) -> pd.DataFrame:
    """The rows of rule probe of an experiment.

    Unlike rule report it takes what is there, so that a page can be written before the last method is measured.
    Scores of methods, budgets and students that the config does not name are left out.

    Raises:
        UserError: nothing is measured yet.
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
    return report.read_scores(files, config["source"], config["pretrain"]["students"])


def tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores (``read_scores``), test accuracies (``report.accuracies``) and summary (``report.summarise``) of an experiment."""
    scores = read_scores(config)
    accuracy = report.accuracies(scores, _budgets(config, scores))
    return scores, accuracy, report.summarise(accuracy, list(map(method_name, config["methods"])))


def _budgets(config: Config, scores: pd.DataFrame) -> list[str]:
    return [label for label in map(budget_label, config["budgets"]) if label in set(scores["budget"])]


def grid(scores: pd.DataFrame) -> pd.DataFrame:
    """What each method was chosen by: mean validation accuracy of the linear probe at every point of its grid.

    Returns:
        one row a point and label fraction of the selection set, with ``validation`` in per cent and ``chosen``.
    """
    rows = scores[(scores["split"] == "validation") & (scores["evaluation"] == "linear")]
    means = rows.groupby(POINT, sort=True).agg(validation=("accuracy", "mean"), chosen=("chosen", "any"))
    return means.reset_index()


def runs_by_steps(scores: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of every run at every number of steps, at the rate that validation prefers there: the rows of the curve."""
    rows = scores[(scores["split"] == "test") & (scores["evaluation"] == "linear") & scores["chosen_at_steps"]]
    return rows[[*report.KEYS, *statistics.RUN, "rate", "steps", "accuracy"]].sort_values([*POINT, *statistics.RUN])


def save(page: Path, config: Config) -> dict[str, pd.DataFrame]:
    """Write the tables that every page has beside it.

    Returns:
        them by their file's name: accuracy, summary, curve (in the methods' order), grid, runs_by_steps, against_best_subset.
    """
    scores, accuracy, summary = tables(config)
    points = report.curve(scores, _budgets(config, scores))
    order = {name: k for k, name in enumerate(map(method_name, config["methods"]))}
    made = {
        "accuracy": accuracy,
        "summary": summary,
        "curve": points.sort_values("method", key=lambda names: names.map(order), kind="stable"),
        "grid": grid(scores),
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
    """Paired differences of two methods at the same number of steps, each at the rate that validation prefers there.

    Args:
        runs: as from ``runs_by_steps``, of one student, downstream set and label fraction.
        pairs: (method, baseline).
        budgets: labels.
        steps: numbers of steps.

    Returns:
        one row a pair, budget and number of steps, with the difference as ``statistics.compare`` has it.
    """
    rows = []
    for (method, baseline), budget, count in product(pairs, budgets, steps):
        here = runs[(runs["steps"] == count) & runs["budget"].isin([budget, "all"])]
        parts = [here[here["method"] == name] for name in (method, baseline)]
        row = {"method": method, "baseline": baseline, "budget": budget, "steps": count}
        rows.append(row | statistics.compare(parts[0], parts[1]))
    return pd.DataFrame(rows)


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down correction for all differences that are looked at together: p values that hold for the family."""
    ordered = p.sort_values()
    factors = range(len(p), 0, -1)
    return (ordered * list(factors)).cummax().clip(upper=1).reindex(p.index)


def corrected(accuracy: pd.DataFrame, best: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The differences of a page by the linear probe, as two families: to random, and of distilled sets to the best real subset.

    Args:
        accuracy: as from ``report.accuracies``.
        best: as from ``report.against_best_subset``.
        methods: which are held against random.

    Returns:
        one row a difference: ``family``, its setting, ``method``, ``baseline``, ``difference`` in points, ``p`` by itself
        (``statistics.p_value``) and ``holm``, p in its family.
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
                continue  # still to be measured
            differences = statistics.paired(parts[(*where, method)], parts[(*where, baseline)])
            row = {"family": family, **dict(zip(setting, where, strict=True)), "method": method, "baseline": baseline}
            rows.append(row | {"difference": differences["difference"].mean(), "p": statistics.p_value(differences)})
        table = pd.DataFrame(rows, columns=["family", *setting, "method", "baseline", "difference", "p"])
        tables.append(table.assign(holm=holm(table["p"])))
    return pd.concat(tables, ignore_index=True)


def crossed(table: pd.DataFrame, by: str, across: str, columns: Mapping[Any, str], cell: Callable[[Row], str]) -> str:
    """A Markdown table: a row a value of ``by`` in their order, a column a value of ``across``; ``-`` where nothing was measured.

    Args:
        table: at most one row a pair of values.
        columns: the values of ``across`` in order, with their headings; whole numbers of ``by`` get separators of thousands.
        cell: the text of a row of ``table``.

    Raises:
        ValueError: two rows for a pair of values.
    """
    found = {(row[by], row[across]): cell(row) for row in table.to_dict("records")}
    if len(found) < len(table):
        raise ValueError(f"several rows for a pair of {by} and {across}")
    names = dict.fromkeys(table[by].tolist())
    rows = [
        [f"{name:,}" if isinstance(name, int) else str(name), *(found.get((name, value), "-") for value in columns)]
        for name in names
    ]
    return report.markdown([by, *columns.values()], rows) + "\n"


def differences_as_text(table: pd.DataFrame, by: str) -> str:
    """Rows of ``at_equal_steps`` as Markdown: a row a value of ``by`` (budget or steps), a column a pair."""
    pairs = table["method"] + " - " + table["baseline"]
    return crossed(table.assign(pair=pairs), by, "pair", {pair: pair for pair in pairs}, report.spread)

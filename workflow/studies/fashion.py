"""Study 2: make the tables and figures of its page from the scores that exist so far."""

import shutil
from pathlib import Path

import pandas as pd
import shared as studies

from mkdt.artifacts import write_text
from mkdt.config.budgets import budget_label
from mkdt.config.loading import read
from mkdt.config.stages import STAGES
from mkdt.report import figures
from mkdt.report import tables as report

CONFIG = Path("config/studies/fashion.yaml")
RATES = Path("config/studies/fashion_rates.yaml")
PAGE = Path("docs/studies/fashion")
PAIRS = [("mkdt", "random"), ("mkdt", "kmeans"), ("mkdt", "full"), ("mkdt_kmeans", "kmeans"), ("krr_st", "kmeans")]


def as_text(points: pd.DataFrame) -> str:
    """Format mean accuracies by pre-training steps, a row for each method that is trained.

    Args:
        points: as from ``tables.curve``, of one downstream set and label fraction.
    """
    trained = points[points["steps"] > 0]
    steps = {step: f"{step:,}" for step in sorted(trained["steps"].unique())}
    return studies.crossed(trained, "method", "steps", steps, lambda row: f"{row['mean']:.1f}")


def best_of(grids: list[pd.DataFrame], runs: list[pd.DataFrame]) -> pd.DataFrame:
    """Select runs from several grids: for each method and number of steps, those of the grid with the best validation.

    Args:
        grids: as from ``studies.validation_by_point``, one an experiment.
        runs: as from ``studies.runs_by_steps``, of the same experiments and one downstream set.

    Returns:
        the selected rows, of the methods and numbers of steps that all grids have.
    """
    point = ["method", "steps"]
    # Rule probe chooses by the mean over the label fractions too.
    best = [grid.groupby([*point, "rate"])["validation"].mean().groupby(point).max() for grid in grids]
    chosen = pd.concat(best, axis=1, join="inner", keys=range(len(best))).idxmax(axis=1)
    parts = []
    for k, part in enumerate(runs):
        where = pd.MultiIndex.from_frame(part[point])
        parts.append(part[where.isin(chosen.index[chosen == k])])
    return pd.concat(parts)


def rates_as_text(runs: pd.DataFrame) -> str:
    """Format the mean accuracy and the chosen rate, a row a method, a column a number of steps.

    Args:
        runs: as from ``best_of``, of one label fraction.
    """
    means = runs.groupby(["method", "steps"], sort=True).agg(accuracy=("accuracy", "mean"), rate=("rate", "first"))
    steps = {step: f"{step:,}" for step in sorted(runs["steps"].unique())}
    return studies.crossed(
        means.reset_index(), "method", "steps", steps, lambda row: f"{row['accuracy']:.1f} ({row['rate']:g})"
    )


def main() -> None:
    """Write the tables and figures."""
    config = read([CONFIG])
    made = studies.save(PAGE, config)
    points, runs = (made[name][made[name]["downstream"] == config["source"]] for name in ("curve", "runs_by_steps"))
    fractions, budgets = config["probe"]["label_fractions"], [budget_label(budget) for budget in config["budgets"]]
    parts = [points[points["label_fraction"] == fraction] for fraction in fractions]
    write_text(PAGE / "steps.md", "\n".join(as_text(part) for part in parts))
    equal = [
        studies.at_equal_steps(
            runs[runs["label_fraction"] == fraction], PAIRS, budgets, config["pretrain"]["steps"]
        ).assign(label_fraction=fraction)
        for fraction in fractions
    ]
    report.save_table(PAGE / "equal_steps.csv", pd.concat(equal))
    write_text(PAGE / "equal_steps.md", "\n".join(studies.differences_as_text(part, "steps") for part in equal))
    figures.save_figure(PAGE / "curve.png", figures.plot_curve(points, config["methods"]))
    shutil.copyfile(STAGES["report"].path(config, "sets_png"), PAGE / "sets.png")

    config = read([CONFIG, RATES])
    scores = studies.read_scores(config)
    higher = {"rates_grid": studies.validation_by_point(scores), "rates_runs_by_steps": studies.runs_by_steps(scores)}
    for name, table in higher.items():
        report.save_table(PAGE / f"{name}.csv", table)
    chosen = best_of([made["grid"], higher["rates_grid"]], [runs, higher["rates_runs_by_steps"]])
    parts = [chosen[chosen["label_fraction"] == fraction] for fraction in fractions]
    write_text(PAGE / "rates.md", "\n".join(map(rates_as_text, parts)))
    equal = [studies.at_equal_steps(part, PAIRS, budgets, config["pretrain"]["steps"]) for part in parts]
    write_text(PAGE / "rates_equal_steps.md", "\n".join(studies.differences_as_text(part, "steps") for part in equal))


if __name__ == "__main__":
    main()

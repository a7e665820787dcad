"""Study 1: make the tables and the figure of its page, and README's table of budgets, from the scores that exist so far."""

from pathlib import Path

import pandas as pd
import shared as studies
from matplotlib.figure import Figure

from mkdt.artifacts import write_text
from mkdt.config.budgets import budget_label
from mkdt.config.loading import read
from mkdt.config.methods import METHODS, has_budget
from mkdt.report import figures
from mkdt.report import tables as report

CONFIG = Path("config/studies/digits.yaml")
PAGE = Path("docs/studies/digits")
PAIRS = [
    ("mkdt_random", "random"), ("mkdt_kmeans", "random"), ("krr_st", "random"), ("kmeans", "random"),
    ("mkdt_kmeans", "kmeans"),
]  # fmt: skip


def plot(accuracy: pd.DataFrame, methods: list[str], shares: dict[str, float]) -> Figure:
    """Plot the accuracy of the linear probe against the budget, a line a method; one without a budget is horizontal.

    Args:
        accuracy: as from ``tables.accuracies``, of one label fraction.
        methods: which, in order.
        shares: share of the images of each budget label.
    """
    points = report.by_fraction(accuracy[accuracy["evaluation"] == "linear"])
    points["share"] = points["budget"].map(shares).where(points["method"].map(has_budget), 0.0)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    figures.draw_curve(axis, points, methods, against="share")
    axis.set_ylabel(f"test accuracy (%), {100 * points['label_fraction'].iloc[0]:g} % of labels")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def as_text(summary: pd.DataFrame, shares: dict[str, float]) -> str:
    """Format mean accuracies of the linear probe, a row a method, a column a budget.

    Bold: the interval of the difference to random is above zero.

    Args:
        summary: as from ``tables.summarise``, of one label fraction.
        shares: share of the images of each budget label.
    """

    def cell(row: studies.Row) -> str:
        return f"**{row['mean']:.1f}**" if row["low"] > 0 else f"{row['mean']:.1f}"

    linear = summary[summary["evaluation"] == "linear"]
    columns = {budget: f"{100 * share:g} %" for budget, share in shares.items()}
    return studies.crossed(linear, "method", "budget", columns, cell)


def main() -> None:
    """Write the tables and the figure."""
    config = read([CONFIG])
    made = studies.save(PAGE, config)
    shares = {budget_label(budget): float(budget) for budget in config["budgets"]}
    write_text(PAGE / "table.md", as_text(made["summary"], shares))
    equal = studies.at_equal_steps(made["runs_by_steps"], PAIRS, list(shares), [80, 320])
    report.save_table(PAGE / "equal_steps.csv", equal)
    write_text(PAGE / "equal_steps.md", studies.differences_as_text(equal[equal["steps"] == 320], "budget"))
    sets = [name for name in config["methods"] if name in METHODS and METHODS[name].stage and name != "random"]
    report.save_table(PAGE / "holm.csv", studies.corrected(made["accuracy"], made["against_best_subset"], sets))
    figures.save_figure(PAGE / "budgets.png", plot(made["accuracy"], config["methods"], shares))


if __name__ == "__main__":
    main()

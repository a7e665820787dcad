"""Study 1: the tables and the figure of its page, from the scores that the workflow has made so far."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import mkdt.config as cfg
from mkdt.artifacts import write_text
from mkdt.report import STYLES, accuracies, as_text, interval, paired, save_figure, save_table, styles, summarise

PAGE = Path("docs/studies/digits")
SCORES = cfg.RESULTS / "digits_budgets" / "probe"
METHODS = ["none", "random", "high_loss", "kmeans", "sas", "mkdt_random", "mkdt_high_loss", "krr_st", "full", "teacher"]
SUBSETS = {"random", "high_loss", "kmeans", "sas"}
DISTILLED = {"mkdt_random", "mkdt_high_loss", "krr_st"}


def against_best_subset(scores, accuracy):
    """Paired differences of each distilled set to the subset that validation prefers at its budget."""
    validation = scores[(scores["split"] == "validation") & scores["chosen"]]
    rows = []
    linear = accuracy[accuracy["evaluation"] == "linear"]
    for (budget, fraction), group in linear.groupby(["budget", "label_fraction"]):
        known = validation[(validation["budget"] == budget) & validation["method"].isin(SUBSETS)]
        for method in sorted(DISTILLED & set(group["method"])):
            best = known.groupby("method")["accuracy"].mean().idxmax()
            parts = (group[group["method"] == name] for name in (method, best))
            mean, low, high = interval(paired(*parts), "difference")
            row = {"budget": budget, "label_fraction": fraction, "method": method, "subset": best}
            rows.append(row | {"difference": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def plot(summary):
    """Accuracy against the budget, a line a method; no pre-training, all images and the teacher across."""
    table = summary[(summary["evaluation"] == "linear")].assign(share=lambda t: t["budget"].str[:-3].astype(float))
    look = styles(METHODS) | {"mkdt_random": STYLES["mkdt"]}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    # A little sideways for each method, so that markers do not hide each other.
    for k, method in enumerate([method for method in METHODS if method in set(table["method"])]):
        line = table[table["method"] == method].sort_values("share")
        colour, marker = look[method]
        if method in SUBSETS | DISTILLED:
            axis.plot(line["share"] * (0.97 + 0.01 * k), line["mean"], color=colour, marker=marker, label=method)
        else:
            axis.axhline(line["mean"].iloc[0], color=colour, linestyle="--" if method == "none" else ":", label=method)
    axis.set_xscale("log")
    ticks = sorted(set(table["share"]))
    axis.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("budget, share of the images")
    axis.set_ylabel("test accuracy (%), 2 % of labels")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def main():
    """Gather the scores, write what the page shows."""
    scores = pd.concat([pd.read_csv(path) for path in sorted(SCORES.glob("*/*/*.csv"))], ignore_index=True)
    scores.insert(0, "source", "digits")
    budgets = sorted(set(scores["budget"]) - {"all"}, key=lambda budget: float(budget[:-3]))
    accuracy = accuracies(scores, budgets)
    summary = summarise(accuracy, METHODS)
    save_table(PAGE / "accuracy.csv", accuracy)
    save_table(PAGE / "summary.csv", summary)
    save_table(PAGE / "against_best_subset.csv", against_best_subset(scores, accuracy))
    write_text(PAGE / "summary.md", as_text(summary, "fair"))
    save_figure(PAGE / "budgets.png", plot(summary))


if __name__ == "__main__":
    main()

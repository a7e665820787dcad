"""Study 7: make the tables of its page from the scores of its rungs that exist so far."""

from pathlib import Path
from typing import Any, cast

import pandas as pd
import shared as studies

from mkdt.artifacts import write_text
from mkdt.config.budgets import budget_label, budget_words
from mkdt.config.loading import read
from mkdt.config.methods import METHODS, has_budget, methods_that
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.errors import UserError
from mkdt.report import tables as report
from mkdt.report.statistics import compare, p_value, paired

BASE = Path("config/studies/equal_bytes.yaml")
RUNGS = {  # name on the page -> the file that is used after the base
    "raw targets, float32": BASE.with_stem("equal_bytes_raw"),
    "raw targets, uint8": BASE.with_stem("equal_bytes_uint8"),
    "16 components, uint8": BASE.with_stem("equal_bytes_space"),
    "5 views of them": None,
}
PAGE = Path("docs/studies/equal_bytes")
FULL = "5 views of them", "full"  # all images in the target space, the upper end of the recovered share
SETTING = ["rung", "budget", "method"]


def accuracies() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Config]]:
    """Return the test accuracies and the validation grids of all rungs, with the column ``rung``, and their configs."""
    tables, grids, configs = [], [], {}
    for rung, file in RUNGS.items():
        config = read([BASE, file] if file else [BASE])
        try:
            scores, accuracy, _ = studies.tables(config)
        except UserError:  # of this rung there are no scores yet
            continue
        configs[rung] = config
        tables.append(accuracy.assign(rung=rung))
        grids.append(studies.validation_by_point(scores).assign(rung=rung))
    accuracy = pd.concat(tables, ignore_index=True)
    return accuracy[accuracy["evaluation"] == "linear"], pd.concat(grids, ignore_index=True), configs


def sizes(configs: dict[str, Config]) -> pd.DataFrame:
    """Return the images and bytes of each rung's sets, from their files, and the mean CPU seconds of the jobs that made them."""
    rows = []
    for rung, config in configs.items():
        for budget in map(budget_label, config["budgets"]):
            for method in filter(has_budget, config["methods"]):
                names = {"method": method, "budget": budget, "distill_seed": "0"}
                found = report.set_sizes([names], [STAGES["subset"].path(config, "set", names)])
                images, count = found[method, budget]
                row = {"rung": rung, "budget": budget, "method": method, "images": images, "bytes": count}
                rows.append(row | {"seconds": _seconds(config, names)})
    return pd.DataFrame(rows)


def _seconds(config: Config, names: dict[str, str]) -> float:
    """Return the mean CPU seconds, start-up included, of the jobs of all seeds that made a method's sets."""
    stage = STAGES[METHODS[names["method"]].stage]
    files = [Path(stage.benchmark(config, names | {"distill_seed": str(seed)})) for seed in config["distill_seeds"]]
    times = [pd.read_csv(file, sep="\t")["cpu_time"].sum() for file in files if file.is_file()]
    return sum(times) / len(times) if times else float("nan")


def best_real(grid: pd.DataFrame, budget: str) -> tuple[str, str]:
    """Return the rung and method of the real subset of a budget that validation prefers over all rungs."""
    part = grid[grid["chosen"] & grid["method"].isin(methods_that(stage="subset")) & (grid["budget"] == budget)]
    means = part.groupby(["rung", "method"])["validation"].mean()
    return cast(tuple[str, str], means.idxmax())


def ladder(accuracy: pd.DataFrame, grid: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Summarise each rung, budget, method and label fraction in one row.

    Columns: ``mean`` (per cent), ``rate``, ``steps``, ``images``, ``bytes``, ``seconds``, the difference to the best real subset of the
    budget with its interval and p, and ``recovered``, the share of the gain of all images in the target space.
    """
    by = ["budget", "label_fraction"]
    rows: list[dict[str, Any]] = []
    for values, here in accuracy.groupby(by, sort=True):
        budget, fraction = cast(tuple[str, float], values)
        parts = cast(dict[tuple[str, str], pd.DataFrame], dict(iter(here.groupby(["rung", "method"], sort=False))))
        best = best_real(grid, budget)
        none = parts[next(key for key in parts if key[1] == "none")]["accuracy"].mean()
        full = parts[FULL]["accuracy"].mean()
        for (rung, method), part in parts.items():
            row: dict[str, Any] = {"rung": rung, "budget": budget, "method": method, "label_fraction": fraction}
            row |= {"mean": part["accuracy"].mean(), "rate": part["rate"].iloc[0], "steps": part["steps"].iloc[0]}
            row |= {"recovered": (part["accuracy"].mean() - none) / (full - none)}
            if (rung, method) != best:
                row |= compare(part, parts[best]) | {"p": p_value(paired(part, parts[best]))}
            rows.append(row | {"best": f"{best[1]}, {best[0]}"})
    table = pd.DataFrame(rows).merge(known, how="left", on=SETTING)
    order = {name: k for k, name in enumerate(RUNGS)}
    return table.sort_values(
        ["label_fraction", "budget", "rung"], key=lambda c: c.map(order) if c.name == "rung" else c
    )


def as_text(table: pd.DataFrame) -> str:
    """Format the rows of ``ladder`` of one budget and label fraction as Markdown."""
    rows = []
    for row in table.to_dict("records"):
        size = [report.with_commas(row[key]) for key in ("images", "bytes")]
        size.append("-" if pd.isna(row["seconds"]) else f"{row['seconds']:.0f}")
        cells = [row["rung"], row["method"], *size, f"{row['rate']:g}, {row['steps']}" if row["steps"] else "-"]
        rows.append([*cells, f"{row['mean']:.1f}", report.difference(row), report.share(row["recovered"])])
    header = [
        "rung",
        "method",
        "images",
        "bytes",
        "CPU s",
        "lr, steps",
        "accuracy",
        "vs the best real subset",
        "recovered",
    ]
    return report.markdown(header, rows) + "\n"


def main() -> None:
    """Write the tables."""
    accuracy, grid, configs = accuracies()
    table = ladder(accuracy, grid, sizes(configs))
    distilled = table["method"].map(lambda name: name in METHODS and METHODS[name].distilled)
    table["holm"] = studies.holm(table["p"].where(distilled))
    report.save_table(PAGE / "accuracy.csv", accuracy)
    report.save_table(PAGE / "grid.csv", grid)
    report.save_table(PAGE / "ladder.csv", table)
    texts = []
    for (fraction, budget), part in table.groupby(["label_fraction", "budget"], sort=True):
        texts.append(f"{budget_words(str(budget))}, {fraction} of the labels:\n\n{as_text(part)}")
    write_text(PAGE / "ladder.md", "\n".join(texts))


if __name__ == "__main__":
    main()

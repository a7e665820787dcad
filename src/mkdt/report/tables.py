"""The report: tables with numbers and intervals, and the figures that go with them."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.artifacts import by_rule, write_text
from mkdt.config.methods import METHODS
from mkdt.errors import UserError
from mkdt.report.statistics import COMPARISON, RUN, compare, interval

KEYS = ["source", "budget", "method", "student", "downstream", "evaluation", "label_fraction"]


EVALUATIONS = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuning"}


def read_table(path: str | Path, rule: str | None) -> pd.DataFrame:
    """A CSV or a file of JSON lines that a rule wrote.

    Raises:
        UserError: it is not there, cannot be read, or its last line is cut; a changed figure in it is not noticed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut")
        buffer = StringIO(text)
        table = pd.read_json(buffer, lines=True) if Path(path).suffix == ".jsonl" else pd.read_csv(buffer)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: snakemake makes it{by_rule(rule)}.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and snakemake makes it again{by_rule(rule)}."
        ) from error
    return table


def read_scores(files: Iterable[str | Path], source: str, students: Sequence[str]) -> pd.DataFrame:
    """The rows of all files of rule probe, with the column ``source`` before them.

    The teacher is scored once, under the name of the first of the ``students``; its rows stand beside each of them.
    """
    scores = pd.concat([read_table(file, "probe") for file in files], ignore_index=True)
    teacher = scores["method"] == "teacher"
    once = scores[teacher & (scores["student"] == students[0])]
    parts = [once.assign(student=student) for student in students]
    scores = pd.concat([scores[~teacher], *parts], ignore_index=True)
    scores.insert(0, "source", source)
    return scores


def accuracies(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """The test accuracies of the chosen points; a method without a budget stands beside every budget."""
    chosen = scores[(scores["split"] == "test") & scores["chosen"]]
    columns = [*KEYS, *RUN, "rate", "steps", "finetune_rate", "at_edge", "accuracy", "gradient"]
    return _beside_every_budget(chosen, budgets)[columns]


def _beside_every_budget(table: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    without = table[table["budget"] == "all"]
    parts = [table[table["budget"] != "all"], *(without.assign(budget=budget) for budget in budgets)]
    return pd.concat(parts, ignore_index=True).sort_values([*KEYS, *RUN], kind="stable").reset_index(drop=True)


def summarise(accuracy: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """One row a source, budget, method, student, downstream set, evaluation and label fraction.

    Columns: ``mean`` and ``std`` (over all runs and label draws) and ``n``, ``rate`` and ``steps`` of the chosen
    point (under the protocol ``paper``, where each set has its own rate, their mean), ``at_edge`` where a larger grid
    might have served the method better; the difference to ``random`` as ``compare`` has it; ``recovered``, the share
    (method - none) / (full - none) of what pre-training on all images gains, where it gains. Per cent, but the last.
    """
    setting = [key for key in KEYS if key != "method"]
    rows = []
    for values, group in accuracy.groupby(setting, sort=True):
        parts = dict(iter(group.groupby("method")))
        means = {method: part["accuracy"].mean() for method, part in parts.items()}
        for method in [method for method in methods if method in parts]:
            part = parts[method]
            row: dict[str, Any] = dict(zip(setting, values, strict=True)) | {
                "method": method,
                "mean": means[method],
                "std": part["accuracy"].std(),
                "n": len(part),
                "rate": _rate(part),
                "steps": part["steps"].iloc[0],
                "at_edge": part["at_edge"].iloc[0],
            }
            if "random" in parts and method != "random":
                row |= compare(part, parts["random"])
            if "none" in means and "full" in means and means["full"] > means["none"]:  # else there is no gain to share
                row["recovered"] = (means[method] - means["none"]) / (means["full"] - means["none"])
            rows.append(row)
    columns = [*KEYS, "mean", "std", "n", "rate", "steps", "at_edge", *COMPARISON, "recovered"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _rate(rows: pd.DataFrame) -> float:
    """Of rows at one point of the grid."""
    first = float(rows["rate"].iloc[0])
    return first if (rows["rate"] == first).all() else float(rows["rate"].mean())


def against_best_subset(scores: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Distilled sets against the real subset of their budget that the validation split prefers, by the linear probe.

    Args:
        scores: as from ``read_scores``.
        accuracy: what ``accuracies`` made of them.

    Returns:
        one row a setting and distilled method: ``KEYS`` but the evaluation, ``subset`` (the one preferred), and the paired
        difference to it, as ``compare`` has it.
    """
    setting = [key for key in KEYS if key not in {"method", "evaluation"}]
    subsets = [name for name, method in METHODS.items() if method.stage == "subset"]
    validation = scores[(scores["split"] == "validation") & (scores["evaluation"] == "linear") & scores["chosen"]]
    validation = validation[validation["method"].isin(subsets)]
    places = dict(iter(validation.groupby(["student", "budget"])))
    rows = []
    for values, group in accuracy[accuracy["evaluation"] == "linear"].groupby(setting, sort=True):
        where = dict(zip(setting, values, strict=True))
        parts = {str(method): part for method, part in group.groupby("method")}
        distilled = [method for method in parts if method in METHODS and METHODS[method].distilled]
        place = where["student"], where["budget"]
        if not distilled or place not in places:
            continue
        subset = str(places[place].groupby("method")["accuracy"].mean().idxmax())
        for method in distilled:
            rows.append(where | {"method": method, "subset": subset} | compare(parts[method], parts[subset]))
    return pd.DataFrame(rows, columns=[*setting, "method", "subset", *COMPARISON])


def curve(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """Test accuracy of the linear probe against the number of pre-training steps, each at the rate that validation preferred there.

    The intervals are over initial subsets and student seeds, for the label draws that all methods share: a draw moves
    all curves together, and its spread would hide what tells them apart.
    """
    points = scores[(scores["split"] == "test") & (scores["evaluation"] == "linear") & scores["chosen_at_steps"]]
    points = _beside_every_budget(points, budgets)
    rows = []
    for values, group in points.groupby([*KEYS, "steps"], sort=True):
        mean, low, high = interval(group, "accuracy", ["distill_seed", "seed"])
        rows.append(
            dict(zip([*KEYS, "steps"], values, strict=True))
            | {"rate": _rate(group), "mean": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def by_fraction(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy against the share of the labels, at the chosen points, with the intervals of ``curve``."""
    rows = []
    for values, group in accuracy.groupby(KEYS, sort=True):
        mean, low, high = interval(group, "accuracy", ["distill_seed", "seed"])
        rows.append(dict(zip(KEYS, values, strict=True)) | {"mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in [header, *rows])
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def spread(row: Mapping[Any, Any], names: Sequence[str] = ("difference", "low", "high")) -> str:
    """A difference with its interval: ``+1.5 [+0.2, +2.8]``; ``-`` where there is none."""
    difference, low, high = (row[name] for name in names)
    if pd.isna(difference):
        return "-"
    return f"{difference:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if pd.notna(low) else "")


def share(recovered: float) -> str:
    """A recovered share in whole per cent; ``-`` where there is no gain to share."""
    return f"{100 * recovered:.0f} %" if pd.notna(recovered) else "-"


def as_text(summary: pd.DataFrame, protocol: str) -> str:
    """The summary as a Markdown table for a terminal: one row a method, one pair of columns a label fraction."""
    lines = []
    order = summary["evaluation"].map(list(EVALUATIONS).index)
    setting = [order, "evaluation", "source", "budget", "student", "downstream"]
    for (_, evaluation, source, budget, student, downstream), group in summary.groupby(setting):
        fractions = sorted(group["label_fraction"].unique())
        lines += [
            f"{source} at {budget}, {student}, {EVALUATIONS[str(evaluation)]} on {downstream}, protocol {protocol}; "
            "accuracy in per cent: mean ± deviation, difference to random [95 % interval], recovered",
            "",
        ]
        header = ["method", "lr, steps"]
        for fraction in fractions:
            header += [f"{fraction:.4g} of labels", "vs random", "recovered"]
        rows = []
        for method in group["method"].unique():
            part = group[group["method"] == method].set_index("label_fraction")
            first = part.iloc[0]
            edge = "*" if first["at_edge"] else ""
            cells = [method, f"{first['rate']:.3g}, {first['steps']}{edge}" if first["steps"] else "-"]
            for fraction in fractions:
                row = part.loc[fraction]
                cells += [f"{row['mean']:.1f} ± {row['std']:.1f}", spread(row), share(row["recovered"])]
            rows.append(cells)
        lines += [
            markdown(header, rows),
            "",
            *(
                ["\\* chosen at the edge of the grid (its rates, or the most steps): a wider one might give more."]
                * bool(group["at_edge"].any())
            ),
            "",
        ]
    return "\n".join(lines)


def save_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV with plain numbers, atomically; floats round-trip."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))

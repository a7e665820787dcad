"""The report's tables: scores, accuracies, their summary, and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.artifacts import Artifact, by_rule, write_text
from mkdt.config.methods import METHODS
from mkdt.distill.storage import bytes_of
from mkdt.errors import UserError
from mkdt.report.statistics import COMPARISON, RUN, compare, interval

Sizes = dict[tuple[str, str], tuple[int, int]]  # (method, budget) -> images, bytes
KEYS = ["source", "budget", "method", "student", "downstream", "evaluation", "label_fraction"]
EVALUATIONS = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuning"}


# -- files


def read_table(path: str | Path, rule: str | None) -> pd.DataFrame:
    """Read a CSV or a file of JSON lines that a rule wrote.

    Raises:
        UserError: the file is missing, cannot be read, or its last line is cut; a changed number is not noticed.
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


def save_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically; floats are restored exactly when it is read."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_scores(
    selections: Iterable[str | Path], files: Iterable[str | Path], source: str, students: Sequence[str]
) -> pd.DataFrame:
    """Join the rows of all files of the rules select (``selections``) and probe, with the column ``source`` before them.

    The teacher is scored once, under the name of the first of the ``students``; its rows are repeated for each of them.

    Raises:
        UserError: a file is missing, damaged or lacks a run.
    """
    tables = [read_table(file, "select") for file in selections]
    scores = pd.concat([*tables, *(_complete(file, read_table(file, "probe")) for file in files)], ignore_index=True)
    teacher = scores["method"] == "teacher"
    once = scores[teacher & (scores["student"] == students[0])]
    parts = [once.assign(student=student) for student in students]
    scores = pd.concat([scores[~teacher], *parts], ignore_index=True)
    scores.insert(0, "source", source)
    return scores


def _complete(path: str | Path, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of one file; raise if a combination of seeds and label draws is missing."""
    chosen = scores[(scores["split"] == "test") & scores["chosen"]]
    for _, runs in chosen.groupby([key for key in KEYS if key != "source"], dropna=False):
        if len(runs) < prod(runs[factor].nunique() for factor in RUN):
            raise UserError(f"{path} lacks a run: delete it, and snakemake makes it again{by_rule('probe')}.")
    return scores


# -- tables


def accuracies(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """Select the test accuracies of the chosen points; rows of a method without a budget are repeated for every budget."""
    chosen = scores[(scores["split"] == "test") & scores["chosen"]]
    columns = [*KEYS, *RUN, "rate", "steps", "finetune_rate", "at_edge", "accuracy", "gradient"]
    return _for_every_budget(chosen, budgets)[columns]


def _for_every_budget(table: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    without = table[table["budget"] == "all"]
    parts = [table[table["budget"] != "all"], *(without.assign(budget=budget) for budget in budgets)]
    return pd.concat(parts, ignore_index=True).sort_values([*KEYS, *RUN], kind="stable").reset_index(drop=True)


def set_sizes(names: Iterable[Mapping[str, str]], files: Iterable[str | Path]) -> Sizes:
    """Return the images and bytes of sets, by method and budget; the files are in the order of their names."""
    found = {}
    for of, path in zip(names, files, strict=True):
        file = Artifact(path)
        found[of["method"], of["budget"]] = file.shape("images")[0], bytes_of(file)
    return found


def size_of_all(targets: Artifact, channels: int, size: int) -> tuple[int, int]:
    """Return the number of all training images, and their bytes: pixels in one byte each, targets as they are stored."""
    count, dimension = targets.shape("targets")
    return count, count * (channels * size**2 + 4 * dimension)


def summarise(
    accuracy: pd.DataFrame,
    methods: Sequence[str],
    chance: Mapping[str, float] | None = None,
    sizes: Sizes | None = None,
) -> pd.DataFrame:
    """Summarise each source, budget, method, student, downstream set, evaluation and label fraction in one row.

    Columns, in per cent: ``mean`` and ``std`` over all ``n`` runs and label draws; the paired difference to ``random``, as
    from ``compare``. Also ``rate`` and ``steps`` of the chosen point (under the protocol ``paper``, where each set has its
    own rate, their mean); ``at_edge`` where a larger grid might have a better point; ``recovered``, the share
    (method - none) / (full - none) of what pre-training on all images gains, where it gains; with ``chance``, by
    downstream set, that column too. ``sizes``, by method and budget (``all`` for those without), become ``images`` and
    ``bytes``.
    """
    setting = [key for key in KEYS if key != "method"]
    rows = []
    for values, group in accuracy.groupby(setting, sort=True):
        parts = {str(method): part for method, part in group.groupby("method")}
        for method in [method for method in methods if method in parts]:
            rows.append(dict(zip(setting, values, strict=True)) | _summary_of(method, parts))
    columns = [*KEYS, "mean", "std", "n", "rate", "steps", "at_edge", *COMPARISON, "recovered"]
    summary = pd.DataFrame(rows).reindex(columns=columns)
    if sizes is not None:
        without = {method: size for (method, budget), size in sizes.items() if budget == "all"}
        pairs = zip(summary["method"], summary["budget"], strict=True)
        known = [sizes.get(pair, without.get(pair[0], (None, None))) for pair in pairs]
        summary[["images", "bytes"]] = pd.DataFrame(known, index=summary.index, dtype="Int64")
    return summary if chance is None else summary.assign(chance=summary["downstream"].map(chance))


def _summary_of(method: str, parts: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Summarise a method in one setting, given the rows of all methods there."""
    part = parts[method]
    row: dict[str, Any] = {
        "method": method,
        "mean": part["accuracy"].mean(),
        "std": part["accuracy"].std(),
        "n": len(part),
        "rate": _rate(part),
        "steps": part["steps"].iloc[0],
        "at_edge": part["at_edge"].iloc[0],
    }
    if "random" in parts and method != "random":
        row |= compare(part, parts["random"])
    if {"none", "full"} <= parts.keys():
        none, full = (parts[name]["accuracy"].mean() for name in ("none", "full"))
        if full > none:  # else there is no gain to recover
            row["recovered"] = (row["mean"] - none) / (full - none)
    return row


def _rate(rows: pd.DataFrame) -> float:
    """Return the learning rate of one point of the grid; of different rates the mean."""
    first = float(rows["rate"].iloc[0])
    return first if (rows["rate"] == first).all() else float(rows["rate"].mean())


def against_best_subset(scores: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Compare distilled sets with the real subset of their budget that validation prefers, by the linear probe.

    Args:
        scores: as from ``read_scores``.
        accuracy: what ``accuracies`` made of them.

    Returns:
        one row a setting and distilled method: ``KEYS`` but the evaluation, ``subset`` (the preferred one), and the paired
        difference to it, as from ``compare``.
    """
    setting = [key for key in KEYS if key not in {"method", "evaluation"}]
    subsets = [name for name, method in METHODS.items() if method.stage == "subset"]
    validation = scores[(scores["split"] == "validation") & (scores["evaluation"] == "linear") & scores["chosen"]]
    validation = validation[validation["method"].isin(subsets)]
    candidates = dict(iter(validation.groupby(["student", "budget"])))
    rows = []
    for values, group in accuracy[accuracy["evaluation"] == "linear"].groupby(setting, sort=True):
        where = dict(zip(setting, values, strict=True))
        parts = {str(method): part for method, part in group.groupby("method")}
        distilled = [method for method in parts if method in METHODS and METHODS[method].distilled]
        place = where["student"], where["budget"]
        if not distilled or place not in candidates:
            continue
        subset = str(candidates[place].groupby("method")["accuracy"].mean().idxmax())
        for method in distilled:
            rows.append(where | {"method": method, "subset": subset} | compare(parts[method], parts[subset]))
    return pd.DataFrame(rows, columns=[*setting, "method", "subset", *COMPARISON])


def best_at_steps(scores: pd.DataFrame) -> pd.DataFrame:
    """Select the linear probe's test rows at every number of steps, at the rate that validation prefers there."""
    return scores[(scores["split"] == "test") & (scores["evaluation"] == "linear") & scores["chosen_at_steps"]]


def curve(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """Average the linear probe's test accuracy at every number of pre-training steps, at the rate that validation prefers.

    The 95 % intervals are over initial subsets and student seeds, for fixed label draws: a draw moves the curves of all
    methods together, and its variance would hide the differences between them.
    """
    points = _for_every_budget(best_at_steps(scores), budgets)
    rows = []
    for values, group in points.groupby([*KEYS, "steps"], sort=True):
        rows.append(
            dict(zip([*KEYS, "steps"], values, strict=True)) | {"rate": _rate(group)} | _mean_for_fixed_draws(group)
        )
    return pd.DataFrame(rows)


def by_fraction(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Average the test accuracy at the chosen points for each share of labels, with the intervals of ``curve``."""
    rows = []
    for values, group in accuracy.groupby(KEYS, sort=True):
        rows.append(dict(zip(KEYS, values, strict=True)) | _mean_for_fixed_draws(group))
    return pd.DataFrame(rows)


def _mean_for_fixed_draws(runs: pd.DataFrame) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), interval(runs, "accuracy", ["distill_seed", "seed"]), strict=True))


# -- text


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table, without a line break at its end."""
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in [header, *rows])
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """Format a number with its interval: ``1.5 [0.2, 2.8]``; ``-`` for NaN.

    Args:
        value, low, high: the interval is left out where ``low`` is NaN.
        sign: ``+`` also puts a sign before positive numbers.
    """
    if pd.isna(value):
        return "-"
    return f"{value:{sign}.1f}" + (f" [{low:{sign}.1f}, {high:{sign}.1f}]" if pd.notna(low) else "")


def difference(row: Mapping[Any, Any]) -> str:
    """Format the difference of a row, as from ``compare``, with its interval: ``+1.5 [+0.2, +2.8]``."""
    return with_interval(row["difference"], row["low"], row["high"], sign="+")


def share(recovered: float) -> str:
    """Format a recovered share in whole per cent; ``-`` for NaN."""
    return f"{100 * recovered:.0f} %" if pd.notna(recovered) else "-"


def as_text(summary: pd.DataFrame, protocol: str, notices: Sequence[str] = ()) -> str:
    """Format the summary as Markdown: a table for each evaluation, source, budget, student and downstream set.

    Args:
        summary: as from ``summarise``.
        protocol: of pre-training.
        notices: sentences to begin with, as from ``mkdt.report.notices``.
    """
    order = summary["evaluation"].map(list(EVALUATIONS).index)
    setting = [order, "evaluation", "source", "budget", "student", "downstream"]
    lines = [f"**{notice}**\n" for notice in notices]
    for (_, evaluation, source, budget, student, downstream), group in summary.groupby(setting):
        chance = f" (chance {group['chance'].iloc[0]:.1f})" if "chance" in group else ""
        lines += [
            f"{source} at {budget}, {student}, {EVALUATIONS[str(evaluation)]} on {downstream}, protocol {protocol}; "
            f"accuracy in per cent{chance}: mean ± deviation, difference to random [95 % interval], recovered",
            "",
            _setting_as_text(group),
            "",
        ]
        if group["at_edge"].any():
            lines.append(
                "\\* chosen at the edge of the grid (its rates, or the most steps): a wider one might give more."
            )
        lines.append("")
    return "\n".join(lines)


def with_commas(count: Any) -> str:
    """Format a whole number: ``8,068``; ``-`` where there is none."""
    return "-" if pd.isna(count) else f"{count:,.0f}"


def _setting_as_text(summary: pd.DataFrame) -> str:
    """Format one setting: a row a method, three columns a label fraction."""
    fractions = sorted(summary["label_fraction"].unique())
    has_sizes = "bytes" in summary
    header = ["method", *["images", "bytes"] * has_sizes, "lr, steps"]
    for fraction in fractions:
        header += [f"{fraction:.4g} of labels", "vs random", "recovered"]
    rows = []
    for method in summary["method"].unique():
        part = summary[summary["method"] == method].set_index("label_fraction")
        first = part.iloc[0]
        edge = "*" if first["at_edge"] else ""
        cells = [method, *(with_commas(first[key]) for key in ("images", "bytes") if has_sizes)]
        cells += [f"{first['rate']:.3g}, {first['steps']}{edge}" if first["steps"] else "-"]
        for fraction in fractions:
            row = part.loc[fraction]
            cells += [f"{row['mean']:.1f} ± {row['std']:.1f}", difference(row), share(row["recovered"])]
        rows.append(cells)
    return markdown(header, rows)

"""The report as one HTML page that needs no other file.

Charts are SVG, pictures are data URIs; ``workflow/report/index.html.jinja`` arranges them. Names from a config are escaped
there.
"""

import base64
import importlib.metadata
import io
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from mkdt.config.budgets import budget_words
from mkdt.distill.synthetic_set import SyntheticSet, moments
from mkdt.report import figures, statistics
from mkdt.report import tables as report
from mkdt.report.charts import Panel, chart, swatch

PAIRS = 40  # images of a set that are shown
TABLES = 4  # so many are shown at once, the others on demand
CEILINGS = {"full", "teacher"}  # never marked as the best: they were trained on all images
PACKAGES = ("torch", "torchvision", "kornia", "numpy", "scikit-learn", "pandas", "snakemake", "mlflow")


@dataclass(frozen=True)
class ShownSet:
    """A synthetic set in the report.

    Attributes:
        method, budget, seed: of the set.
        synthetic, initial: the set, and the real images that it started from, row for row.
        evolution: PNG of the set during distillation, a row a moment.
    """

    method: str
    budget: str
    seed: str
    synthetic: SyntheticSet
    initial: SyntheticSet
    evolution: bytes


def render(
    template: str | Path,
    *,
    title: str,
    notices: Sequence[str],
    settings: Mapping[str, Any],
    accuracy: pd.DataFrame,
    summary: pd.DataFrame,
    points: pd.DataFrame,
    sets: Sequence[ShownSet],
    matching: Mapping[str, pd.DataFrame],
    costs: pd.DataFrame,
    origin: Mapping[str, str],
    command: str,
    config: str,
) -> str:
    """Render the page as HTML.

    Args:
        template: the jinja file.
        title: the experiment.
        notices: sentences above the results, from ``mkdt.report.notices``.
        settings: ``source``, ``protocol``, ``methods`` and ``budgets`` of the experiment.
        accuracy, summary, points: from ``accuracies``, ``summarise`` and ``curve`` of ``mkdt.report.tables``.
        sets: the distilled sets to show.
        matching: metrics of each distillation run by iteration.
        costs: table of ``mkdt.report.costs``.
        origin: versions, device and other facts about the run, by name.
        command: the command line that made the report.
        config: as YAML.
    """
    methods = list(settings["methods"])
    summary, accuracy = (_linear_first(table) for table in (summary, accuracy))
    by_fraction = _linear_first(report.by_fraction(accuracy))
    setting = ["budget", "student", "downstream"]
    return _load(Path(template)).render(
        title=title,
        notices=notices,
        settings=settings,
        legends={
            place: {method: swatch(look, place) for method, look in figures.styles(methods).items()}
            for place in ("result", "labels", "steps")
        },
        labels={method: figures.UNTRAINED.get(method, method) for method in methods},
        headlines=_headlines(summary, {shown.method for shown in sets}, settings["source"]),
        differences=list(_differences(summary, methods)),
        tables=list(_tables(summary, accuracy)),
        open_tables=TABLES,
        by_labels=list(_curves(by_fraction, methods, "label_fraction", ["evaluation", *setting])),
        by_steps=list(_curves(points, methods, "steps", [*setting, "label_fraction"])),
        sets=[_set(shown) for shown in sets],
        matching=list(_matching(matching)),
        costs=_records(costs),
        origin=origin,
        command=command,
        config=config,
    )


def _load(template: Path) -> Template:
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"signed": signed, "duration": duration, "size": size, "words": budget_words}
    return environment.get_template(template.name)


# -- charts


def _curves(points: pd.DataFrame, methods: Sequence[str], against: str, by: Sequence[str]) -> Iterator[Panel]:
    """Chart the accuracy in each setting that has more than one point of ``against``."""
    for values, here in points.groupby(list(by), sort=False):
        if here[against].nunique() < 2:
            continue

        def draw(axis: Axes, here: pd.DataFrame = here) -> None:
            figures.draw_curve(axis, here, methods, against)
            axis.set_ylabel("test accuracy (%)")

        yield Panel(setting_in_words(dict(zip(by, values, strict=True))), chart(f"{against} {values}", draw))


def _differences(summary: pd.DataFrame, methods: Sequence[str]) -> Iterator[Panel]:
    """Chart the differences to the random subset for each evaluation, budget and student."""
    by = ["evaluation", "budget", "student"]
    for values, here in summary.groupby(by, sort=False):
        bands = len(here[["downstream", "label_fraction"]].drop_duplicates())
        if here["difference"].notna().any():
            draw = partial(figures.draw_differences, summary=here, methods=methods)
            title = setting_in_words(dict(zip(by, values, strict=True)))
            yield Panel(title, chart(f"differences {values}", draw, 1.3 + 0.7 * bands))


def _matching(runs: Mapping[str, pd.DataFrame]) -> Iterator[Panel]:
    """Chart loss, step size and gradient of the distillation runs."""
    for column, title in figures.MATCHING.items() if runs else ():

        def draw(axis: Axes, column: str = column) -> None:
            figures.draw_matching(axis, runs, column)
            axis.legend(frameon=False, fontsize=8)

        yield Panel(title, chart(f"matching {column}", draw))


# -- tables


def _linear_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by evaluation, the linear probe first."""
    order = list(report.EVALUATIONS)
    return table.sort_values("evaluation", key=lambda names: names.map(order.index), kind="stable")


def _tables(summary: pd.DataFrame, accuracy: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a table for each setting: each method's accuracy and difference to random, with intervals, and chance."""
    by = ["evaluation", "budget", "student", "downstream", "label_fraction"]
    runs = dict(iter(accuracy.groupby([*by, "method"])))
    for values, here in summary.groupby(by, sort=False):
        rows = []
        for row in _records(here):
            _, low, high = statistics.interval(runs[(*values, row["method"])], "accuracy")
            rows.append(row | {"mean_low": low, "mean_high": high, "size": _size_of(row)})
        setting = dict(zip(by, values, strict=True))
        best = max((row["mean"] for row in rows if row["method"] not in CEILINGS), default=math.nan)
        yield {
            "title": setting_in_words(setting),
            **setting,
            "rows": rows,
            "best": best,
            "chance": rows[0].get("chance"),
        }


def _size_of(row: Mapping[str, Any]) -> str:
    """Format the size of a row's set, where it has one: ``14 images, 8.07 kB``."""
    has_size = pd.notna(row.get("bytes"))
    return f"{row['images']:,} images, {size(row['bytes'])}" if has_size else ""


def _headlines(summary: pd.DataFrame, methods: set[str], source: str) -> list[dict[str, Any]]:
    """Select summary rows of the distilled sets: linear probe, on the source itself where it has labels, one student."""
    rows = summary[(summary["evaluation"] == "linear") & summary["method"].isin(methods)]
    for column, wanted in (("downstream", source), ("student", "")):
        if len(rows):
            rows = rows[rows[column] == (wanted if (rows[column] == wanted).any() else rows[column].iloc[0])]
    return _records(rows)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a table to rows, each by column."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


# -- words and numbers


def setting_in_words(setting: Mapping[str, Any]) -> str:
    """Name a setting: ``digits, linear probe, 2 % of the labels, convnet on 1%``."""
    words = [str(setting["downstream"])] if "downstream" in setting else []
    words += [report.EVALUATIONS[setting["evaluation"]]] if "evaluation" in setting else []
    words += [f"{100 * setting['label_fraction']:.4g} % of the labels"] if "label_fraction" in setting else []
    return ", ".join([*words, f"{setting['student']} on {budget_words(setting['budget'])}"])


def duration(seconds: float) -> str:
    """Format a time: ``7.3 s``, ``4 min 5 s``, ``2 h 10 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Format a number of bytes, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def signed(value: float) -> str:
    """Format a difference with one digit and a sign; minus is U+2212, not a hyphen."""
    return f"{value:+.1f}".replace("-", "−")


# -- pictures


def _set(shown: ShownSet) -> dict[str, Any]:
    """Prepare a set for the template: pairs of real and synthetic images, and moments of its distillation."""
    pairs = zip(shown.initial.pixels()[:PAIRS], shown.synthetic.pixels()[:PAIRS], strict=True)
    indices = shown.synthetic.init_index[:PAIRS].tolist()
    return {
        "name": f"{shown.method}, {budget_words(shown.budget)}, distill seed {shown.seed}",
        "method": shown.method,
        "budget": budget_words(shown.budget),
        "count": len(shown.synthetic),
        "pairs": [(index, *map(_picture, pair)) for index, pair in zip(indices, pairs, strict=True)],
        "pixels": shown.synthetic.images.shape[-1],
        "evolution": _uri(shown.evolution),
        "moments": moments(shown.synthetic.provenance["parameters"]),
    }


def _picture(image: Tensor) -> str:
    """Encode an image uint8 [C,H,W], C = 1 or 3, as a data URI."""
    png = io.BytesIO()
    values = image.permute(1, 2, 0).numpy()
    Image.fromarray(values.squeeze(-1) if values.shape[2] == 1 else values).save(png, "png")
    return _uri(png.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -- origin


def surroundings(code: str, device: str) -> dict[str, str]:
    """Collect what the numbers depend on beside the config: versions and machine, by name.

    Args:
        code: version of this checkout.
        device: the devices that the stages used.
    """
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "code": code,
        "device": device,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **versions,
    }


def config_text(config: Mapping[str, Any]) -> str:
    """Format a checked config as YAML; ``tracking``, which may hold a password, is left out.

    At full scale the text is a config of the same experiment. One that is scaled down says how to make it again.
    """
    shown = {key: value for key, value in config.items() if key != "tracking"}
    if config["scale"] == "smoke":
        again = "# Scaled down by scale: smoke. To run it again, use the experiment's own config with --config scale=smoke.\n"
        return again + config_text({**shown, "scale": "full"})
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _processor() -> str:
    """Return the processor's name, as far as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

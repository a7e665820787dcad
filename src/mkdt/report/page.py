"""The report as one page: a file that needs nothing beside it, on paper, in the dark and on a phone.

Charts are SVG in the page's own text and colours, pictures are data URIs; ``workflow/report/index.html.jinja`` arranges
them. Whatever a config can name is escaped there.
"""

import base64
import importlib.metadata
import io
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mkdt.config.sizes import budget_words
from mkdt.distill.synthetic_set import SyntheticSet, moments
from mkdt.report import figures, statistics
from mkdt.report import tables as report

PAIRS = 40  # images of a set that are shown
TABLES = 4  # that are open; the others are there for who looks for them
CEILINGS = {"full", "teacher"}  # not bold where they are best: they have seen all images
PACKAGES = ("torch", "torchvision", "kornia", "numpy", "scikit-learn", "pandas", "snakemake", "mlflow")
# What the figures draw in. The page may give each another value in the dark: `var(--c0072b2, #0072b2)`.
HEX = re.compile(r"#[0-9a-f]{6}\b")


@dataclass(frozen=True)
class Panel:
    """A chart with its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Shown:
    """A synthetic set in the report.

    Attributes:
        method, budget, seed: which.
        synthetic, initial: the set, and the real images that it started from, row for row.
        evolution: PNG of the set as it forms, a row a moment.
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
    settings: Mapping[str, Any],
    accuracy: pd.DataFrame,
    summary: pd.DataFrame,
    points: pd.DataFrame,
    sets: Sequence[Shown],
    matching: Mapping[str, pd.DataFrame],
    costs: pd.DataFrame,
    origin: Mapping[str, str],
    command: str,
    config: str,
) -> str:
    """The page as HTML.

    Args:
        template: the jinja file.
        title: the experiment.
        settings: ``source``, ``protocol``, ``methods`` and ``budgets`` of the experiment.
        accuracy, summary, points: tables of ``mkdt.report.tables``.
        sets: what was distilled, and from what.
        matching: values of each distillation run by iteration.
        costs: table of ``mkdt.report.costs``.
        origin: versions, device and whatever else says where the numbers come from, by name.
        command: what was typed.
        config: as YAML.
    """
    folder = Path(template)
    environment = Environment(
        loader=FileSystemLoader(folder.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"signed": signed, "duration": duration, "size": size, "words": budget_words}
    methods = list(settings["methods"])
    summary, accuracy = (_in_order(table) for table in (summary, accuracy))
    setting = ["budget", "student", "downstream"]
    return environment.get_template(folder.name).render(
        title=title,
        settings=settings,
        legends={
            place: {method: _swatch(look, place) for method, look in figures.styles(methods).items()}
            for place in ("result", "labels", "steps")
        },
        labels={method: figures.UNTRAINED.get(method, method) for method in methods},
        headlines=_headlines(summary, {shown.method for shown in sets}, settings["source"]),
        differences=list(_differences(summary, methods)),
        tables=list(_tables(summary, accuracy)),
        open_tables=TABLES,
        by_labels=list(
            _curves(_in_order(report.by_fraction(accuracy)), methods, "label_fraction", ["evaluation", *setting])
        ),
        by_steps=list(_curves(points, methods, "steps", [*setting, "label_fraction"])),
        sets=[_set(shown) for shown in sets],
        matching=list(_matching(matching)),
        costs=_records(costs),
        origin=origin,
        command=command,
        config=config,
    )


# -- charts


def chart(name: str, draw: Callable[[Axes], object], height: float = 3.1) -> Markup:
    """A chart as SVG. Equal data give equal text.

    Args:
        name: unique in the page.
        draw: draws on the axes that it is given.
        height: in inches at a width of 4.6; the page scales both.
    """
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        return _svg(figure, name)


def _swatch(look: figures.Style, place: str) -> Markup:
    """A method's line and marker, as the charts have them, for a place in the page."""
    colour, marker, dashes = look
    figure = Figure(figsize=(0.5, 0.17))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dashes, linewidth=1.5)
    axis.plot([1], [0], color=colour, marker=marker, markersize=6)
    return _svg(figure, f"{place} {look}")


def _svg(figure: Figure, name: str) -> Markup:
    """A figure with real text, in colours that the page can change."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    # The same names in several figures of a page would be taken for one another.
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', svg, count=1)
    return Markup(HEX.sub(lambda match: f"var(--c{match[0][1:]}, {match[0]})", svg))


def _curves(points: pd.DataFrame, methods: Sequence[str], against: str, by: Sequence[str]) -> Iterator[Panel]:
    """Accuracy in each setting that has more than one point of ``against``."""
    for values, here in points.groupby(list(by), sort=False):
        if here[against].nunique() < 2:
            continue

        def draw(axis: Axes, here: pd.DataFrame = here) -> None:
            figures.draw_curve(axis, here, methods, against)
            axis.set_ylabel("test accuracy (%)")

        yield Panel(describe(dict(zip(by, values, strict=True))), chart(f"{against} {values}", draw))


def _differences(summary: pd.DataFrame, methods: Sequence[str]) -> Iterator[Panel]:
    """Differences to the random subset, a chart an evaluation, budget and student."""
    by = ["evaluation", "budget", "student"]
    for values, here in summary.groupby(by, sort=False):
        bands = len(here[["downstream", "label_fraction"]].drop_duplicates())
        if here["difference"].notna().any():
            draw = partial(figures.draw_differences, summary=here, methods=methods)
            yield Panel(
                describe(dict(zip(by, values, strict=True))), chart(f"differences {values}", draw, 1.3 + 0.7 * bands)
            )


def _matching(runs: Mapping[str, pd.DataFrame]) -> Iterator[Panel]:
    """Loss, step size and gradient of the distillation runs."""
    for column, title in figures.MATCHING.items() if runs else ():

        def draw(axis: Axes, column: str = column) -> None:
            figures.draw_matching(axis, runs, column)
            axis.legend(frameon=False, fontsize=8)

        yield Panel(title, chart(f"matching {column}", draw))


# -- tables


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The linear probe first, as everywhere."""
    order = list(report.EVALUATIONS)
    return table.sort_values("evaluation", key=lambda names: names.map(order.index), kind="stable")


def _tables(summary: pd.DataFrame, accuracy: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A table for each setting: each method's accuracy and difference to the random subset, with intervals."""
    by = ["evaluation", "budget", "student", "downstream", "label_fraction"]
    runs = dict(iter(accuracy.groupby([*by, "method"])))
    for values, here in summary.groupby(by, sort=False):
        rows = []
        for row in _records(here):
            _, low, high = statistics.interval(runs[(*values, row["method"])], "accuracy")
            rows.append(row | {"mean_low": low, "mean_high": high})
        setting = dict(zip(by, values, strict=True))
        best = max((row["mean"] for row in rows if row["method"] not in CEILINGS), default=math.nan)
        yield {"title": describe(setting), **setting, "rows": rows, "best": best}


def _headlines(summary: pd.DataFrame, methods: set[str], source: str) -> list[dict[str, Any]]:
    """What the distilled sets reach by the linear probe, on the source itself where it has labels, with one student."""
    rows = summary[(summary["evaluation"] == "linear") & summary["method"].isin(methods)]
    for column, wanted in (("downstream", source), ("student", "")):
        if len(rows):
            rows = rows[rows[column] == (wanted if (rows[column] == wanted).any() else rows[column].iloc[0])]
    return _records(rows)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, by column."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


# -- words and numbers


def describe(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    words = [str(setting["downstream"])] if "downstream" in setting else []
    words += [report.EVALUATIONS[setting["evaluation"]]] if "evaluation" in setting else []
    words += [f"{100 * setting['label_fraction']:.4g} % of the labels"] if "label_fraction" in setting else []
    return ", ".join([*words, f"{setting['student']} on {budget_words(setting['budget'])}"])


def duration(seconds: float) -> str:
    """A time as people say it: ``7.3 s``, ``4 min 5 s``, ``2 h 10 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """A number of bytes, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def signed(value: float) -> str:
    """A difference with one digit; the minus sign is one."""
    return f"{value:+.1f}".replace("-", "−")


# -- pictures


def _set(shown: Shown) -> dict[str, Any]:
    """A set for the template: pairs of real and synthetic images, and how it formed."""
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
    """An image uint8 [C,H,W], C = 1 or 3, as a data URI."""
    png = io.BytesIO()
    values = image.permute(1, 2, 0).numpy()
    Image.fromarray(values.squeeze(-1) if values.shape[2] == 1 else values).save(png, "png")
    return _uri(png.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -- where it comes from


def surroundings(code: str, device: str) -> dict[str, str]:
    """What the numbers depend on beside the config: versions and machine, by name.

    Args:
        code: version of this checkout.
        device: which the stages used.
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
    """A checked config as YAML that asks for the same experiment, without what decides nothing (where runs are sent)."""
    left = {key: value for key, value in config.items() if key != "tracking"} | {"scale": "full"}
    return yaml.safe_dump(left, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _processor() -> str:
    """The processor's name, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

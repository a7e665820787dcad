"""What a reader must know before the numbers of a report."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mkdt.artifacts import Artifact
from mkdt.config.image_files import some
from mkdt.config.plan import used_datasets
from mkdt.config.sections import Config
from mkdt.config.set_checks import brought_doubts
from mkdt.config.sizes import folder_remarks
from mkdt.evaluate.labels import at_chance
from mkdt.evaluate.linear_probe import TOLERANCE
from mkdt.report.tables import read_table

SMOKE = (
    "Scale: smoke. Every size of the study is scaled down to see that it runs. These numbers mean nothing; run it without "
    "scale: smoke for numbers that do."
)


def notices(
    config: Config,
    targets_probe: str | Path,
    data: Iterable[Artifact] = (),
    scores: pd.DataFrame | None = None,
    sets: Iterable[Artifact] = (),
) -> list[str]:
    """Return sentences to show above the results: what looks wrong, though it may be meant.

    Args:
        config: of the experiment.
        targets_probe: the table of rule targets_probe; it is empty where the source has no labels.
        data: the decoded data sets whose notes are read.
        scores: rows of rule probe, whose columns ``method`` and ``precision`` are read.
        sets: the distilled sets whose notes are read.

    Raises:
        UserError: the table is missing or damaged.
    """
    chance = _chance(config["source"], Path(targets_probe))
    found = [SMOKE] if config["scale"] == "smoke" else chance  # a teacher of a smoke run says nothing of the labels
    found += [f"{name} looks wrong: {' '.join(sentences)}" for name, sentences in brought_doubts(config).items()]
    found += [sentence for file in data for sentence in [*_skipped(file), *_copies(file)]]
    found += _precisions(scores, sets) + _unfitted(scores)
    return found + [f"{name}: {remark}." for name in used_datasets(config) for remark in folder_remarks(config, name)]


def _precisions(scores: pd.DataFrame | None, sets: Iterable[Artifact]) -> list[str]:
    """Return a sentence if sets, students or scores were made in several precisions; what does not say its own is left out."""
    made = {(file.path.parts[-3], file.header.get("notes", {}).get("precision")) for file in sets}
    if scores is not None and "precision" in scores:
        rows = scores[["method", "precision"]].dropna().drop_duplicates().itertuples(index=False, name=None)
        made |= {(method, precision) for method, several in rows for precision in several.split(" and ")}
    methods: dict[str, list[str]] = {}
    for method, precision in sorted(pair for pair in made if pair[1]):
        methods.setdefault(precision, []).append(method)
    if len(methods) < 2:
        return []
    named = "; ".join(f"{precision}: {', '.join(names)}" for precision, names in methods.items())
    return [
        f"The numbers were made in several precisions ({named}), so that differences between methods may partly be due to that. "
        "Give compute.precision and a kind of device, and make one of them again with --forcerun."
    ]


def _unfitted(scores: pd.DataFrame | None) -> list[str]:
    """Return a sentence if the fit of a linear probe ended before its optimum."""
    if scores is None or "gradient" not in scores:
        return []
    left = scores[scores["gradient"] > 2 * TOLERANCE]
    if left.empty:
        return []
    return [
        f"{len(left)} of {scores['gradient'].notna().sum()} linear probes ended before their optimum (methods "
        f"{some(sorted(set(left['method'])))}; largest entry of the gradient {left['gradient'].max():.1g}): raise probe.l2."
    ]


def _skipped(data: Artifact) -> list[str]:
    """Return a sentence about the image files that could not be decoded and were left out (``data.on_error: skip``)."""
    names = data.header.get("notes", {}).get("skipped", [])
    if not names:
        return []
    return [f"{data.path.parent.name}: {len(names)} image files could not be decoded and are left out ({some(names)})."]


def _copies(data: Artifact) -> list[str]:
    """Return a sentence for each split in which images equal a training image."""
    return [
        f"{data.path.parent.name}: {number} of the {total} {split} images ({100 * number / total:.2g} %) equal a training "
        "image exactly; accuracies on them measure memory."
        for split, number in data.header.get("notes", {}).get("copies", {}).items()
        if (total := data.shape(f"{split}_images")[0])
    ]


def _chance(source: str, targets_probe: Path) -> list[str]:
    if targets_probe.is_file() and not targets_probe.stat().st_size:
        return []
    rows = read_table(targets_probe, "targets_probe").to_dict("records")
    if not at_chance(rows):
        return []
    return [
        f"Neither the pixels nor the teacher's targets of {source} predict its labels better than chance "
        f"({rows[0]['chance']:.1f} %). Check that the labels belong to the images: if they do not, accuracies on "
        f"{source} compare nothing."
    ]

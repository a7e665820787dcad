"""Reports of made-up experiments, as rule report would have written them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from configs import with_sections
from score_tables import SETTING, runs

from mkdt.config.stages import STAGES
from mkdt.report.tables import accuracies, save_table, summarise


def make_report(
    results: Path,
    name: str,
    gains: dict[str, float],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    noise: int = 0,
    test: str = "t",
    train: str = "l",
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Write the tables of an experiment in which each method has 70 % plus its gain.

    Args:
        results: folder of the results.
        name: of the experiment.
        gains: of each method, in percentage points.
        seeds: of the students.
        noise: seed of the noise of a run, with a deviation of 0.2 points; that of a seed and a label draw is common to all.
        test, train: stand for the digests of the splits.
        settings: sections of the config that differ from the default.

    Returns:
        the accuracies of each method [distill seed, student seed, label draw].
    """
    common = np.random.default_rng(7).normal(0, 5, (1, 10, 3))[:, list(seeds)]
    own = np.random.default_rng(noise)
    values = {method: 70 + gain + common + own.normal(0, 0.2, (4, len(seeds), 3)) for method, gain in gains.items()}
    parts = [runs(method, [0, 1, 2, 3], accuracy) for method, accuracy in values.items()]
    for part in parts:
        part["seed"] = part["seed"].map(dict(enumerate(seeds)))
    scores = pd.concat(parts, ignore_index=True).assign(split="test", chosen=True)
    accuracy = accuracies(scores, ["1pct"])
    config = with_sections(experiment=name, **settings)
    paths = {role: results.parent / STAGES["report"].path(config, role) for role in STAGES["report"].outputs}
    save_table(paths["accuracy_csv"], accuracy)
    save_table(paths["summary_csv"], summarise(accuracy, list(gains)))
    paths["summary_md"].write_text("| method | accuracy |\n|---|---|\n| mkdt | 72 |\n")
    paths["curve_png"].write_bytes(b"")
    noted = {"config": dict(config) | {"tracking": None}, "code": "abc"}
    data = {SETTING["downstream"]: {"test": test, "train": train}}
    paths["origin_json"].write_text(json.dumps(noted | {"data": data}))
    return values

"""Rule report: all scores into tables and figures."""

from pathlib import Path

import pandas as pd

from mkdt import job, report
from mkdt.artifacts import write_text
from mkdt.synthetic import load_synthetic

with job.stage(snakemake) as stage:
    settings, output = stage.settings, stage.output
    scores = pd.concat([pd.read_csv(path) for path in stage.input.scores])
    scores.insert(0, "source", settings["source"])
    accuracy = report.accuracies(scores, settings["budgets"])
    summary = report.summarise(accuracy, settings["methods"])
    points = report.curve(scores, settings["budgets"])
    report.save_table(output.accuracy_csv, accuracy)
    report.save_table(output.summary_csv, summary)
    report.save_table(output.curve_csv, points)
    write_text(output.summary_md, report.as_text(summary, settings["protocol"]))
    report.save_figure(output.curve_png, report.plot_curve(points, settings["methods"]))
    if stage.input.sets:
        rows, shown = [], set()
        for initial, path in zip(stage.input.initial, stage.input.sets, strict=True):
            method = Path(path).parts[-3]
            if method not in shown:  # the first set of each method stands for the others
                shown.add(method)
                rows += [("real", load_synthetic(initial).pixels()), (method, load_synthetic(path).pixels())]
        report.save_figure(output.sets_png, report.plot_images(rows))
    if stage.input.metrics:
        runs = {"/".join(Path(path).with_suffix("").parts[-3:]): path for path in stage.input.metrics}
        tables = {name: pd.read_json(path, lines=True) for name, path in runs.items()}
        report.save_figure(output.matching_png, report.plot_matching(tables))

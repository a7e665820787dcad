"""Rule report: all scores into tables and figures."""

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
    if "mkdt" in settings["methods"]:
        before, after = load_synthetic(stage.input.initial[0]), load_synthetic(stage.input.sets[0])
        rows = [("real", before.pixels()), ("distilled", after.pixels())]
        report.save_figure(output.sets_png, report.plot_images(rows))
        runs = {"/".join(path[:-6].split("/")[-2:]): pd.read_json(path, lines=True) for path in stage.input.metrics}
        report.save_figure(output.matching_png, report.plot_matching(runs))

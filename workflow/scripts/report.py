"""Stage report: make tables, figures and one page from all scores."""

import os
from pathlib import Path

from mkdt.artifacts import Artifact, write_text
from mkdt.config import plan
from mkdt.config.methods import METHODS
from mkdt.config.result_folders import RESULTS
from mkdt.config.sizes import image_shape
from mkdt.distill.synthetic_set import load_synthetic
from mkdt.evaluate.labels import chance_level
from mkdt.jobs import stage as job
from mkdt.jobs.tracking import code_version
from mkdt.report import figures, origin, page
from mkdt.report import tables as report
from mkdt.report.costs import costs
from mkdt.report.notices import notices

with job.stage(snakemake, "report") as stage:
    settings, output = stage.settings, stage.output
    students = snakemake.config["pretrain"]["students"]
    scores = report.read_scores(stage.input.selections, stage.input.scores, settings["source"], students)
    accuracy = report.accuracies(scores, settings["budgets"])
    scored = [Path(path).parent.name for path in stage.input.data]
    data = stage.open_all("data", stage.input.data, "data")
    labels = [file.tensor("test_labels") for file in data]
    chance = dict(zip(scored, map(chance_level, labels), strict=True))
    sizes = report.set_sizes(plan.first_sets(snakemake.config), stage.input.trained)
    source = stage.open("targets", stage.input.targets, "targets")
    sizes["full", "all"] = report.size_of_all(source, *image_shape(snakemake.config, settings["source"]))
    summary = report.summarise(accuracy, settings["methods"], chance, sizes)
    # A set that is brought has no place in the results.
    own = [path for path in [*stage.input.sets, *stage.input.trained] if Path(path).is_relative_to(RESULTS)]
    sets_made = [Artifact(path) for path in dict.fromkeys(own)]
    notes = notices(snakemake.config, stage.input.targets_probe, data, scores, sets_made)
    points = report.curve(scores, settings["budgets"])
    report.save_table(output.accuracy_csv, accuracy)
    report.save_table(output.summary_csv, summary)
    report.save_table(output.curve_csv, points)
    write_text(output.summary_md, report.as_text(summary, settings["protocol"], notes))
    figures.save_figure(output.curve_png, figures.plot_curve(points, settings["methods"]))
    shown = {}  # the first set of each method and budget
    for initial, path, picture in zip(stage.input.initial, stage.input.sets, stage.input.evolution, strict=True):
        method, budget, seed = Path(path).with_suffix("").parts[-3:]
        if (method, budget) not in shown:
            sets = load_synthetic(path, METHODS[method].stage), load_synthetic(initial, "subset")
            shown[method, budget] = page.ShownSet(method, budget, seed, *sets, Path(picture).read_bytes())
    if shown:
        first = {one.method: one for one in reversed(shown.values())}
        rows = [
            row
            for one in first.values()
            for row in (("real", one.initial.pixels()), (one.method, one.synthetic.pixels()))
        ]
        figures.save_figure(output.sets_png, figures.plot_images(rows))
    runs = {"/".join(Path(path).with_suffix("").parts[-3:]): path for path in stage.input.metrics}
    matching = {name: report.read_table(path, METHODS[name.split("/")[0]].stage) for name, path in runs.items()}
    if matching:
        figures.save_figure(output.matching_png, figures.plot_matching(matching))
    table = costs(snakemake.config)
    html = page.render(
        stage.input.template,
        title=snakemake.config["experiment"],
        notices=notes,
        settings=settings,
        accuracy=accuracy,
        summary=summary,
        points=points,
        sets=list(shown.values()),
        matching=matching,
        costs=table,
        origin=page.surroundings(code_version(), ", ".join(sorted(set(table["device"]) - {""}))),
        command=os.environ["MKDT_COMMAND"],
        config=page.config_text(snakemake.config),
    )
    write_text(output.index_html, html)
    noted = origin.as_text(snakemake.config, code_version(), dict(zip(scored, data, strict=True)), sets_made)
    write_text(output.origin_json, noted)

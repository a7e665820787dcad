"""An experiment's parent run in MLflow: its config, results and costs can be searched and compared, whatever failed before."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_reports import make_report
from mlflow_server import Experiment, Server, tracked
from score_tables import SETTING

from mkdt.cli import main as cli
from mkdt.config.plan import parameters
from mkdt.config.sections import Config
from mkdt.jobs.parent_run import Tracker
from mkdt.jobs.shown_values import NOTE, NOTE_LENGTH, grid_with_choice, run_note, summary_metrics
from mkdt.jobs.tracking import Run, parse

pytestmark = pytest.mark.usefixtures("short_waits")
MKDT = "mkdt/1pct/c/d/0.1"
GAINS = {"random": 0.0, "mkdt": 2.0}


@pytest.fixture
def results(local: Experiment, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with a store, in the working directory, and one benchmark."""
    folder = local.folder.parents[1]
    monkeypatch.chdir(folder.parent)
    (folder / "benchmarks/e").mkdir(parents=True)
    (folder / "benchmarks/e/report.tsv").write_text("s\tmax_rss\n65\t3\n")
    return folder


def snakemake(config: Config, results: Path, succeeded: bool = True) -> None:
    """What the Snakefile does at the begin and the end of a run."""
    tracker = Tracker(config, results)
    tracker.start()
    assert tracker.syncer is not None
    tracker.end(succeeded)


# -- what is recorded


def test_metrics_of_a_summary() -> None:
    """A name says the setting; what a table has not, as the interval of one run, is no metric."""
    linear = {key: str(value) for key, value in SETTING.items()}
    rows = [
        linear | {"method": "mkdt", "mean": "71.5", "difference": "2.0", "low": "", "bytes": "8068"},
        linear | {"method": "none", "mean": "40.0", "evaluation": "knn", "recovered": "0.0"},
    ]
    assert summary_metrics(rows) == {
        f"accuracy/{MKDT}": 71.5,
        f"difference/{MKDT}": 2,
        "bytes/mkdt/1pct": 8068,
        "accuracy/none/1pct/c/d/0.1/knn": 40,
        "recovered/none/1pct/c/d/0.1/knn": 0,
    }


def test_the_grid_names_the_chosen_point() -> None:
    """By the rate and the steps of the rows that validation chose."""
    grid = [{"validation_accuracy": accuracy, "rate": 0.1, "steps": steps} for accuracy, steps in ((60, 2), (50, 4))]
    rows = [
        SETTING | {"method": "mkdt", "rate": 0.1, "steps": steps, "accuracy": accuracy, "chosen": steps == 2}
        for steps, accuracy in ((4, 50), (2, 60))
    ]
    assert [point["chosen"] for point in grid_with_choice(grid, rows)] == [True, False]


def test_a_description_fits(tmp_path: Path) -> None:
    """It has the whole table or as many of its lines as MLflow takes, and always the names of the pictures."""
    pictures = [tmp_path / "curve.png", tmp_path / "index.html"]
    line = "| mkdt | 71.5 |\n"
    for lines in (1, 10, 1000):
        note = run_note(tracked(), line * lines, pictures)
        assert len(note) <= NOTE_LENGTH
        assert "`curve.png`" in note
        shown = note.count(line.strip())
        assert shown == lines or (lines == 1000 and shown > 400 and "summary.md" in note)
        assert note.count("| mkdt") == shown, "no line is cut"


def test_a_run_that_goes_on_records_what_changed(tmp_path: Path) -> None:
    """MLflow shows the value of the last step; what is equal is not recorded again."""
    first = Run(tmp_path, "experiment", "e", {}, {})
    first.conclude({"a": 1, "b": 2})
    name = first.id
    first.close("FINISHED")
    for _ in range(2):
        again = Run(tmp_path, "experiment", "e", {}, {})
        again.begin(name)
        again.conclude({"a": 1, "b": 3})
        again.close("FINISHED")
    records = parse((tmp_path / f"{name}.jsonl").read_bytes())
    values = [(r["step"], r["values"]) for r in records if r["type"] == "metrics"]
    ours = [(step, shown) for step, shown in values if not any(key.startswith("system/") for key in shown)]
    assert ours == [(0, {"a": 1, "b": 2}), (1, {"b": 3})]


def test_without_tracking_nothing_is_recorded() -> None:
    """The same calls do nothing."""
    run = Run(None, "", "", {}, {})
    run.conclude({"a": 1})
    run.table("grid", [{"a": 1}])
    run.describe_experiment("")
    run.close("FINISHED")


# -- what arrives


@pytest.mark.mlflow
def test_two_experiments_are_searched_and_compared(local: Experiment, results: Path) -> None:
    """By metrics and parameters, with MLflow's client alone; the numbers are those of summary.csv."""
    changes: dict[str, dict[str, Any]] = {"e": {}, "f": {"distill": {"iterations": 7}}}
    for number, (name, settings) in enumerate(changes.items()):
        make_report(results, name, GAINS | {"mkdt": 2.0 + number}, noise=number, **settings)
        snakemake(tracked(name, **settings), results)
    client = local.client()
    experiments = [client.get_experiment_by_name(name) for name in changes]
    ids = [experiment.experiment_id for experiment in experiments if experiment is not None]
    best, other = client.search_runs(ids, "tags.stage = 'experiment'", order_by=[f"metrics.`accuracy/{MKDT}` DESC"])
    assert (best.info.run_name, other.info.run_name) == ("f", "e")
    between = other.data.metrics[f"accuracy/{MKDT}"] + 0.5
    for more in ("", " AND params.`distill.iterations` = '7'"):
        (found,) = client.search_runs(ids, f"metrics.`accuracy/{MKDT}` > {between}{more}")
        assert found.info.run_id == best.info.run_id
    assert client.search_runs(ids, "tags.methods LIKE '%mkdt%' AND tags.source = 'digits'")
    differing = {key for key in best.data.params if best.data.params[key] != other.data.params[key]}
    assert differing == {"experiment", "distill.iterations"}
    assert not any(key.startswith("tracking") for key in best.data.params)
    with (results / "e/report/summary.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["method"] == "mkdt"]
    for column, metric in (
        ("mean", "accuracy"),
        ("difference", "difference"),
        ("low", "difference_low"),
        ("high", "difference_high"),
    ):
        assert other.data.metrics[f"{metric}/{MKDT}"] == float(row[column])  # fmt: skip
    assert other.data.metrics["cost/report/seconds"] == 65
    assert other.data.tags["code"]
    assert "| mkdt | 72 |" in other.data.tags[NOTE]
    assert "curve.png" in other.data.tags[NOTE]
    assert all(experiment is not None and experiment.tags[NOTE] for experiment in experiments)


@pytest.mark.mlflow
def test_the_parent_run_has_the_report_and_goes_on(local: Experiment, results: Path) -> None:
    """Two invocations of Snakemake are one parent run; results that changed meanwhile replace the earlier ones."""
    make_report(results, "e", GAINS)
    for succeeded, gain in ((False, 2.0), (True, 2.0), (True, 9.0)):
        make_report(results, "e", GAINS | {"mkdt": gain})
        tracker = Tracker(tracked(), results)
        tracker.start()
        assert tracker.syncer is not None
        if succeeded:
            tracker.syncer.kill()  # then another one is started at the end
            tracker.syncer.wait()
        tracker.end(succeeded)
        (parent,) = local.runs()
        assert parent.info.status == ("FINISHED" if succeeded else "FAILED")
        assert (f"accuracy/{MKDT}" in parent.data.metrics) == succeeded
    assert parent.data.metrics[f"accuracy/{MKDT}"] > 77
    files = [file.path for file in local.client().list_artifacts(parent.info.run_id, "report")]
    assert {"report/accuracy.csv", "report/curve.png", "report/summary.md"} < set(files)


@pytest.mark.mlflow
def test_a_changed_config_is_another_parent_run(local: Experiment, results: Path) -> None:
    """MLflow's parameters cannot be changed. The report of the old config is not taken for the new one's."""
    make_report(results, "e", GAINS)
    configs = [tracked(), tracked(compute={"threads": 3}), tracked(distill={"iterations": 7})]
    for config in configs:
        snakemake(config, results)
        local.run(f"job-{len(local.runs())}").close("FINISHED")
    assert local.sync()
    runs = local.runs()
    parents = [run for run in runs if run.data.tags["stage"] == "experiment"]
    assert [run.data.params for run in parents] == [
        {key: str(value) for key, value in parameters(config).items()} for config in configs
    ]
    assert [f"accuracy/{MKDT}" in run.data.metrics for run in parents] == [True, True, False]
    jobs = [run for run in runs if run not in parents]
    assert [job.data.tags["mlflow.parentRunId"] for job in jobs] == [run.info.run_id for run in parents]


def final_state(experiment: Experiment) -> list[tuple[Any, ...]]:
    """What people see of each run, without names that the store gives and what the machine measured."""
    state = []
    for run in experiment.runs():
        metrics = {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}
        tags = {key: value for key, value in run.data.tags.items() if key not in ("mkdt.run", "mlflow.parentRunId")}
        files = [file.path for file in experiment.client().list_artifacts(run.info.run_id, "report")]
        state.append((run.info.run_name, run.info.status, run.data.params, metrics, tags, files))
    return state


@pytest.mark.mlflow
@pytest.mark.slow
def test_a_server_that_was_down_ends_with_the_same_state(
    local: Experiment, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is sent later by `mkdt track sync`, twice even, is what a store has that was always there."""
    make_report(results, "e", GAINS)
    snakemake(tracked(), results, succeeded=False)
    snakemake(tracked(), results)
    always = final_state(local)
    server = Server(tmp_path)
    (local.folder / "progress.json").unlink()
    for path in local.folder.glob("experiment-*"):
        if path.is_file():
            path.unlink()
    snakemake(tracked(uri=server.uri), results, succeeded=False)
    snakemake(tracked(uri=server.uri), results)
    assert "mkdt track sync" in capsys.readouterr().err
    server.start()
    try:
        for _ in range(2):
            assert cli.main(["track", "sync", "--experiment", "e"]) == 0
        local.uri = server.uri
        assert final_state(local) == always
        experiment = local.client().get_experiment_by_name("e")
        assert experiment is not None
        assert experiment.tags[NOTE]
    finally:
        server.kill()


@pytest.mark.mlflow
def test_a_description_of_somebody_else_stays(local: Experiment, results: Path) -> None:
    """The experiment's is written once."""
    client = local.client()
    client.set_experiment_tag(client.create_experiment("e"), NOTE, "mine")
    snakemake(tracked(), results)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert experiment.tags[NOTE] == "mine"


@pytest.mark.mlflow
def test_a_damaged_report_fails_no_run(local: Experiment, results: Path) -> None:
    """The parent run ends all the same."""
    make_report(results, "e", GAINS)
    (results / "e/report/origin.json").write_text(json.dumps({"config": {}}))
    snakemake(tracked(), results)
    (parent,) = local.runs()
    assert parent.info.status == "FINISHED"

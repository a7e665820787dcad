"""The real workflow: its report, its determinism, killed jobs, tracking and bad configs."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from project import COLD, TRACKED, Project

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.cli.main import main
from mkdt.jobs.gpu_locks import own_gpus

pytestmark = pytest.mark.slow


def worker(project: Project, stage: str) -> int | None:
    """Process id of the running script of a stage in this project."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(entry / "cwd") == str(project.folder)
        except OSError:
            continue
        scripts = [word for word in words if word.startswith(b"/") and word.endswith(f".{stage}.py".encode())]
        if here and scripts and b"bash" not in words[0]:
            return int(entry.name)
    return None


def tracked(project: Project, query: str = "") -> tuple[Any, list[Any]]:
    """A client of the project's store, and the runs in it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder}/results/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id], query, max_results=200))


def test_report_tables(finished: Project) -> None:
    """accuracy.csv has one row a run; summary.csv pairs with random and knows what is recovered."""
    folder = finished.folder / "results/tiny/report"
    accuracy = pd.read_csv(folder / "accuracy.csv")
    keys = [
        "source",
        "budget",
        "method",
        "student",
        "downstream",
        "evaluation",
        "label_fraction",
        "distill_seed",
        "seed",
        "label_draw",
    ]
    assert not accuracy.duplicated(keys).any()
    assert set(accuracy["evaluation"]) == {"linear", "knn"}
    accuracy = accuracy[accuracy["evaluation"] == "linear"]
    counts = accuracy.groupby("method").size().to_dict()
    assert counts == {"none": 4, "full": 4, "high_loss": 4, "random": 8, "mkdt": 8}
    assert accuracy["accuracy"].between(0, 100).all()
    summary = pd.read_csv(folder / "summary.csv").query("evaluation == 'linear'").set_index("method")
    random, mkdt = (accuracy[accuracy["method"] == name]["accuracy"].mean() for name in ("random", "mkdt"))
    assert summary.loc["mkdt", "difference"] == pytest.approx(mkdt - random)
    assert summary.loc["none", "recovered"] == 0
    assert summary.loc["full", "recovered"] == 1
    assert (summary["low"] <= summary["difference"]).sum() == (summary["difference"] <= summary["high"]).sum() == 4


def test_snakemake_is_not_busy_with_itself(finished: Project) -> None:
    """It looks at the jobs that are ready when one has finished, and not once a second more for each that has."""
    assert 10 < finished.printed.count("Ready jobs:") <= finished.printed.count("Finished jobid:")


def test_the_page_shows_what_was_made(finished: Project) -> None:
    """Pictures of the set, every method, each stage's cost, the command and the config of this very run."""
    page = (finished.folder / "results/tiny/report/index.html").read_text()
    assert page.count('alt="synthetic image from') == 6
    evolution = (finished.folder / "results/tiny/sets/mkdt/6img/0.png").read_bytes()
    assert base64.b64encode(evolution).decode() in page
    for method in ("none", "random", "high_loss", "mkdt", "full"):
        assert f"<td>{method}<" in page
    cost, origin = re.findall(r'<section id="(?:cost|origin)">.*?</section>', page, re.DOTALL)
    jobs = dict(re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td>", cost))
    expected = {"data": 1, "teacher": 1, "targets": 1, "targets_probe": 1, "experts": 2, "subset": 3, "distill": 2, "pretrain": 7, "select": 5, "probe": 5}  # fmt: skip
    assert jobs == {stage: str(count) for stage, count in (expected | {"total": 28}).items()}
    assert f"snakemake --verbose --cores 2 --configfile {finished.configfiles[0]}" in origin
    assert "experiment: tiny" in origin


def test_the_other_methods_go_the_same_way(changed: Project) -> None:
    """Every further method, the common student and one with batch norm, and all evaluations end in one table.

    A set that was brought with labels for targets goes with them; terminal, log and report say that it looks wrong.
    """
    methods = ["random", "kmeans", "sas", "mkdt_random", "krr_st", "mtt_ssl", "teacher", "file:theirs.safetensors"]
    own = Artifact(changed.folder / "results/tiny/sets/mkdt/6img/0.safetensors")
    theirs = {name: own.tensor(name) for name in own.names} | {"targets": torch.eye(6)}
    artifacts.save(changed.folder / "theirs.safetensors", theirs, stage="theirs")
    printed = changed.run(
        "--config",
        f"methods=[{','.join(methods)}]",
        "krr_st={init: high_loss}",
        "distill={init: kmeans}",  # of mtt_ssl
        "pretrain={students: [convnet, convnet_bn]}",
        "probe={finetune: {rates: [0.01], steps: 2, batch: 8, weight_decay: 0}}",
    )
    accuracy = pd.read_csv(changed.folder / "results/tiny/report/accuracy.csv")
    counts = accuracy.groupby(["method", "student", "evaluation"]).size().unstack("method")
    assert counts.shape == (6, 8)
    assert (counts.drop(columns=["teacher", "file-theirs"]) == 8).all(axis=None)
    assert (counts["file-theirs"] == 4).all()
    log = (changed.folder / "results/logs/tiny/pretrain/convnet/file-theirs/all/0.log").read_text()
    page = (changed.folder / "results/tiny/report/index.html").read_text()
    for doubt in ("one-hot", "another teacher"):
        assert doubt in log
        assert doubt in page
        assert printed.count(doubt) == 1
    assert (counts["teacher"] == 2).all()
    sets = changed.folder / "results/tiny/sets"
    started = Artifact(sets / "krr_st/6img/0.safetensors").tensor("init_index")
    assert torch.equal(started, Artifact(sets / "high_loss/6img/0.safetensors").tensor("init_index"))
    started = Artifact(sets / "mtt_ssl/6img/1.safetensors").tensor("init_index")
    assert torch.equal(started, Artifact(sets / "kmeans/6img/1.safetensors").tensor("init_index"))


def test_all_methods_start_from_the_same_students(project: Project) -> None:
    """The untrained student of a seed does not depend on the method, the budget or the distill seed."""
    grid = "pretrain={steps: [1], rates: [0.000000001], seeds: [3]}"
    folder = "results/tiny/pretrain/convnet"
    paths = [
        f"{folder}/{name}/3.safetensors" for name in ("none/all/0", "random/6img/0", "random/6img/1", "full/all/0")
    ]
    project.run(*paths, "--config", grid)
    weights = [Artifact(project.folder / path).row("snapshots", 0)[0] for path in paths]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-5)


def test_one_core_gives_the_same_bytes_as_two(project: Project, finished: Project) -> None:
    """Determinism: nothing depends on which jobs run side by side."""
    project.run(cores=1)
    mine, theirs = project.artifacts(), finished.artifacts()
    assert mine.keys() == theirs.keys()
    assert [path for path in mine if mine[path] != theirs[path]] == []


@pytest.mark.counts("kills survived")
@pytest.mark.parametrize(("stage", "signum"), [("distill", signal.SIGKILL), ("teacher", signal.SIGTERM)])
def test_a_killed_job_goes_on_to_the_same_bytes(
    changed: Project, finished: Project, stage: str, signum: signal.Signals
) -> None:
    """A job that is killed in the middle leaves a resume point; the next run ends with the same artifacts."""
    project = changed
    subprocess.run("rm -r results/.tracking results/mlflow.db*", shell=True, cwd=project.folder, check=True)
    scale = {"distill": "distill={iterations: 150}", "teacher": "teacher={epochs: 40}"}[stage]
    target = {
        "distill": "results/tiny/sets/mkdt/6img/0.safetensors",
        "teacher": "results/digits/tiny_teacher/teacher.safetensors",
    }[stage]
    reference = finished.copy(project.folder.with_name("reference"))
    reference.run(target, "--config", scale)
    project.snakemake, project.configfiles = COLD, TRACKED
    states = (project.folder / "results/.resume").rglob
    assert not list(states("*.state.pt"))
    run = project.start(target, "--config", scale)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        pid = worker(project, stage) if list(states(f"*{Path(target).stem}.state.pt")) else None
        if pid:
            os.kill(pid, signum)
            break
        assert run.poll() is None, run.communicate()[0][-3000:]
        time.sleep(0.02)
    else:
        pytest.fail("the stage never left a resume point")
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert not (project.folder / target).exists()
    project.snakemake = Project.snakemake
    project.run(target, "--config", scale)
    log = next(
        (project.folder / "results/logs").rglob(f"{Path(target).stem}.log" if stage != "distill" else "mkdt/*/0.log")
    )
    assert "resuming from" in log.read_text()
    assert (project.folder / target).read_bytes() == (reference.folder / target).read_bytes()
    metrics = Path(target).with_suffix(".jsonl")
    assert (project.folder / metrics).read_bytes() == (reference.folder / metrics).read_bytes()
    client, (run,) = tracked(project, f"tags.stage = '{stage}'")
    assert run.info.status == "FINISHED", "the job that went on has the same run"
    rows = [json.loads(line) for line in (project.folder / metrics).read_text().splitlines()]
    for key in rows[-1].keys() - {"step"}:
        steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, key))
        assert steps == [row["step"] for row in rows if key in row], "one curve, without gaps or doubles"


@pytest.mark.counts("kills survived")
def test_a_teacher_on_two_processes_is_stopped_and_goes_on_to_the_same_bytes(changed: Project) -> None:
    """SLURM's way to stop a job, SIGTERM to all its processes: rank 0 saves, nobody is left; the next run has its bits."""
    project, target = changed, "results/digits/tiny_teacher/teacher.safetensors"
    two = ("--config", "teacher={devices: 2, epochs: 30}")
    project.snakemake = COLD
    run = project.start(target, *two)
    deadline = time.monotonic() + 120
    while not list((project.folder / "results").glob(".resume/digits/tiny_teacher/*/*/teacher.state.pt")):
        assert run.poll() is None, run.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "the teacher never left a resume point"
        time.sleep(0.01)
    rank_0 = worker(project, "teacher")
    assert rank_0 is not None
    others = [pid for pid in children(rank_0) if "spawn_main" in command(pid)]
    assert len(others) == 1
    for pid in (*others, rank_0):
        os.kill(pid, signal.SIGTERM)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert not Path(f"/proc/{others[0]}").exists()
    assert not (project.folder / target).exists()
    log = project.folder / "results/logs/digits/tiny_teacher/teacher.log"
    assert "stopped by SIGTERM" in log.read_text()
    project.snakemake = Project.snakemake
    straight = project.copy(project.folder.with_name("straight"))
    shutil.rmtree(straight.folder / "results/.resume")
    for either in (project, straight):
        either.run(target, *two)
    assert "resuming from" in log.read_text()
    for path in (target, target.replace(".safetensors", ".jsonl")):
        assert (project.folder / path).read_bytes() == (straight.folder / path).read_bytes()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def command(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_mlflow_has_every_job_under_one_parent(finished: Project) -> None:
    """Runs, parameters, live metrics and pictures are in the store that onstart made."""
    client, runs = tracked(finished)
    parents = [run for run in runs if run.data.tags["stage"] == "experiment"]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    children = [run for run in runs if run is not parents[0]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    stages = pd.Series([run.data.tags["stage"] for run in children]).value_counts().to_dict()
    assert stages == {
        "data": 1, "teacher": 1, "targets": 1, "targets_probe": 1, "experts": 2, "subset": 3, "distill": 2, "pretrain": 7, "select": 5, "probe": 5, "report": 1,
    }  # fmt: skip
    assert {run.info.status for run in children} == {"FINISHED"}
    distill = next(run for run in children if run.data.tags["stage"] == "distill")
    assert distill.data.params["iterations"] == "4"
    assert [metric.step for metric in client.get_metric_history(distill.info.run_id, "loss")] == [1, 2, 3, 4]
    pictures = [file.path for file in client.list_artifacts(distill.info.run_id, "images")]
    assert {re.findall(r"step\+(\d+)", path)[0] for path in pictures} == {"0", "2", "4"}
    assert {item.dataset.name for item in distill.inputs.dataset_inputs} == {
        f"tiny/sets/random/6img/{distill.data.tags['distill_seed']}"
    }
    report = [file.path for file in client.list_artifacts(parents[0].info.run_id, "report")]
    assert {"report/summary.md", "report/curve.png"} <= set(report)


def test_mlflow_has_results_by_which_runs_are_compared(finished: Project) -> None:
    """The parent run has the summary and the costs; a probe ends with the point that validation chose, and has its grid."""
    client, runs = tracked(finished)
    (parent,) = [run for run in runs if run.data.tags["stage"] == "experiment"]
    summary = pd.read_csv(finished.folder / "results/tiny/report/summary.csv")
    for row in summary.to_dict("records"):
        name = f"{row['method']}/{row['budget']}/convnet/digits/0.1" + "/knn" * (row["evaluation"] == "knn")
        assert parent.data.metrics[f"accuracy/{name}"] == row["mean"]
        if row["method"] == "mkdt":
            assert parent.data.metrics[f"difference_low/{name}"] == row["low"]
    assert parent.data.params["distill.iterations"] == "4"
    assert parent.data.metrics["cost/distill/seconds"] > 0
    (probe, choice) = [
        run
        for stage in ("probe", "select")
        for run in runs
        if run.data.tags["stage"] == stage and run.data.tags["method"] == "mkdt"
    ]
    assert probe.data.metrics["test_accuracy/digits/0.1"] == pytest.approx(
        parent.data.metrics["accuracy/mkdt/6img/convnet/digits/0.1"]
    )
    metrics = choice.data.metrics
    history = client.get_metric_history(choice.info.run_id, "validation_accuracy")
    assert metrics["validation_accuracy"] == max(point.value for point in history)
    grid = pd.read_csv(client.download_artifacts(choice.info.run_id, "grid.csv"))
    assert len(grid) == len(history) - 1 == 4  # the chosen point comes once more
    (chosen,) = grid[grid["chosen"]].to_dict("records")
    assert {key: metrics[key] for key in ("validation_accuracy", "rate", "steps")} == {
        key: chosen[key] for key in ("validation_accuracy", "rate", "steps")
    }


def test_compare_two_real_experiments(finished: Project, tmp_path: Path) -> None:
    """The same experiment in two results folders: it was scored on the same images, so all differences are 0."""
    copy = finished.copy(tmp_path / "project")
    edited = copy.folder / "results/tiny/report/origin.json"
    noted = json.loads(edited.read_text())
    noted["config"]["distill"]["iterations"] = 5
    edited.write_text(json.dumps(noted))
    text = finished.mkdt("compare", "tiny", str(copy.folder / "results/tiny"))
    assert re.search(r"\| distill.iterations +\| 4 +\| 5 +\|", text)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if "| knn" in line or "| linear" in line
    ]
    assert len(rows) == 10
    assert {row[-2] for row in rows} == {"+0.0"}
    assert {row[-1] for row in rows} == {"4", "8"}
    assert re.search(r"\| distill +\| 2 +\| 2 +\|", text)


def test_tags_lead_from_an_accuracy_to_the_teacher(finished: Project) -> None:
    """The walk by identities: what made a file has it as output, and names what it read as inputs."""
    _, runs = tracked(finished)
    makers = {
        identity[:16]: run for run in runs for key, identity in run.data.tags.items() if key.startswith("output.")
    }
    accuracy = hashlib.sha256((finished.folder / "results/tiny/report/accuracy.csv").read_bytes()).hexdigest()
    pending, stages = [accuracy], set()
    while pending:
        run = makers[pending.pop()[:16]]
        if run.data.tags["stage"] not in stages or run.data.tags["stage"] in {"pretrain", "select", "probe"}:
            stages.add(run.data.tags["stage"])
            read = [value for key, value in run.data.tags.items() if key.startswith("input.")]
            pending += [identity for value in read for identity in value.split(",")]
    made_before = {"pretrain", "distill", "subset", "experts", "targets", "targets_probe", "teacher", "data"}
    assert stages == {"report", "probe", "select"} | made_before


def test_a_dead_tracking_server_costs_no_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracking only watches: where it cannot connect, jobs run, and what they recorded can be sent later, once."""
    target = "results/digits/tiny_teacher/teacher.safetensors"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:9")
    project.configfiles = TRACKED
    text = project.run(target)
    project.run("track_sync", fails=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (project.folder / target).is_file()
    assert len((project.folder / target).with_suffix(".jsonl").read_text().splitlines()) == 2
    assert "mkdt track sync" in text
    assert "hush" not in text
    results = project.folder / "results"
    project.run("track_sync")
    assert main(["track", "sync", "--results", str(results)]) == 0
    client, runs = tracked(project)
    assert {run.data.tags["stage"]: run.info.status for run in runs} == dict.fromkeys(
        ["experiment", "data", "teacher"], "FINISHED"
    )
    (teacher,) = [run for run in runs if run.data.tags["stage"] == "teacher"]
    assert len(client.get_metric_history(teacher.info.run_id, "loss")) == 2


def test_report_archive_opens(finished: Project, tmp_path: Path) -> None:
    """`snakemake --report report.zip` makes one page with the tables and figures."""
    finished.run("--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = archive.namelist()
    assert any(name.endswith("report.html") for name in names)
    assert any(name.endswith("curve.png") for name in names)
    assert any(name.endswith("index.html") for name in names)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher={epoch: 3}", ["teacher.epoch", "did you mean 'epochs'"]),
        ("teacher={lr: fast}", ["teacher.lr", "number"]),
        ("budgets=[0.0001]", ["budgets", "less than one image"]),
        ("experts={epochs: 1}", ["experts.epochs", "distill.match_epochs"]),
        ("students={convnet: {depth: 5}}", ["students.convnet.depth", "8x8"]),
        ("probe={label_fractions: [0.0005]}", ["probe.label_fractions", "two labels"]),
    ],
)
def test_a_bad_config_is_one_sentence(project: Project, override: str, words: list[str]) -> None:
    """Before any job: exit code not zero, the key named, no traceback, nothing written."""
    text = project.run("--config", override, fails=True)
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert not (project.folder / "results").exists()


def test_more_gpus_than_the_run_may_use_is_one_sentence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake would lower the request silently; a run may use those of the machine, or those that it says."""
    two = ("--dry-run", "--config", "teacher={devices: 2}", "compute={device: cuda}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    text = project.run(*two, fails=True)
    assert "teacher.devices is 2, but this run may use 1 GPU(s)" in text
    assert "Traceback" not in text
    assert "gpu=2" in project.run("--resources", "gpu=2", *two)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "gpu=2" in project.run(*two)
    assert "may use 1 GPU(s)" in project.run("--resources", "gpu=1", *two, fails=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    shared = ("--dry-run", "--config", "teacher={devices: 2}", "compute={device: cuda, jobs_per_gpu: 2}")
    assert "this machine has 1 GPU(s)" in project.run(*shared, fails=True)


@pytest.mark.slow
def test_jobs_take_only_gpus_that_no_other_run_has(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two GPUs (placeholders: torch sees none) a job elsewhere has the first: two jobs at a time take turns at the second."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    with own_gpus(1) as elsewhere:
        assert elsewhere == ["GPU-a"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
        project.run("experts", "--config", "experts={per_job: 1}")
    logs = [log.read_text() for log in project.folder.glob("results/logs/**/experts_*.log")]
    assert len(logs) == 4
    assert all(" on cpu (GPU-b), " in log for log in logs)


def test_one_name_with_two_settings_is_refused(changed: Project) -> None:
    """Another experiment that uses the same teacher name with other settings is told the difference."""
    text = changed.run("--dry-run", "--config", "experiment=other", "teacher={lr: 0.5}", fails=True)
    assert "results/digits/tiny_teacher" in text
    assert "lr: 0.002 -> 0.5" in text


def test_another_experiment_under_its_name_is_refused(finished: Project) -> None:
    """Before any job, with what lies there; a changed setting goes on, after a sentence."""
    text = finished.run("--dry-run", "--config", "teacher={name: other}", fails=True)
    for word in ("results/tiny holds", "teacher.name", "other", "experiment"):
        assert word in text
    assert "Traceback" not in text
    assert "distill.image_lr: 0.1 -> 0.5" in finished.run("--dry-run", "--config", "distill={image_lr: 0.5}")
    assert "other settings" not in finished.run("--dry-run", "--config", "budgets=[6, 8]")

"""What a change makes anew, read from the job list of a dry run: no more and no less than depends on it."""

import hashlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from project import AFTER_DISTILL, PROBES, SELECTIONS, Project, edit

from mkdt.artifacts import Artifact

pytestmark = pytest.mark.slow

AFTER_PRETRAIN = {
    "pretrain none": 1,
    "pretrain random": 2,
    "pretrain high_loss": 1,
    "pretrain mkdt": 2,
    "pretrain full": 1,
    **SELECTIONS,
    **PROBES,
    "report": 1,
}
AFTER_TARGETS = {
    "targets_probe": 1,
    "experts_0_1": 1,
    "experts_2_3": 1,
    "subset random": 2,
    "subset high_loss": 1,
    "distill mkdt": 2,
    **AFTER_PRETRAIN,
}
FINETUNE = "{rates: [0.01], steps: 2, batch: 8, weight_decay: 0}"


def test_nothing_after_a_finished_run(finished: Project) -> None:
    """A second run of an unchanged config has no job."""
    assert finished.planned() == Counter()


@pytest.mark.parametrize(
    ("override", "jobs"),
    [
        ("probe={label_draws: 3}", {"targets_probe": 1, **PROBES, "report": 1}),
        ("probe={knn: 3}", {**PROBES, "report": 1}),
        (f"probe={{finetune: {FINETUNE}}}", {**PROBES, "report": 1}),
        ("probe={selection_draws: 1}", {**SELECTIONS, **PROBES, "report": 1}),
        ("probe={l2: 0.01}", {"targets_probe": 1, **SELECTIONS, **PROBES, "report": 1}),
        ("pretrain={rates: [0.05, 0.2]}", {k: v for k, v in AFTER_PRETRAIN.items() if k.split()[-1] != "none"}),
        ("distill={image_lr: 0.5}", AFTER_DISTILL),
        ("distill={step_size: {initial: 0.2}}", AFTER_DISTILL),
        ("teacher={lr: 0.003}", {"teacher": 1, "targets": 1, **AFTER_TARGETS}),
        ("teacher={temperature: 0.9}", {}),
        ("experts={lr: 0.05}", {k: v for k, v in AFTER_TARGETS.items() if k.split()[-1] not in {"none", "random", "full", "targets_probe"}}),
        ("experts={per_job: 4}", {}),
        ("teacher={devices: 2}", {}),
        ("tracking={enabled: false}", {}),
        ("compute={resume_minutes: 1}", {}),
        ("data={root: elsewhere}", {}),
    ],
)  # fmt: skip
def test_a_changed_key(finished: Project, override: str, jobs: dict[str, int]) -> None:
    """A key reruns the stages that depend on it and no other."""
    assert finished.planned("--config", override) == Counter(jobs)


def test_one_more_downstream_set_is_measured_and_chooses_nothing_again(finished: Project) -> None:
    """Its data are made, and the test split is opened for the points that were chosen before."""
    more = "datasets={more: {kind: digits, train: 100, validation: 50, test: 50, image_size: null}}"
    planned = finished.planned("--config", more, "probe={downstream: [digits, more]}")
    assert planned == Counter({"data": 1, **PROBES, "report": 1})


def test_one_more_student_seed_trains_one_student(changed: Project) -> None:
    """Of each training set; the others keep their files. It ends with the bits that it has where it is trained alone."""
    folder = changed.folder / "results/tiny/pretrain"
    before = {path: path.stat().st_ino for path in folder.rglob("*.safetensors")}
    seeds = ("--config", "pretrain={seeds: [0, 1, 2]}")
    assert changed.planned(*seeds) == Counter(AFTER_PRETRAIN)
    changed.run("--until", "pretrain", *seeds)
    students = {path: path.stat().st_ino for path in folder.rglob("*.safetensors")}
    assert before.items() <= students.items(), "the file of a student that was there is the same one"
    assert sorted(path.name for path in students.keys() - before.keys()) == ["2.safetensors"] * 7
    for log in (changed.folder / "results/logs/tiny/pretrain").rglob("*.log"):
        assert log.read_text().count("safetensors was finished before") == 2
    losses = (folder / "convnet/full/all/0/metrics.jsonl").read_text()
    assert all(f"/seed {seed}" in losses for seed in range(3))

    alone = "results/other/pretrain/convnet/full/all/0/2.safetensors"
    changed.run(alone, "--config", "experiment=other", "pretrain={seeds: [2]}")
    same = [
        Artifact(path).header["digests"]
        for path in (folder / "convnet/full/all/0/2.safetensors", changed.folder / alone)
    ]
    assert same[0] == same[1]


def test_changed_code_of_distillation(changed: Project) -> None:
    """Code of src/mkdt/distill/trajectory_matching.py counts as a distillation key."""
    edit(changed, "src/mkdt/distill/outer_loop.py", "SMALLEST_STEP_SIZE = 1e-6", "SMALLEST_STEP_SIZE = 1e-7")
    assert changed.planned() == Counter(AFTER_DISTILL)


def test_changed_code_of_the_probe_makes_no_target_and_no_expert(changed: Project) -> None:
    """The probe on the targets is a rule of its own for this."""
    edit(changed, "src/mkdt/evaluate/linear_probe.py", "TOLERANCE = 1e-6", "TOLERANCE = 1e-7")
    assert changed.planned() == Counter({"targets_probe": 1, **SELECTIONS, **PROBES, "report": 1})


def test_changed_code_of_the_measurement_chooses_nothing_again(changed: Project) -> None:
    """What only the test split needs is no code of the choice."""
    edit(changed, "src/mkdt/evaluate/fine_tuning.py", "MOMENTUM = 0.9", "MOMENTUM = 0.8")
    assert changed.planned() == Counter({**PROBES, "report": 1})


def test_a_teacher_and_targets_that_are_brought(changed: Project) -> None:
    """A checkpoint stands for the training, a file of targets for the teacher; what follows is the same to the bit."""
    own = changed.folder / "results/digits/tiny_teacher"
    for name, option, made, jobs in (
        ("brought", "checkpoint: {file: theirs/teacher.safetensors}", "teacher", {"teacher_import": 1, "targets": 1}),
        ("given", "", "targets", {"targets_import": 1}),
    ):
        theirs = changed.folder / f"theirs/{made}.safetensors"
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_bytes((own / f"{made}.safetensors").read_bytes())
        options = ["experiment=other", f"teacher={{name: {name}, {option}}}"]
        options += [f"targets={{file: {theirs}}}"] * (made == "targets")
        assert changed.planned("--config", *options) >= Counter({**jobs, **AFTER_TARGETS})
        assert "teacher" not in changed.planned("--config", *options)
        folder = f"results/digits/{name}"
        changed.run(f"{folder}/targets_probe.jsonl", "--config", *options)
        targets = Artifact(changed.folder / folder / "targets.safetensors", "targets")
        expected = Artifact(own / "targets.safetensors").header["digests"]["targets"]
        assert targets.header["digests"]["targets"] == expected
        if made == "teacher":
            teacher = Artifact(changed.folder / folder / "teacher.safetensors", "teacher")
            assert teacher.header["parameters"]["format"] == "mkdt"
            assert teacher.header["inputs"]["checkpoint"] == hashlib.sha256(theirs.read_bytes()).hexdigest()
            theirs.write_bytes(theirs.read_bytes()[:-7])
            text = changed.run(f"{folder}/targets.safetensors", "--config", *options, fails=True)
            assert "theirs/teacher.safetensors cannot be read" in text
            assert "Traceback" not in text


@pytest.mark.parametrize("size", ["", ", image_size: 8"], ids=["no size", "the source's size"])
def test_a_brought_teacher_with_other_statistics(changed: Project, size: str) -> None:
    """The import says whose they are; the targets' probe scores the source's beside them."""
    theirs = changed.folder / "theirs.safetensors"
    theirs.write_bytes((changed.folder / "results/digits/tiny_teacher/teacher.safetensors").read_bytes())
    teacher = f"teacher={{name: brought, checkpoint: {{file: {theirs}, mean: [0.9], std: [0.1]{size}}}}}"
    probe = "results/digits/brought/targets_probe.jsonl"
    changed.run(probe, "--config", "experiment=other", teacher)
    logs = changed.folder / "results/logs/digits/brought"
    assert "teacher.checkpoint.mean and teacher.checkpoint.std" in (logs / "teacher.log").read_text()
    (row,) = map(json.loads, (changed.folder / probe).read_text().splitlines())
    assert 0 <= row["targets_with_source_statistics"] <= 100
    assert (
        f"with the source's {row['targets_with_source_statistics']:.1f} %" in (logs / "targets_probe.log").read_text()
    )


def test_comments_and_docstrings_change_nothing(changed: Project) -> None:
    """Prose is not code."""
    edit(changed, "src/mkdt/distill/mkdt.py", '"""Distillation method', '"""A new docstring. Distillation method')
    edit(changed, "src/mkdt/networks/backbones.py", "from collections.abc", "# a comment\nfrom collections.abc")
    edit(changed, "workflow/scripts/teacher.py", '"""Stage', '"""The stage')
    assert changed.planned() == Counter()


def test_code_that_is_edited_during_a_run_stops_it(project: Project, finished: Project) -> None:
    """No report of two versions: the job that meets the edit stops; taken back, the same command makes the same bytes."""
    data = project.folder / "results/digits/data.safetensors"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(project.attempt)
        deadline = time.monotonic() + 120
        while not data.is_file():
            assert not run.done()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        old, new = "TOLERANCE = 1e-6", "TOLERANCE = 1e-7"
        edit(project, "src/mkdt/evaluate/linear_probe.py", old, new)
        code, said = run.result()
    assert code != 0
    assert "code" in said
    assert "the same command again" in said
    assert not list((project.folder / "results").glob("tiny/probe/**/*.csv")), "nothing is written by the edited code"
    edit(project, "src/mkdt/evaluate/linear_probe.py", new, old)
    project.run()
    assert project.artifacts() == finished.artifacts()


def test_a_config_that_is_edited_during_a_run_stops_jobs_that_read_it_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's jobs read the config files anew; they compare them with what the run began with."""
    project.run("--dry-run")
    monkeypatch.setenv("MKDT_CONFIG", "what the run began with")
    assert "the config changed" in project.run("--dry-run", "--mode", "remote", fails=True)


def test_new_time_stamps_change_nothing(changed: Project) -> None:
    """A file that is only touched (a copy, a new checkout) has the same content."""
    now = time.time() + 10
    for path in changed.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path, (now, now))
    data = changed.folder / "results/digits/data.safetensors"
    os.utime(data, (now + 10, now + 10))
    assert changed.planned() == Counter()


def test_a_deleted_expert(changed: Project, finished: Project) -> None:
    """Its batch is run, its sibling comes from the resume folder, and everything ends up with the same bytes."""
    folder = changed.folder / "results/digits/tiny_teacher/convnet/experts"
    (folder / "001.safetensors").unlink()
    jobs = changed.planned()
    assert jobs["experts_0_1"] == 1
    assert jobs == Counter(
        {"experts_0_1": 1, "subset high_loss": 1, "pretrain high_loss": 1, "select high_loss": 1, "probe high_loss": 1}
        | AFTER_DISTILL
    )
    changed.run()
    log = next((changed.folder / "results/logs").rglob("experts_000.log")).read_text()
    assert "000.safetensors was finished before" in log
    assert "001.safetensors was finished before" in log
    assert changed.artifacts() == finished.artifacts()


def test_provenance_leads_back_to_the_data(finished: Project) -> None:
    """Each header names the identity of what the file was made from."""
    results = finished.folder / "results"
    data = Artifact(results / "digits/data.safetensors", "data")
    teacher = Artifact(results / "digits/tiny_teacher/teacher.safetensors", "teacher")
    targets = Artifact(results / "digits/tiny_teacher/targets.safetensors", "targets")
    assert teacher.header["inputs"] == {"data": data.identity}
    assert targets.header["inputs"] == {"data": data.identity, "teacher": teacher.identity}
    assert teacher.header["parameters"]["epochs"] == 2

"""What every stage shares: messages, resume points, locks, members that are finished, a clean stop."""

import logging
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import settings_of

from mkdt import artifacts
from mkdt.config.loading import read
from mkdt.errors import UserError
from mkdt.jobs import stage as job
from mkdt.jobs.stage import StageJob
from mkdt.jobs.tracking import parse

CONFIG = read([])  # the default; jobs get the checked one


class Files(list[str]):
    """A stand-in for Snakemake's named lists of files."""

    def __init__(self, **files: str) -> None:
        super().__init__(files.values())
        self.__dict__.update(files)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the object Snakemake gives a script; keyword arguments change the settings."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def build(
        minutes: float = 0,
        device: str = "cpu",
        code: str = "c",
        tracking: bool = False,
        gpus: int = 1,
        **settings: Any,
    ) -> Any:
        Path("results/logs").mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(
            rule="teacher",
            input=Files(),
            output=Files(teacher="results/d/t/teacher.safetensors"),
            wildcards={},
            params=SimpleNamespace(settings={"seed": 0, "lr": 0.1, **settings}, code=code),
            log=["results/logs/teacher.log"],
            threads=1,
            resources={"gpu": gpus} if gpus else {},
            config=CONFIG
            | {
                "experiment": "e",
                "source": "d",
                "datasets": {"d": CONFIG["datasets"]["digits"]},
                "tracking": {"enabled": tracking},
                "data": {"on_error": "fail"},
                "compute": {
                    "device": device,
                    "resume_minutes": minutes,
                    "precision": "auto",
                    "threads": 1,
                    "jobs_per_gpu": 1,
                },
            },
        )

    yield build
    for number, handler in before.items():
        signal.signal(number, handler)
    logging.getLogger("mkdt").handlers.clear()


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is what the run began with, whatever the tests call it; a test of its own edits it."""
    begun: list[str] = []
    monkeypatch.setattr(StageJob, "__init__", remember(StageJob.__init__, begun))
    monkeypatch.setattr(job, "stage_code", lambda stage, config, names: begun[-1])


def remember(init: Any, begun: list[str]) -> Any:
    """Note the digest that a job was given."""

    def noting(self: StageJob, snakemake: Any, name: str) -> None:
        begun.append(snakemake.params.code)
        init(self, snakemake, name)

    return noting


def run(snakemake: Any) -> AbstractContextManager[StageJob]:
    """The stage that a rule of this name runs."""
    return job.stage(snakemake, snakemake.rule)


def log_text() -> str:
    return Path("results/logs/teacher.log").read_text()


def test_a_users_mistake_is_one_sentence_and_exit_code_one(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback for what is not a bug."""
    with pytest.raises(SystemExit) as caught, run(make()):
        raise UserError("data.root is empty: put files there.")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "teacher: data.root is empty: put files there.\n"
    assert "Traceback" not in log_text()


def test_a_job_without_room_does_not_start(
    make: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may write against what is free; what an earlier job of its own left there already takes no more room."""
    given = make()
    given.resources["disk_mb"] = 2000
    usage = job.shutil.disk_usage(".")
    with monkeypatch.context() as patch:
        patch.setattr(job.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000_100))
        with run(given) as stage:
            stage.resume()
            stage.checkpoint(lambda: {"x": torch.ones(1000)})
            raise_after = stage.scratch.parent
    assert raise_after is not None
    for states, starts in ((1, False), (2, True)):
        (raise_after / "teacher.state.pt").write_bytes(b"x" * 1_000_000 * states)
        monkeypatch.setattr(job.shutil, "disk_usage", lambda path: usage._replace(free=1_998_500_000))
        started = False
        with pytest.raises(SystemExit) if not starts else nullcontext(), run(given):
            started = True
        assert started == starts
    said = capsys.readouterr().err
    assert said.startswith("teacher: this job may write 2 GB (outputs and resume points), but the disk of /")
    assert said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_one_sentence(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`compute.device: cuda` where there is none."""
    with pytest.raises(SystemExit) as caught, run(make(device="cuda")):
        pass
    assert caught.value.code == 1
    assert "compute.device" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_job_that_asked_for_no_gpu_needs_none(make: Any) -> None:
    """A cluster may run it, under `compute.device: cuda` too, on a node where there is none."""
    with run(make(device="cuda", gpus=0)) as stage:
        assert stage.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="its GPUs are placeholders")
def test_a_job_sees_as_many_gpus_as_it_asked_for(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of the machine's two; the log names it. A job without one sees none, so that it does not fill another's memory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    for gpus, seen in ((1, "4"), (0, "")):
        with run(make(device="auto", gpus=gpus)):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
        assert (" on cpu (4)," in log_text()) == bool(gpus)


def test_code_that_changed_since_the_run_began_stops_the_job(
    make: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one report would be of two versions, and headers would claim the old one. Nothing is written."""
    monkeypatch.setattr(job, "stage_code", lambda stage, config, names: "edited")
    with pytest.raises(SystemExit) as caught, run(make(code="begun")):
        pytest.fail("still running")
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "code" in said
    assert "same command again" in said
    assert said.count("\n") == 1
    assert {path.parts[1] for path in Path("results").rglob("*") if path.is_file()} == {"logs"}


def test_a_bug_keeps_its_traceback(make: Any) -> None:
    """The log has it, and the exception goes on."""
    with pytest.raises(ZeroDivisionError), run(make()):
        _ = 1 / 0
    assert "ZeroDivisionError" in log_text()


def test_a_set_that_lacks_images_is_used_only_where_that_is_wanted(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoded with `data.on_error: skip`, then set back to `fail`: nobody is left to think that it is whole."""
    given = make()
    artifacts.save("results/whole", {"x": torch.ones(1)}, stage="data")
    artifacts.save("results/less", {"x": torch.ones(1)}, stage="data", notes={"skipped": ["größe/7.jpg", "8.jpg"]})
    with pytest.raises(SystemExit), run(given) as stage:
        stage.open("whole", "results/whole", "data")
        stage.open("less", "results/less", "data")
    said = capsys.readouterr().err
    assert "results/less was decoded without 2 images" in said
    assert "größe/7.jpg" in said
    given.config["data"]["on_error"] = "skip"
    with run(given) as stage:
        stage.open("less", "results/less", "data")


def test_state_and_rows_come_back(make: Any) -> None:
    """An interrupted job's state and the values reported up to it, not those after it."""
    with pytest.raises(RuntimeError, match="killed"), run(make()) as stage:
        assert stage.resume() is None
        stage.report(1, {"loss": 0.5})
        stage.checkpoint(lambda: {"epoch": 1, "weights": torch.arange(3)})
        stage.report(2, {"loss": 0.25})
        raise RuntimeError("killed")
    with run(make()) as stage:
        state = stage.resume()
        assert state is not None
        assert state["epoch"] == 1
        assert torch.equal(state["weights"], torch.arange(3))
        stage.report(2, {"loss": 0.25})
        stage.write_metrics("results/metrics.jsonl")
    assert Path("results/metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    with run(make()) as stage:
        assert stage.resume() is None, "a finished job leaves no state"


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"code": "other"}])
def test_other_settings_are_never_resumed_and_the_difference_is_named(make: Any, change: dict[str, Any]) -> None:
    """A state of other settings or other code stays where it is; the log says what differs."""
    with pytest.raises(RuntimeError), run(make()) as stage:
        stage.resume()
        stage.checkpoint(lambda: {"epoch": 1})
        raise RuntimeError
    with run(make(**change)) as stage:
        assert stage.resume() is None
    assert "set aside" in log_text()
    assert ("settings.lr: 0.1 -> 0.2" if "lr" in change else 'code: "c" -> "other"') in log_text()
    with run(make()) as stage:
        assert stage.resume() == {"epoch": 1}, "going back to the old settings goes on from the old state"


def test_a_state_of_another_number_of_processes_is_set_aside(make: Any) -> None:
    """Their number decides the last bits, like the threads: the state waits for the number that it was made with."""
    with pytest.raises(RuntimeError), run(make()) as stage:
        stage.resume(processes=2)
        stage.checkpoint(lambda: {"epoch": 1})
        raise RuntimeError
    with run(make()) as stage:
        assert stage.resume() is None
    assert "machine.processes: 2 -> 1" in log_text()
    with run(make()) as stage:
        assert stage.resume(processes=2) == {"epoch": 1}


def test_a_damaged_state_is_set_aside(make: Any) -> None:
    """Half a file is not resumed, and not fatal."""
    with pytest.raises(RuntimeError), run(make()) as stage:
        stage.resume()
        stage.checkpoint(lambda: {"epoch": 1})
        raise RuntimeError
    (state,) = Path("results/.resume").rglob("*.state.pt")
    state.write_bytes(state.read_bytes()[:100])
    with run(make()) as stage:
        assert stage.resume() is None
    assert "damaged" in log_text()


@pytest.mark.counts("faults injected")
def test_a_state_whose_tensor_was_altered_is_set_aside(make: Any) -> None:
    """A flipped bit of a weight makes a file that loads, and another result."""
    state = {
        "w": torch.full((1000,), 3.0),
        "lr": 0.1,
        "done": [1, 2],
        "none": None,
        "where": (1, "a"),
        "on": torch.tensor(True),
    }
    with pytest.raises(RuntimeError), run(make()) as stage:
        stage.resume()
        stage.checkpoint(lambda: state)
        raise RuntimeError
    (file,) = Path("results/.resume").rglob("*.state.pt")
    good = file.read_bytes()
    altered = bytearray(good)
    altered[good.index(torch.full((8,), 3.0).numpy().tobytes()) + 2] ^= 0x40
    file.write_bytes(altered)
    with pytest.raises(RuntimeError), run(make()) as stage:
        assert stage.resume() is None
        raise RuntimeError
    assert "its content does not match its digest" in log_text()
    file.write_bytes(good)
    with run(make()) as stage:
        found = stage.resume()
    assert found is not None
    assert torch.equal(found.pop("w"), state.pop("w"))
    assert found == state


@pytest.mark.counts("faults injected")
@pytest.mark.parametrize("damage", ["altered", "record lost", "record altered"])
def test_a_kept_table_that_was_altered_is_not_given_back(make: Any, damage: str) -> None:
    """Tables have no digest of their own; the record of what was kept has one of each file."""
    both = Files(teacher="results/d/t/teacher.safetensors", metrics="results/d/t/teacher.jsonl")

    def make_both() -> str:
        snakemake = make()
        snakemake.output = both
        with run(snakemake) as stage:
            if stage.resume() is None:
                stage.save(both[0], {"w": torch.ones(3)})
                stage.write_metrics(both[1], [{"step": 1, "loss": 0.5}])
                made.append(1)
        return Path(both[1]).read_text()

    made: list[int] = []
    good = make_both()
    for file in both:
        Path(file).unlink()
    assert make_both() == good
    assert made == [1]
    (kept,) = Path("results/.resume").rglob("teacher.jsonl")
    for file in both:
        Path(file).unlink()
    record = kept.with_name("kept.json")
    if damage == "altered":
        kept.write_text(good.replace("0.5", "0.1"))
    elif damage == "record lost":
        record.unlink()
    else:
        record.write_text("[1]")
    assert make_both() == good
    assert made == [1, 1]


def test_sigterm_saves_and_stops(make: Any) -> None:
    """Asked to stop, the job saves at the next checkpoint, however recent the last one is."""
    with pytest.raises(SystemExit) as caught, run(make(minutes=60)) as stage:
        stage.resume()
        stage.checkpoint(lambda: {"epoch": 1})
        assert not list(Path("results/.resume").rglob("*.state.pt"))
        os.kill(os.getpid(), signal.SIGTERM)
        stage.checkpoint(lambda: {"epoch": 2})
    assert caught.value.code == 128 + signal.SIGTERM
    with run(make()) as stage:
        assert stage.resume() == {"epoch": 2}


def test_a_signal_is_answered_at_once(make: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """In the log and on the screen, once, with the longest time that any checkpoint took to come."""
    clock = [1000.0]
    with pytest.raises(SystemExit), run(make(minutes=60)) as stage:
        stage.resume()
        with monkeypatch.context() as patch:
            patch.setattr(job.time, "monotonic", lambda: clock[0])
            stage.checkpoint(lambda: {"epoch": 1})
            for seconds in (90, 50):
                clock[0] += seconds
                stage.checkpoint(lambda: {"epoch": 2})
            stage._between = 90.0  # the first interval is one of the real clock
            clock[0] += 30
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            said = capsys.readouterr().err
        assert said.count("SIGTERM") == 1
        assert "60 s" in said
        assert "60 s" in log_text()
        stage.checkpoint(lambda: {"epoch": 3})


def test_a_signal_before_the_first_checkpoint_is_answered_too(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """How long it takes is not known yet."""
    with pytest.raises(SystemExit), run(make(minutes=60)) as stage:
        stage.resume()
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM" in capsys.readouterr().err
        stage.checkpoint(lambda: {"epoch": 1})


def test_a_signal_is_obeyed_where_nobody_reads_the_answer(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orphan of a killed Snakemake has a pipe without a reader; its state is saved all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as nobody, pytest.raises(SystemExit) as caught, run(make()) as stage:
        assert stage.resume() is None
        stage.checkpoint(lambda: {"epoch": 1})
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", nobody)
            os.kill(os.getpid(), signal.SIGTERM)
        with suppress(BrokenPipeError):  # what was not written is not written at the end either
            nobody.close()
        stage.checkpoint(lambda: {"epoch": 2})
    assert caught.value.code == 128 + signal.SIGTERM
    with run(make()) as stage:
        assert stage.resume() == {"epoch": 2}


def test_few_labels_of_many_classes_are_no_warning(make: Any, recwarn: pytest.WarningsRecorder) -> None:
    """scikit-learn says it at every fit."""
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = torch.arange(50.0)[:, None].numpy(), torch.arange(50).numpy()
    KNeighborsClassifier(1).fit(features, labels)
    assert [str(warning.message)[:28] for warning in recwarn] == ["The number of unique classes"]
    recwarn.clear()
    with run(make()):
        KNeighborsClassifier(1).fit(features, labels)
    assert not recwarn.list


def test_sigterm_between_two_looks_at_it_loses_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes just after the job decided that it is not time to save: it stops at the next checkpoint, saved."""

    def late() -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    with pytest.raises(SystemExit), run(make(minutes=60)) as stage:
        stage.resume()
        with monkeypatch.context() as patch:
            patch.setattr(job.time, "monotonic", late)
            stage.checkpoint(lambda: {"epoch": 1})
        stage.checkpoint(lambda: {"epoch": 2})
    with run(make()) as stage:
        assert stage.resume() == {"epoch": 2}


def test_sigterm_while_saving_stops_there(make: Any) -> None:
    """What is being saved is of now: no need to go on to the next checkpoint, and the file is whole."""

    def state() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"epoch": 1}

    with pytest.raises(SystemExit), run(make(minutes=0)) as stage:
        stage.resume()
        stage.checkpoint(state)
        pytest.fail("still running")
    with run(make()) as stage:
        assert stage.resume() == {"epoch": 1}


def test_a_second_signal_does_not_cut_the_closing_short(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes from the terminal and again from Snakemake: the run is closed all the same."""
    closed: list[str] = []

    def close(run: Any, status: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        closed.append(status)

    monkeypatch.setattr(job.Run, "close", close)
    with pytest.raises(SystemExit) as caught, run(make()):
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 128 + signal.SIGINT
    assert closed == ["KILLED"]


def test_sigterm_before_the_first_resume_point_stops_at_once(make: Any) -> None:
    """A short stage has nothing to save."""
    with pytest.raises(SystemExit), run(make()):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("still running")


def test_finished_members_are_taken_over_unless_damaged(make: Any) -> None:
    """An expert that a killed batch finished is not trained again; a damaged one is."""
    path = "results/d/t/teacher.safetensors"
    with run(make()) as stage:
        stage.resume(shared="members")
        assert not stage.restore(path)
        stage.save(path, {"x": torch.ones(3)})
        stage.keep(path)
        stage.keep(path)
    assert [file.name for file in Path(path).parent.glob("*teacher.safetensors*")] == ["teacher.safetensors"]
    assert (
        len([file for file in Path("results/.resume").rglob("*teacher.safetensors*") if file.is_file()]) == 2
    )  # + lock
    Path(path).unlink()  # Snakemake removes the outputs of a failed job
    with run(make()) as stage:
        stage.resume(shared="members")
        assert stage.restore(path)
    assert torch.equal(artifacts.Artifact(path).tensor("x"), torch.ones(3))
    Path(path).unlink()
    (kept,) = Path("results/.resume").rglob("teacher.safetensors")
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\0")
    with run(make()) as stage:
        stage.resume(shared="members")
        assert not stage.restore(path)


@pytest.mark.parametrize(
    ("change", "taken"),
    [({"threads": 2}, True), ({"lr": 0.2}, False), ({"code": "other"}, False), ({"input": 1}, False)],
)
def test_a_member_that_another_machine_finished_is_taken_over(make: Any, change: dict[str, Any], taken: bool) -> None:
    """The header decides: settings, code and inputs. The resume state of another machine stays where it is."""
    path = "results/d/t/teacher.safetensors"
    with pytest.raises(RuntimeError), run(make()) as stage:
        stage.provenance.note("data", "0")
        stage.resume(shared="members")
        stage.save(path, {"x": torch.ones(3)})
        stage.keep(path)
        stage.checkpoint(lambda: {"epoch": 1})
        raise RuntimeError
    Path(path).unlink()
    later = make(**{key: value for key, value in change.items() if key not in {"threads", "input"}})
    later.threads = change.get("threads", 1)
    with run(later) as stage:
        stage.provenance.note("data", str(change.get("input", 0)))
        assert stage.resume(shared="members") is None
        assert bool(stage.restore(path)) == taken
    assert Path(path).is_file() == taken


def test_swapped_files_are_noticed(make: Any) -> None:
    """Two experts that changed places are whole files of the right rule; their place in the header gives them away."""
    first, second = Path("results/d/t/000.safetensors"), Path("results/d/t/001.safetensors")
    given = make()
    given.rule = "targets"
    with run(given) as stage:
        stage.save(first, {"x": torch.ones(3)})
        stage.save(second, {"x": torch.zeros(3)})
        stage.open_all("experts", [str(first), str(second)], "targets")
        first.rename("spare")
        second.rename(first)
        Path("spare").rename(second)
        with pytest.raises(UserError, match=r"000\.safetensors.* was made as results/d/t/001\.safetensors.*'targets'"):
            stage.open_all("experts", [str(first), str(second)], "targets")
        elsewhere = second.rename("brought.safetensors")
        assert stage.open("brought", elsewhere).tensor("x").tolist() == [1, 1, 1], (
            "outside the results any name will do"
        )


def test_files_of_another_run_are_noticed(make: Any) -> None:
    """A copy from another results folder has the right place: its settings, or what it was made from, give it away."""
    folder = Path("results/d") / CONFIG["teacher"]["name"]
    teacher, targets = folder / "teacher.safetensors", folder / "targets.safetensors"
    given = make()
    for rule, path, width in (("teacher", teacher, 8), ("targets", targets, None)):
        given.rule, given.output = rule, Files(first=str(path))
        given.params.settings = settings_of(given.config, rule)
        if width:
            given.params.settings["backbone"] = given.params.settings["backbone"] | {"width": width}
        with run(given) as stage:
            if rule == "targets":
                stage.provenance.note("teacher", "that of another run")
            stage.save(path, {"x": torch.ones(3)})
    with run(make()) as stage:
        with pytest.raises(UserError, match=rf"{teacher}.*backbone.width: 8 -> .*delete it.*'teacher'"):
            stage.open("teacher", teacher, "teacher")
        with pytest.raises(
            UserError, match=rf"{targets}.*another file of the rule 'teacher' than {teacher}.*'targets'"
        ):
            stage.open("targets", targets, "targets")


def test_what_an_earlier_job_finished_is_not_made_again(make: Any) -> None:
    """Outputs that are gone, or that a job without its Snakemake made, come from the resume folder, unless damaged."""
    output, kept = Path("results/d/t/teacher.safetensors"), None
    for damaged, again in [(False, True), (False, False), (True, True)]:
        made = False
        if damaged:
            (kept,) = Path("results/.resume").rglob("teacher.safetensors/*/teacher.safetensors")
            kept.unlink()
            kept.write_bytes(b"torn")
        with run(make()) as stage:
            stage.resume()
            made = True
            stage.save(output, {"x": torch.ones(2)})
        assert made == again
        assert artifacts.Artifact(output).tensor("x").tolist() == [1, 1]
        output.unlink()


def test_the_progress_log_estimates_what_is_left(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal the log says how far it is."""
    monkeypatch.setattr(job, "LOG_SECONDS", 0.0)
    with run(make()) as stage:
        stage.expect(4, "epoch", done=1)
        stage.report(2, {"loss": 0.5})
    assert "2 of 4, about" in log_text()


def records() -> list[dict[str, Any]]:
    """What is in the spools, which must be one."""
    (spool,) = Path("results/.tracking/e").glob("*.jsonl")
    return parse(spool.read_bytes())


def test_a_resumed_job_goes_on_with_its_run(make: Any) -> None:
    """One run with one curve, whatever was reported after the last resume point."""
    with pytest.raises(RuntimeError), run(make(tracking=True)) as stage:
        stage.resume()
        stage.report(1, {"loss": 0.5})
        stage.checkpoint(lambda: {"epoch": 1})
        stage.report(2, {"loss": 0.25})
        raise RuntimeError
    with run(make(tracking=True)) as stage:
        stage.resume()
        stage.report(2, {"loss": 0.25})
        stage.report(3, {"loss": 0.125})
    values = [(r["step"], r["values"]["loss"]) for r in records() if r["type"] == "metrics" and "loss" in r["values"]]
    assert values == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert [record["status"] for record in records() if record["type"] == "end"] == ["FAILED", "FINISHED"]


def test_a_run_has_a_readable_name_and_tags_to_filter_by(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table of a hundred runs needs; settings are parameters with dots."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    given = make(tracking=True, step_size={"initial": 0.5})
    given.rule, given.wildcards = "distill", {"method": "mkdt", "budget": "1pct", "distill_seed": "0"}
    with run(given):
        pass
    (header,) = [record for record in records() if record["type"] == "run"]
    assert header["name"] == "distill · mkdt · 1% · seed 0"
    assert header["params"] == {"seed": "0", "lr": "0.1", "step_size.initial": "0.5"}
    tags = {key: value for record in records() if record["type"] == "tags" for key, value in record["tags"].items()}
    expected = {"stage": "distill", "source": "d", "method": "mkdt", "budget": "1pct", "distill_seed": "0", "seed": "0"}
    assert tags.items() >= (expected | {"slurm_job": "7"}).items()
    assert "code" in tags

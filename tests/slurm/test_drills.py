"""Every way in which a job can be interrupted; each drill ends with the bytes of an undisturbed run on this machine."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ClusterProject, Run, await_condition

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.drill]

# Per stage: its target, its outputs, the log of the job that is interrupted.
STAGES = {
    "teacher": ("results/digits/tiny_teacher/teacher.safetensors", "digits/tiny_teacher/teacher.*", "teacher"),
    "experts_0": ("results/digits/tiny_teacher/convnet/experts/002.safetensors", "digits/**/experts/*", "experts_0"),
    "distill": ("results/tiny/sets/mkdt/6img/0.safetensors", "tiny/sets/mkdt/**/0.*", "mkdt/6img/0"),
}
ONE_BATCH = ["--config", "experts={per_job: 3}"]


@pytest.fixture(autouse=True)
def without_accounting(slurm: Callable[[bool], None]) -> None:
    """All drills but one run without an accounting database."""
    slurm(False)


@pytest.fixture
def unfinished(reference: ClusterProject, tmp_path: Path) -> Callable[[str], ClusterProject]:
    """A function: the finished experiment without the outputs of one stage."""
    return lambda stage: reference.copy(tmp_path / "project").without(STAGES[stage][1])


def scancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], check=True)


def check(project: ClusterProject, reference: ClusterProject, stage: str, resumed: bool | None = True) -> None:
    """The stage's outputs are the reference's, and the last job went on from a resume state (or not; None: either)."""
    target, outputs, log = STAGES[stage]
    assert (project.folder / target).is_file()
    for path in (reference.folder / "results").glob(outputs):
        name = path.relative_to(reference.folder)
        if "experts" in stage and path.suffix == ".jsonl":
            continue  # the metrics of a batch of another size have another name
        assert (project.folder / name).read_bytes() == path.read_bytes(), name
    logs = [text for text in (project.folder / "results/logs").rglob("*.log") if str(text).endswith(f"{log}.log")]
    assert resumed in (None, "resuming from" in logs[0].read_text())


def test_no_expert_of_a_batch_is_trained_twice(
    unfinished: Callable[[str], ClusterProject], reference: ClusterProject
) -> None:
    """A batch that is killed in its second expert keeps the first, trains the third, and goes on in the second."""
    project = unfinished("experts_0")
    first = project.folder / "results/.resume/digits/tiny_teacher/convnet/experts"
    with Run(project, STAGES["experts_0"][0], *ONE_BATCH) as run:
        job = run.in_the_middle_of("experts_0")
        await_condition("the first expert", lambda: any(first.glob("*/000.safetensors")), 60)
        kept = next(first.glob("*/000.safetensors")).stat().st_ino
        time.sleep(0.1)
        scancel("--signal=KILL", job)
        run.finish()
    check(project, reference, "experts_0")
    again = (project.folder / "results/digits/tiny_teacher/convnet/experts/000.safetensors").stat().st_ino
    assert again == kept
    log = (project.folder / "results/logs/digits/tiny_teacher/convnet/experts_0.log").read_text()
    assert "000.safetensors was finished before" in log
    assert "002.safetensors was finished before" not in log


def test_time_limit(unfinished: Callable[[str], ClusterProject], tmp_path: Path, reference: ClusterProject) -> None:
    """The profile's early SIGTERM makes a job save itself; the next attempt has more time. No periodic state helps."""
    long = ["--config", "distill={iterations: 6000}", "compute={resume_minutes: 60}"]
    straight = reference.copy(tmp_path / "straight")
    target = STAGES["distill"][0]
    straight.run(target, *long, cores=1)
    project = unfinished("distill")
    with Run(project, target, *long, "--set-resources", "distill:runtime=2 if attempt == 1 else 60") as run:
        run.finish()
    assert sum(run.counts().values()) == 2
    assert (project.folder / target).read_bytes() == (straight.folder / target).read_bytes()
    log = next((project.folder / "results/logs").rglob("mkdt/6img/0.log")).read_text()
    assert "resuming from" in log


def test_preempted(unfinished: Callable[[str], ClusterProject], reference: ClusterProject) -> None:
    """A job of a partition that others may preempt goes back into the queue and goes on later."""
    project = unfinished("distill")
    low = ["--default-resources", "slurm_partition=preemptible", "slurm_account=lab"]
    with Run(project, STAGES["distill"][0], *low) as run:
        run.in_the_middle_of("distill")
        subprocess.run(
            ["sbatch", "--partition=gpu", "--gpus=2", "--output=/dev/null", "--comment=urgent", "--wrap=sleep 3"],
            check=True,
        )
        run.finish()
    check(project, reference, "distill")
    ((_, states),) = run.jobs.values()  # one job: Snakemake did not submit it again
    assert "PENDING" in states[states.index("RUNNING") :]


def test_out_of_memory(unfinished: Callable[[str], ClusterProject], reference: ClusterProject) -> None:
    """A job that exceeds its memory is killed; the second attempt has more."""
    project = unfinished("distill")
    # Enough for the outer Snakemake and for a start, not for torch.
    little = ["--set-resources", "distill:mem_mb=600 if attempt == 1 else 3000"]
    with Run(project, STAGES["distill"][0], *little) as run:
        run.finish()
    assert next(states[-1] for _, states in run.jobs.values()) in {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}
    assert sum(run.counts().values()) == 2
    text = "".join(path.read_text() for path in (project.folder / ".snakemake/slurm_logs").rglob("*.log"))
    assert re.search(r"exceeded memory limit|[Oo]ut[ -]of[ -][Mm]emory|oom", text)
    check(project, reference, "distill", resumed=None)


def test_a_node_that_goes_down_and_comes_back(
    unfinished: Callable[[str], ClusterProject], reference: ClusterProject
) -> None:
    """SLURM requeues the node's jobs, and Snakemake waits for them."""
    project = unfinished("distill")
    node = subprocess.run(["sinfo", "--noheader", "--format=%N"], capture_output=True, text=True).stdout.split()[0]
    with Run(project, STAGES["distill"][0]) as run:
        job = run.in_the_middle_of("distill")
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=drill"], check=True)
        await_condition("the requeue", lambda: run.jobs[job][1][-1] != "RUNNING", 60)
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=True)
        run.finish()
    check(project, reference, "distill")


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_snakemake_is_killed_and_its_jobs_go_on(
    unfinished: Callable[[str], ClusterProject], reference: ClusterProject, stage: str
) -> None:
    """A second Snakemake's job waits for the first one's, and takes over what that made: no work is done twice."""
    project = unfinished(stage)
    target = STAGES[stage][0]
    with Run(project, target) as run:
        first = run.in_the_middle_of(stage)
        scancel("--signal=STOP", first)  # so that it does not finish before the second one comes
        run.kill_snakemake()
    project.run("--unlock", cores=1)

    def log() -> str:
        paths = (project.folder / "results/logs").rglob("*.log")
        return next((path.read_text() for path in paths if str(path).endswith(f"{STAGES[stage][2]}.log")), "")

    with Run(project, target) as second:
        await_condition("the second job at the lock", lambda: "waiting for it" in log(), 120)
        scancel("--signal=CONT", first)
        second.finish()
    assert {states[-1] for _, states in second.jobs.values()} == {"COMPLETED"}
    assert len(second.jobs) == 2
    assert "was finished before" in log()
    check(project, reference, stage, resumed=False)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", [["--signal=TERM"], ["--signal=KILL"], []], ids=["TERM", "KILL", "scancel"])
def test_cancelled(
    unfinished: Callable[[str], ClusterProject], reference: ClusterProject, stage: str, how: list[str]
) -> None:
    """A job that gets SIGTERM or SIGKILL, or is cancelled, is submitted again and goes on; experts in one batch."""
    project = unfinished(stage)
    with Run(project, STAGES[stage][0], *ONE_BATCH) as run:
        scancel(*how, run.in_the_middle_of(stage))
        run.finish()
    assert sum(run.counts().values()) == 2
    check(project, reference, stage)

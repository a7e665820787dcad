"""The whole workflow through ``sbatch``, its jobs interrupted in every way: bit for bit what an undisturbed run gives."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_project import EXPERTS, LONG, ClusterProject, Run, scancel

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TEACHER = "teacher"
BATCHES = [job for job in LONG if job.startswith("experts")]
SETS = [job for job in LONG if job.startswith("distill")]


def term(job: str) -> None:
    scancel("--signal=TERM", job)


def kill(job: str) -> None:
    scancel("--signal=KILL", job)


def preempt(job: str) -> None:
    """A job of a partition of higher priority wants both GPUs."""
    urgent = ["sbatch", "--partition=gpu", "--gpus=2", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True)


def reach_the_time_limit(job: str) -> None:
    """The limit is near at once. SLURM looks at limits every 30 seconds; the job sleeps till SLURM's signal wakes it."""
    scancel("--signal=STOP", job)
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=2"], check=True)


def node(state: str) -> None:
    name = subprocess.run(["sinfo", "--noheader", "--format=%n"], capture_output=True, text=True).stdout.split()[0]
    subprocess.run(["scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test"], check=True)


class Disturbed:
    """A run without accounting in which all happens that can happen to jobs, and what was seen of it.

    Attributes:
        requeued: ids of the jobs that were in the middle of their work at preemption, and when the node went down.
        survivor: id of the teacher's job that outlived its Snakemake, and what the log of the next one said.
        kept: inode of the expert that was finished when its batch was killed.
    """

    def __init__(self, project: ClusterProject) -> None:
        self.project = project
        settings = [
            "distill:slurm_partition=preemptible",
            # Enough for the outer Snakemake and for a start, not for torch.
            "pretrain:mem_mb=600 if attempt == 1 and wildcards.method == 'none' else 3000",
        ]
        with Run(project, "--set-resources", *settings) as self.run:
            self.run.interrupt({TEACHER: [term, kill, scancel]})
            self.lose_snakemake()
            self.run.interrupt({BATCHES[0]: [term, scancel], BATCHES[1]: [self.kill_in_the_second_expert]})
            self.run.interrupt({SETS[0]: [term, scancel], SETS[1]: [kill]})
            self.requeued = [self.in_the_middle_of(SETS, preempt), self.in_the_middle_of(SETS, self.lose_node)]
            self.run.finish()

    def lose_snakemake(self) -> None:
        """Snakemake is killed while the teacher's job works, and started again."""

        def told(words: str) -> Callable[[], bool]:
            return lambda: words in self.project.log(TEACHER)[1]

        job = self.in_the_middle_of([TEACHER], lambda job: scancel("--signal=STOP", job))  # it shall not be done first
        self.run.restart()
        self.run.await_condition("the next teacher at the lock", told("waiting for it"))
        scancel("--signal=CONT", job)
        self.run.await_condition("what the survivor made", told("was finished before"))

    def kill_in_the_second_expert(self, job: str) -> None:
        """SIGKILL as soon as the first expert of the second batch is finished."""
        expert = "experts/*/002.safetensors"
        self.run.await_condition("the first expert of a batch", lambda: self.project.resumes(expert))
        self.kept = self.project.resumes(expert)[0].stat().st_ino
        kill(job)

    def lose_node(self, job: str) -> None:
        """The node goes down, and comes back when SLURM has put its jobs into the queue again."""
        node("DOWN")
        self.run.await_condition("the requeue", lambda: self.run.jobs[job][1][-1] != "RUNNING")
        node("RESUME")

    def in_the_middle_of(self, names: list[str], action: Callable[[str], object]) -> str:
        """Do something when one of these jobs is in the middle of its work; the job's id."""
        found: list[str] = []

        def ready() -> bool:
            found.extend(filter(None, map(self.run.job, names)))
            return bool(found)

        self.run.await_condition(f"the middle of {', '.join(names)}", ready)
        action(found[0])
        return found[0]


@pytest.fixture(scope="session")  # as `reference`, which would come first otherwise
def disturbed(
    slurm: Callable[[bool], None], undisturbed: object, tmp_path_factory: pytest.TempPathFactory
) -> Disturbed:
    """The disturbed run, beside the undisturbed one."""
    slurm(False)
    return Disturbed(ClusterProject.fresh(tmp_path_factory.mktemp("disturbed") / "project"))


def test_disturbed_jobs_end_with_the_same_bytes(disturbed: Disturbed, reference: dict[str, bytes]) -> None:
    """Every artifact, tables and figures too, is what the undisturbed run on this machine gave."""
    mine = disturbed.project.artifacts()
    assert mine.keys() == reference.keys()
    assert [path for path in mine if mine[path] != reference[path]] == []


@pytest.mark.parametrize("job", [*BATCHES, *SETS])
def test_disturbed_jobs_resume(disturbed: Disturbed, job: str) -> None:
    """The last attempt takes up the resume state of the one before; the run itself looked at those of the teacher."""
    assert "resuming from" in disturbed.project.log(job)[1]


def test_only_disturbed_jobs_run_again(disturbed: Disturbed) -> None:
    """No finished job runs again; data and the report are no jobs of the cluster."""
    # The teacher: interrupted three times, then the survivor, and the one that took over from it.
    assert disturbed.run.counts() == {
        "teacher": 5, "targets": 1, "targets_probe": 1, "experts_0_1": 3, "experts_2_3": 2, "subset": 1, "distill": 5,
        "pretrain": 4, "select": 2, "probe": 2,
    }  # fmt: skip


def test_no_expert_is_trained_twice(disturbed: Disturbed) -> None:
    """A batch that was killed in its second expert keeps the first, and goes on in the second."""
    folder = disturbed.project.folder / "results" / EXPERTS
    assert (folder / "002.safetensors").stat().st_ino == disturbed.kept
    log = disturbed.project.log(BATCHES[1])[1]
    assert "002.safetensors was finished before" in log
    assert "003.safetensors was finished before" not in log


def test_jobs_go_on_without_their_snakemake(disturbed: Disturbed) -> None:
    """The job that outlived Snakemake made the teacher; the next one's waited for it, and trained nothing."""
    last = [states[-1] for rule, states in disturbed.run.jobs.values() if rule == TEACHER][-2:]
    assert last == ["COMPLETED", "COMPLETED"]
    log = disturbed.project.log(TEACHER)[1]
    assert "was finished before" in log
    assert "resuming from" not in log


def test_out_of_memory(disturbed: Disturbed) -> None:
    """A job that exceeds its memory is killed; the second attempt has more."""
    ends = [states[-1] for rule, states in disturbed.run.jobs.values() if re.match("pretrain.*none", rule)]
    assert ends[0] in {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}
    assert ends[1:] == ["COMPLETED"]
    logs = (disturbed.project.folder / ".snakemake/slurm_logs").rglob("*.log")
    text = "".join(path.read_text() for path in logs if "none" in str(path))
    assert re.search(r"exceeded memory limit|[Oo]ut[ -]of[ -][Mm]emory|oom", text)


@pytest.mark.parametrize("cause", ["preempted", "node down"])
def test_requeued(disturbed: Disturbed, cause: str) -> None:
    """After preemption and the failure of a node SLURM runs the same job again."""
    _, states = disturbed.run.jobs[disturbed.requeued[cause == "node down"]]
    assert "RUNNING" in states[states.index("PENDING", states.index("RUNNING")) :]
    assert states[-1] == "COMPLETED"


def test_gpus_are_shared_out(disturbed: Disturbed) -> None:
    """On a node with two GPUs two jobs run at a time, and a third waits for one."""
    crowds = disturbed.run.crowds
    assert max(running for running, _ in crowds) == 2
    assert any(running == 2 and "Resources" in waiting for running, waiting in crowds)


def test_with_accounting(
    slurm: Callable[[bool], None], tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same profile where an accounting database runs; the plugin's efficiency report finds the jobs in it.

    The teacher reaches its time limit: the profile's early SIGTERM lets it save itself, and it goes on.
    """
    slurm(True)
    # The report leaves out what ended before midnight, local time (docs/cluster.md): let it be noon.
    monkeypatch.setenv("TZ", f"NOON{time.gmtime().tm_hour - 12:+d}")
    project = ClusterProject.fresh(tmp_path / "project")
    with Run(project, "--slurm-efficiency-report", "--config", "methods=[none]") as run:
        run.interrupt({TEACHER: [reach_the_time_limit]})
        run.finish()
    assert "resuming from" in project.log(TEACHER)[1]
    shared = {
        path for path in reference if not any(word in path for word in ("experts", "mkdt", "high_loss", "report"))
    }
    mine = project.artifacts()
    assert shared
    assert [path for path in shared if mine[path] != reference[path]] == []
    (report,) = (project.folder / "results/logs/slurm").glob("*.csv")
    for rule in ("teacher", "targets", "pretrain", "select", "probe"):
        assert f"rule_{rule}" in report.read_text()

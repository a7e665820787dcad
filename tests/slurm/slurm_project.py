"""A SLURM for the tests, and the workflow in it: started, watched, disturbed and compared with a local run."""

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from project import Project  # noqa: E402

PROFILE = ["--workflow-profile", "workflow/profiles/slurm"]
WITHOUT_GPU = ("targets_probe", "subset")  # jobs of these tests that ask for none
EXPERTS = "digits/tiny_teacher/convnet/experts"
# The long jobs as `squeue` shows them: the log of each, and where its resume state lies.
LONG = (
    {"teacher": ("digits/tiny_teacher/teacher.log", "teacher.safetensors/*/teacher.state.pt")}
    | {f"experts_{i}_{i + 1}": (f"{EXPERTS}_00{i}.log", f"experts/*/00{i}.state.pt") for i in (0, 2)}
    | {
        f"distill_wildcards_mkdt_6img_{seed}": (f"tiny/sets/mkdt/6img/{seed}.log", f"mkdt/**/{seed}.state.pt")
        for seed in (0, 1)
    }
)


class ClusterProject(Project):
    """A checkout whose runs go through ``sbatch`` with the profile of the repository."""

    @classmethod
    def fresh(cls, folder: Path) -> "ClusterProject":
        """A copy of the working tree without results, with the config of these tests."""
        Project.fresh(folder)
        shutil.copy2(HERE / "slurm.yaml", folder / "slurm.yaml")
        return cls(folder)

    def command(self, *arguments: str, cores: int = 0) -> list[str]:
        """The command line of a run: on the cluster, or with ``cores`` on this machine."""
        program = HERE.parent / "workflow" / "warm.py" if cores else HERE / "quick.py"
        where = ["--cores", str(cores)] if cores else [*PROFILE, "--latency-wait", "10"]
        return [sys.executable, str(program), *arguments, *where, "--configfile", "tiny.yaml", "slurm.yaml"]

    def log(self, job: str) -> tuple[int, str]:
        """Time stamp (ns) and text of the log of a long job's last attempt; (0, "") where there is none."""
        path = self.folder / "results/logs" / LONG[job][0]
        try:
            return path.stat().st_mtime_ns, path.read_text()
        except FileNotFoundError:
            return 0, ""

    def resumes(self, pattern: str) -> list[Path]:
        """Files below the resume folder."""
        return list((self.folder / "results/.resume").glob(f"**/{pattern}"))


class Run:
    """A run of the workflow on the cluster, and what ``squeue`` said while it went on.

    Attributes:
        jobs: per SLURM job id its rule and the states it was seen in, in order.
        crowds: (number of running jobs, reasons of waiting ones) at each look, of the jobs that ask for a GPU.
    """

    def __init__(self, project: ClusterProject, *arguments: str) -> None:
        self.project, self.arguments = project, arguments
        self.printed = project.folder / "snakemake.log"
        self.jobs: dict[str, tuple[str, list[str]]] = {}
        self.crowds: list[tuple[int, list[str]]] = []
        # Per job the SLURM id and the time stamp of the log of the attempt that was interrupted last. A stopping
        # attempt still saves and logs, so its id tells; a killed one leaves its log until the next attempt begins.
        self._interrupted: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "Run":
        self._printed = self.printed.open("a")
        self._start()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self.project.command(*self.arguments),
            cwd=self.project.folder,
            env=self.project.environment(),
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            scancel("--user=root")
        self._stop.set()
        self._watcher.join()
        self._printed.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            waiting, running = [], 0
            for job, rule, state, reason in queue(self.project):
                seen = self.jobs.setdefault(job, (rule, []))[1]
                if seen[-1:] != [state]:
                    seen.append(state)
                if not rule.startswith(WITHOUT_GPU):
                    running += state == "RUNNING"
                    waiting += [reason] * (state == "PENDING")
            self.crowds.append((running, waiting))

    def await_condition(self, what: str, ready: Callable[[], object]) -> None:
        """Wait for a condition, looking often."""
        deadline = time.monotonic() + 180
        while not ready():
            assert self._process.poll() is None, f"ended before {what}: {self.text()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.text()}"
            time.sleep(0.02)

    def job(self, name: str) -> str | None:
        """The id of a long job that runs and has left a resume state since it began or was last interrupted."""
        running = [job for job, (rule, states) in self.jobs.items() if rule == name and states[-1] == "RUNNING"]
        states = self.project.resumes(LONG[name][1])
        begun, log = self.project.log(name)  # the log's last line is one of the attempt's first: then come states
        if not running or not states or not log:
            return None
        last_id, last_begun = self._interrupted.get(name, ("", 0))
        if running[-1] == last_id or begun == last_begun:
            return None
        return running[-1] if states[0].stat().st_mtime_ns > begun else None

    def interrupt(self, ways: dict[str, list[Callable[[str], object]]]) -> None:
        """Interrupt jobs in the middle of their work, each in all its ways: the next when the next attempt is there.

        ``ways`` are called with the job's id. An attempt that began anew, instead of going on, fails the test.
        """
        left = {name: list(actions) for name, actions in ways.items()}

        def step() -> bool:
            for name in [name for name in left if left[name]]:
                if job := self.job(name):
                    begun, log = self.project.log(name)
                    assert name not in self._interrupted or "resuming from" in log, log
                    self._interrupted[name] = (job, begun)
                    left[name].pop(0)(job)
            return not any(left.values())

        self.await_condition(f"the middle of {', '.join(ways)}", step)

    def restart(self) -> None:
        """SIGKILL to Snakemake alone, whose jobs go on; another one takes its place."""
        self._process.kill()
        self._process.wait()
        self.project.run("--unlock", cores=0)
        self._start()

    def finish(self) -> None:
        """Wait for Snakemake's end."""
        self._process.wait(300)
        time.sleep(0.5)  # one more look at the queue
        assert self._process.returncode == 0, self.text()

    def text(self) -> str:
        """The end of what Snakemake printed."""
        return self.printed.read_text()[-6000:]

    def counts(self) -> Counter[str]:
        """How many SLURM jobs each rule had, requeued ones counted once."""
        return Counter(rule.split("_wildcards_")[0] for rule, _ in self.jobs.values())


def scancel(*arguments: str) -> None:
    """Cancel or signal jobs."""
    subprocess.run(["scancel", *arguments], check=True)


def queue(project: ClusterProject) -> list[tuple[str, str, str, str]]:
    """(id, rule and wildcards, state, reason) of the project's jobs, ended ones too."""
    text = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%i|%k|%T|%r|%Z"], capture_output=True, text=True
    ).stdout
    rows = [line.split("|") for line in text.splitlines()]
    return [
        (job, rule.removeprefix("rule_"), state, reason)
        for job, rule, state, reason, folder in rows
        if folder == str(project.folder)
    ]

"""A SLURM for the tests, and the workflow in it: started, watched, disturbed and compared with a local run."""

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cluster  # noqa: E402


def _workflow_tests() -> type:
    spec = importlib.util.spec_from_file_location("workflow_conftest", HERE.parent / "workflow" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Project


Project = _workflow_tests()

PROFILE = ["--workflow-profile", "workflow/profiles/slurm"]
WITHOUT_GPU = ("rule_targets_probe", "rule_subset")  # jobs of these tests that ask for none


class ClusterProject(Project):
    """A checkout whose runs go through ``sbatch`` with the profile of the repository."""

    @classmethod
    def fresh(cls, folder: Path) -> "ClusterProject":
        """A copy of the working tree without results, with the config of these tests."""
        Project.fresh(folder)
        shutil.copy2(HERE / "slurm.yaml", folder / "slurm.yaml")
        return cls(folder)

    def copy(self, folder: Path) -> "ClusterProject":
        """This project with its results, time stamps kept."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return ClusterProject(folder)

    def command(self, *arguments: str, cores: int = 0) -> list[str]:
        """The command line of a run: on the cluster, or with ``cores`` on this machine."""
        program = ["-m", "snakemake"] if cores else [str(HERE / "quick.py")]
        where = ["--cores", str(cores)] if cores else [*PROFILE, "--latency-wait", "10"]
        return [sys.executable, *program, *arguments, *where, "--configfile", "tiny.yaml", "slurm.yaml"]

    def without(self, *patterns: str) -> "ClusterProject":
        """This project after some of its results, and all resume states, are gone."""
        shutil.rmtree(self.folder / "results/.resume", ignore_errors=True)
        for pattern in patterns:
            for path in (self.folder / "results").glob(pattern):
                path.unlink()
        return self

    def state(self, pattern: str) -> Path | None:
        """A resume state below a folder that matches, where one lies."""
        return next((self.folder / "results/.resume").glob(f"**/{pattern}/**/*.state.pt"), None)


class Run:
    """A run of the workflow on the cluster, and what ``squeue`` said while it went on.

    Attributes:
        jobs: per SLURM job id its rule and the states it was seen in, in order.
        crowds: (number of running jobs, reasons of waiting ones) at each look, of the jobs that ask for a GPU.
    """

    def __init__(self, project: ClusterProject, *arguments: str) -> None:
        self.project, self.arguments = project, arguments
        self.log = project.folder / "snakemake.log"
        self.jobs: dict[str, tuple[str, list[str]]] = {}
        self.crowds: list[tuple[int, list[str]]] = []

    def __enter__(self) -> "Run":
        self._log = self.log.open("a")
        self._process = subprocess.Popen(
            self.project.command(*self.arguments),
            cwd=self.project.folder,
            env=self.project.environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            subprocess.run(["scancel", "--user=root"], check=True)
            await_condition("an empty queue", lambda: not queue(self.project), 60)
        self._stop.set()
        self._watcher.join()
        self._log.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            waiting, running = [], 0
            for job, rule, state, reason in queue(self.project, "--states=all"):
                seen = self.jobs.setdefault(job, (rule, []))[1]
                if seen[-1:] != [state]:
                    seen.append(state)
                if not rule.startswith(WITHOUT_GPU):
                    running += state == "RUNNING"
                    waiting += [reason] * (state == "PENDING")
            self.crowds.append((running, waiting))

    def alive(self) -> bool:
        """Whether Snakemake still runs."""
        return self._process.poll() is None

    def job(self, rule: str) -> str:
        """The id of the running job of a rule."""
        return next(
            job for job, name, state, _ in queue(self.project) if name.startswith(f"rule_{rule}") and state == "RUNNING"
        )

    def in_the_middle_of(self, rule: str) -> str:
        """Wait until a job of the rule has left a resume state; the job's id."""
        folder = {"teacher": "teacher.safetensors", "experts": "experts", "distill": "sets/mkdt"}[rule.split("_")[0]]

        def begun() -> bool:
            assert self.alive(), self.text()
            return self.project.state(folder) is not None

        await_condition(f"a resume state of {rule}", begun, 500)
        return self.job(rule)

    def kill_snakemake(self) -> None:
        """SIGKILL to Snakemake alone: its jobs go on."""
        self._process.kill()
        self._process.wait()

    def finish(self, fails: bool = False) -> None:
        """Wait for Snakemake's end."""
        self._process.wait(600)
        time.sleep(0.5)  # one more look at the queue
        assert (self._process.returncode != 0) == fails, self.text()

    def text(self) -> str:
        """The end of what Snakemake printed."""
        return self.log.read_text()[-6000:]

    def counts(self) -> Counter[str]:
        """How many SLURM jobs each rule had, requeued ones counted once."""
        return Counter(re.sub(r"^rule_(\w+?)(_wildcards_.*)?$", r"\1", rule) for rule, _ in self.jobs.values())


def queue(project: ClusterProject, *arguments: str) -> list[tuple[str, str, str, str]]:
    """(id, comment, state, reason) of the project's jobs."""
    text = subprocess.run(
        ["squeue", "--noheader", "--format=%i|%k|%T|%r|%Z", *arguments], capture_output=True, text=True
    ).stdout
    rows = [line.split("|") for line in text.splitlines()]
    return [(job, rule, state, reason) for job, rule, state, reason, folder in rows if folder == str(project.folder)]


def await_condition(what: str, ready: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, looking often."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Callable[[bool], None]]:
    """A function that brings the cluster up with or without accounting; it is stopped when the tests end."""
    if reason := cluster.obstacle():
        pytest.skip(reason)
    try:
        cluster.install(accounting=True)
    except SystemExit as error:
        pytest.skip(f"the packages cannot be installed: {error}")
    yield cluster.up
    cluster.down()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ClusterProject:
    """The same experiment, run on this machine without SLURM and undisturbed."""
    project = ClusterProject.fresh(tmp_path_factory.mktemp("reference") / "project")
    project.run(cores=2)
    return project


@pytest.fixture
def project(tmp_path: Path) -> ClusterProject:
    """A checkout without results."""
    return ClusterProject.fresh(tmp_path / "project")

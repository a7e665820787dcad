"""A copy of the project in a temporary folder, and the real workflow run in it at the smallest size."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from forks import WARM, fork

from mkdt.config.result_folders import CLEANED

REPOSITORY = Path(__file__).parents[1]
COLD = ("-m", "snakemake")
TINY = REPOSITORY / "tests" / "workflow" / "tiny.yaml"
# Where nobody looks at MLflow, no process starts that imports it: that would take a third of the time of a tiny run.
TRACKED = ("tiny.yaml",)
UNTRACKED = ("tiny.yaml", "untracked.yaml")
# Time, memory, disk, versions and the command: they differ between runs that are equal otherwise.
RUN = re.compile(rb'<section id="(cost|origin)">.*?</section>', re.DOTALL)
# Jobs after a change, as `Project.planned` counts them.
PROBES = {f"probe {method}": 1 for method in ("none", "random", "high_loss", "mkdt", "full")}
SELECTIONS = {name.replace("probe", "select"): count for name, count in PROBES.items()}
AFTER_DISTILL = {"distill mkdt": 2, "pretrain mkdt": 2, "select mkdt": 1, "probe mkdt": 1, "report": 1}


class Project:
    """One checkout of the project with its own results.

    Attributes:
        folder: the checkout.
        configfiles: what its runs are configured with; a later file overrides an earlier one.
        snakemake: what runs it, as arguments of Python. Warm saves the imports of every job; where processes are killed, jobs
            must be processes of their own.
    """

    configfiles: tuple[str, ...] = UNTRACKED
    snakemake: tuple[str, ...] = (str(WARM),)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""  # by the run that made it

    @classmethod
    def fresh(cls, folder: Path) -> "Project":
        """A copy of the working tree's code and config, without results."""
        for name in ("Snakefile", "workflow", "profiles", "config", "src"):
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / name)
        shutil.copy2(TINY, folder / "tiny.yaml")
        (folder / "untracked.yaml").write_text("tracking: {enabled: false}\n")
        return cls(folder)

    def copy(self, folder: Path) -> "Project":
        """This project with its results; time stamps and second names of files kept."""
        subprocess.run(["cp", "--archive", self.folder, folder], check=True)
        return Project(folder)

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        """The command line of a run in a process of its own."""
        return [sys.executable, *self.snakemake, *self.arguments(*arguments, cores=cores)]

    def arguments(self, *arguments: str, cores: int = 2) -> list[str]:
        """Snakemake's arguments."""
        # Those of a test come first: --configfile would take a target behind it for another file.
        return [*arguments, "--cores", str(cores), "--configfile", *self.configfiles]

    def environment(self) -> dict[str, str]:
        """The copy's own source comes first, so that a test may edit it."""
        return os.environ | {"PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str, cores: int = 2) -> subprocess.Popen[str]:
        """Start a run in the background, in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments, cores=cores),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def attempt(self, *arguments: str, cores: int = 2) -> tuple[int, str]:
        """Run to the end and return the exit code and what was printed."""
        if self.snakemake == Project.snakemake or "--dry-run" in arguments:
            return fork(["snakemake", *self.arguments(*arguments, cores=cores)], self.folder, self.environment())
        run = self.start(*arguments, cores=cores)
        printed = run.communicate(timeout=600)[0]
        return run.returncode, printed

    def run(self, *arguments: str, cores: int = 2, fails: bool = False) -> str:
        """Run to the end and return what was printed."""
        code, printed = self.attempt(*arguments, cores=cores)
        assert (code != 0) == fails, printed[-4000:]
        return printed

    def mkdt(self, *arguments: str) -> str:
        """Run the command ``mkdt``, which must succeed, and return what was printed."""
        code, printed = fork(["mkdt", *arguments], self.folder, self.environment())
        assert code == 0, printed[-4000:]
        return printed

    def planned(self, *arguments: str) -> Counter[str]:
        """The jobs that a dry run would start, as ``rule`` or, for jobs of one method, ``rule method``."""
        text = self.run("--dry-run", *arguments)
        jobs: Counter[str] = Counter()
        for block in re.split(r"\n(?=\[|rule |localrule )", text):
            rule = re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE)
            if rule is None or rule[1] == "all":
                continue
            method = re.search(r"wildcards:.*method=(\w+)", block)
            jobs[f"{rule[1]} {method[1]}" if method else rule[1]] += 1
        return jobs

    def artifacts(self) -> dict[str, bytes]:
        """Every declared result but logs and timings, by path; the report's page without what says how it was made."""
        results = self.folder / "results"
        skipped = {"logs", "benchmarks", "mlartifacts"}
        return {
            str(path.relative_to(results)): RUN.sub(b"", path.read_bytes())
            if path.suffix == ".html"
            else path.read_bytes()
            for path in sorted(results.rglob("*"))
            if path.is_file()
            and path.relative_to(results).parts[0] not in skipped
            and not path.relative_to(results).parts[0].startswith(".")
            and path.name != "mlflow.db"
            and (not path.name.startswith(".") or path.name == CLEANED)  # no file that a killed job was writing
        }


def edit(project: Project, path: str, old: str, new: str) -> None:
    """Replace one piece of a file of the project's copy."""
    file = project.folder / path
    text = file.read_text()
    assert text.count(old) >= 1, f"{path} no longer has {old!r}"
    file.write_text(text.replace(old, new, 1))

"""The kill drill: random processes are killed at random moments, the same command is given again, nothing differs.

`make drill` runs all of the tiny experiment for 25 rounds; the suite three rounds up to one synthetic set.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from project import TRACKED, Project

pytestmark = pytest.mark.slow

ROUNDS = int(os.getenv("MKDT_DRILL_ROUNDS", "3"))
SEED = int(os.getenv("MKDT_DRILL_SEED", "0"))
TARGETS = [] if ROUNDS > 3 else ["results/tiny/sets/mkdt/6img/0.safetensors"]


class Runs(Project):
    """A project that is run by `mkdt run`."""

    snakemake = ("-c", "import sys; from mkdt.cli.main import main; sys.exit(main())", "run")


def alive(folder: Path) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Snakemakes and jobs in a folder."""
    found: tuple[list[psutil.Process], list[psutil.Process]] = ([], [])
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.cwd() != str(folder) or process.status() == psutil.STATUS_ZOMBIE:
                continue
        except psutil.Error:
            continue
        if words[1:3] == ["-m", "snakemake"]:
            found[0].append(process)
        elif "/.snakemake/scripts/" in "".join(words[1:2]):
            found[1].append(process)
    return found


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(
    project: Project, finished: Project, request: pytest.FixtureRequest
) -> None:
    """Snakemake and a job in turn; SIGKILL or SIGTERM, when and which job is decided by a seed."""
    runs, stream = Runs(project.folder), random.Random(SEED)
    runs.configfiles = TRACKED
    theirs = finished.artifacts()

    def same(mine: dict[str, bytes]) -> None:
        assert mine.keys() <= theirs.keys()
        assert TARGETS or mine.keys() == theirs.keys()
        assert [path for path in mine if mine[path] != theirs[path]] == []
        assert len(mine) > 5

    killed, run = [], None
    try:
        while len(killed) < ROUNDS:
            if run is None or run.poll() is not None:
                run = subprocess.Popen(
                    runs.command(*TARGETS),
                    cwd=runs.folder,
                    env=runs.environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            time.sleep(stream.uniform(0.5, 8))
            snakemakes, jobs = alive(runs.folder)
            if run.poll() == 0:  # all done before the rounds were: the same as undisturbed, then from the beginning
                same(runs.artifacts())
                for path in ("results", ".snakemake"):
                    subprocess.run(["rm", "-rf", path], cwd=runs.folder, check=True)
                continue
            group = (snakemakes, jobs)[len(killed) % 2]
            if group:
                signum, process = stream.choice([signal.SIGKILL, signal.SIGTERM]), stream.choice(group)
                name = Path(process.cmdline()[1]).name if group is jobs else "snakemake"
                process.send_signal(signum)
                killed.append(f"{name.split('.', 1)[-1]} {signum.name}")
                if group is snakemakes:
                    run.wait(120)
    finally:
        if run is not None and run.poll() is None and len(killed) < ROUNDS:
            run.kill()
    if run is not None:
        run.wait(600)
    runs.run(*TARGETS)
    mine = runs.artifacts()
    same(mine)
    assert alive(runs.folder) == ([], [])
    request.node.user_properties.append(("counts kills survived", len(killed)))
    print(
        f"\nseed {SEED}: {len(killed)} kills survived, {len(mine)} files the same: {', '.join(killed)}", file=sys.stderr
    )

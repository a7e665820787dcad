"""Many small experiments in one results folder, by Snakemakes that run at the same time."""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.slow

EXPERIMENTS = 4
TOGETHER = 3


def overrides(number: int) -> tuple[str, ...]:
    """An experiment of its own; the data, the teacher and the experts are the same for all."""
    return (
        "--config",
        f"experiment=soak{number}",
        f"budgets=[{number + 3}]",
        "methods=[random,mkdt]",
        "distill_seeds=[0]",
    )


def until_done(project: Project, number: int) -> tuple[str, int]:
    """The same command until it succeeds.

    Returns:
        what all its calls printed, and how often Snakemake refused one, because another one makes what it needs.
    """
    printed, refused = "", 0
    locks = project.folder / ".snakemake" / "locks"
    for _ in range(600 if number else 0):  # two that look for locks in the same instant may both take theirs
        if list(locks.glob("*.output.lock")):
            break
        time.sleep(0.1)
    for _ in range(60):
        code, said = project.attempt(*overrides(number), cores=1)
        printed += said
        if code == 0:
            return printed, refused
        # A Snakemake that ends removes the whole folder of locks: one that reads, writes or removes there just then fails.
        lost = re.search(r"^ *(FileNotFound|OS)Error: .*(\.snakemake/locks|\d\.(in|out)put\.lock)", said, re.MULTILINE)
        assert lost or "Directory cannot be locked" in said, said[-4000:]
        refused += lost is None
        time.sleep(1)
    raise AssertionError("refused for a minute")


def test_experiments_at_the_same_time_end_as_one_after_the_other(project: Project, tmp_path: Path) -> None:
    """From an empty folder: what is shared is made once, a call that needs what another makes is refused and repeated."""
    serial = Project.fresh(tmp_path / "serial")
    with ThreadPoolExecutor(TOGETHER) as pool:
        calls = list(pool.map(lambda number: until_done(project, number), range(EXPERIMENTS)))
    for number in range(EXPERIMENTS):
        serial.run(*overrides(number), cores=2)
    mine, theirs = project.artifacts(), serial.artifacts()
    assert mine.keys() == theirs.keys()
    assert [path for path in mine if mine[path] != theirs[path]] == []
    started = Counter(rule for text, _ in calls for rule in re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE))
    assert started["teacher"] == started["targets"] == 1, "what is shared was made twice"
    assert started["distill"] == EXPERIMENTS
    assert sum(refused for _, refused in calls) > 0, "nothing was shared at the same time"
    assert not list((project.folder / ".snakemake" / "locks").glob("*"))

"""The command `mkdt` as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import SET

ROOT = Path(__file__).parents[3]
COMMANDS = {
    "inspect": ["mkdt.cli.main", "inspect", SET],
    "doctor": ["mkdt.cli.main", "doctor"],
    "estimate": ["mkdt.jobs.estimate_tables", str(ROOT / "config" / "config.yaml")],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_seen_enough_ends_it_without_a_word(name: str, results: Path) -> None:
    """As `| head` does: no traceback, and no complaint of Python when it closes the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", *COMMANDS[name]]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=results, env=environment, timeout=300)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in {141, -13}  # the code of SIGPIPE, as a shell shows it and as Python does

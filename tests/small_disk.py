"""A small file system to fill, for tests of a full disk."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def small_file_system(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount one at an empty folder for the length of a test, which is skipped where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    size = f"size={megabytes}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)

"""Python that runs where mkdt cannot be imported."""

import subprocess
import sys
from pathlib import Path


def alone(folder: Path, code: str) -> str:
    """Run Python in a folder, where mkdt cannot be imported, and return its output."""
    blocked = "import sys; sys.modules['mkdt'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

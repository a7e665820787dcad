"""Commands run in a fork of a process that has imported what they need; one such process serves all tests of this one."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

WARM = Path(__file__).parent / "workflow" / "warm.py"


@cache
def server() -> socket.socket:
    """The socket of the process that forks. It ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, WARM, "--serve", str(theirs.fileno())],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours


def fork(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run ``snakemake ...`` or ``mkdt ...`` to its end, within ten minutes.

    Returns:
        exit code (that of a killed process is negative), and what was printed to both outputs.
    """
    request = {"arguments": arguments, "folder": str(folder), "environment": environment}
    deadline = time.monotonic() + 600
    said, status = b"", os.pipe()
    with tempfile.TemporaryFile() as printed, open(status[0], "rb", buffering=0) as reading:
        with open(status[1], "wb") as writing:
            socket.send_fds(server(), [json.dumps(request).encode()], [printed.fileno(), writing.fileno()])
        while select.select([reading], [], [], max(0, deadline - time.monotonic()))[0]:
            more = reading.read(100)
            said += more
            if not more:
                break
        else:
            os.killpg(int(said), signal.SIGKILL)
        printed.seek(0)
        _, _, code = said.partition(b" ")
        return int(code or -signal.SIGKILL), printed.read().decode(errors="replace")

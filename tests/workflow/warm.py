"""Snakemake and ``mkdt`` in forks of one process that has imported torch and the rest already; their jobs are forks, too.

Importing takes three of the four seconds of a small job, and most of the time of a run with nothing to do. Everything else
is the real thing; that runs and jobs work as processes of their own is what those workflow tests show that kill them.

python warm.py ARGUMENTS       `snakemake ARGUMENTS`, with jobs as forks
python warm.py --serve FD      a run for each message at a socket (``forks.fork``)
"""

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import jinja2
import kornia.augmentation
import matplotlib.figure
import pandas
import pooch
import scipy.io
import scipy.stats
import sklearn.cluster
import sklearn.datasets
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neighbors
import snakemake.cli
import torchvision.datasets
from snakemake.benchmark import benchmarked
from snakemake.script import PythonScript

IMPORTED = (jinja2, kornia, matplotlib, pandas, pooch, scipy, sklearn, torchvision)


def in_child(work: Callable[[], object], status: int | None = None) -> int:
    """Do something in a child of this process, which ends as a Python of its own would; return its process id.

    Args:
        work: what to do.
        status: a file that the child writes its exit code to.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status is not None:
            os.write(status, str(code).encode())
        os._exit(code)


def execute_script(self: PythonScript, file: str, edit: bool = False) -> None:
    """Run a job's script in a child of this process, as ``python script`` would."""
    child = in_child(lambda: runpy.run_path(file, run_name="__main__"))
    with benchmarked(child, self.bench_record) if self.bench_record else nullcontext():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise subprocess.CalledProcessError(code, file)


def run_snakemake() -> None:
    """Snakemake with the arguments of this process."""
    if "--dry-run" not in sys.argv:
        for name in ("mkdt.jobs.stage", "mkdt.report.tables", "mkdt.teacher.training"):  # once for all jobs
            import_module(name)
    patched: Any = PythonScript
    patched.execute_script = execute_script
    snakemake.cli.main()


def run(arguments: list[str], folder: str, environment: dict[str, str], printed: int) -> None:
    """Be the process of a command: ``snakemake ...`` or ``mkdt ...`` in a folder."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.argv = arguments
    sys.path[:1] = ["", *environment["PYTHONPATH"].split(os.pathsep)]
    if arguments[0] == "mkdt":
        sys.exit(import_module("mkdt.cli.main").main())
    run_snakemake()


def serve(requests: socket.socket) -> None:
    """Start a process for each message, which says what to run; two files come with it.

    The first file gets what is printed. The second gets the process id and, in the end, the exit code.
    """
    assert not any(name.split(".")[0] == "mkdt" for name in sys.modules), "each checkout has its own"
    gc.freeze()  # no child needs to look at what was imported
    children: list[int] = []
    while True:
        message, files, *_ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:  # who asked has ended
            return

        def work(message: bytes = message, files: list[int] = files) -> None:
            requests.close()
            os.write(files[1], f"{os.getpid()} ".encode())
            run(**json.loads(message), printed=files[0])

        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        children.append(in_child(work, files[1]))
        for file in files:
            os.close(file)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        run_snakemake()

"""Snakemake whose jobs are forks of a process that has imported torch and the rest already.

Importing takes three of the four seconds of a smoke job, and the experiments have some two hundred of them. Everything
else is the real thing; that jobs work as processes of their own is what the other workflow tests show.
"""

import os
import runpy
import subprocess
import sys
import traceback
from contextlib import nullcontext
from typing import Any

import matplotlib
import pandas
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neighbors
import torchvision.datasets
from snakemake.benchmark import benchmarked
from snakemake.cli import main
from snakemake.script import PythonScript

import mkdt.jobs.stage
import mkdt.report.tables
import mkdt.teacher.training

WARM = (matplotlib, pandas, sklearn, torchvision, mkdt)


def fork(self: PythonScript, file: str, edit: bool = False) -> None:
    """Run a job's script in a child of this process, as ``python script`` would."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runpy.run_path(file, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with benchmarked(child, self.bench_record) if self.bench_record else nullcontext():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise subprocess.CalledProcessError(code, file)


if __name__ == "__main__":
    patched: Any = PythonScript
    patched.execute_script = fork
    main()

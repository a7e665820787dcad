"""Snakemake on one config after the other, each in a fork of a process that has imported everything already.

python refused.py CONFIG...      in a checkout; prints a JSON line a config: exit code and what was printed
"""

import json
import os
import sys

import matplotlib
import pandas
import torch
from snakemake.cli import main

import mkdt.config.checks

WARM = (matplotlib, pandas, torch, mkdt)


def run(file: str) -> tuple[int, str]:
    """Exit code and all output of `snakemake --configfile file`."""
    end, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        code = 1
        try:
            main(["--cores", "1", "--configfile", file])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(pipe)
    with os.fdopen(end, errors="replace") as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(run(name)), flush=True)

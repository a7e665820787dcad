"""Rule track_sync: wait until every run of the experiment has reached MLflow."""

import sys
from contextlib import redirect_stderr, redirect_stdout

from mkdt.cli.main import main

with open(snakemake.log[0], "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
    code = main(["track", "sync", "--experiment", snakemake.params.experiment])
sys.exit(code)

"""Snakemake that looks at its SLURM jobs every second: the plugin waits ten seconds longer at each look."""

from typing import Any

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

if __name__ == "__main__":
    patched: Any = Executor
    patched.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
    main()

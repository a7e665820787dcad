"""Tracking in Snakemake's main process: the parent run of an experiment, and the process that sends runs to MLflow."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdt.jobs.tracking import STORE, Run, spools

log = logging.getLogger("mkdt")

CLOSE_SECONDS = 60.0  # how long Snakemake waits at its end for the last values to be sent


class Tracker:
    """The parent run of an experiment and its syncer.

    Attributes:
        syncer: the process that sends; None before ``start`` and without tracking.
    """

    def __init__(self, config: Mapping[str, Any], results: Path) -> None:
        """Take the experiment's name and its ``tracking`` settings from a config."""
        self._experiment: str = config["experiment"]
        self._enabled, self._uri = config["tracking"]["enabled"], config["tracking"]["uri"]
        self._folder = spools(results, self._experiment)
        self._report = results / self._experiment / "report"
        self._run = Run(None, "", "", {}, {})
        self.syncer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the parent run, or continue that of an earlier Snakemake, and the syncer."""
        if not self._enabled:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{STORE}.{os.getpid()}"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"uri": self._uri}, file)  # it may hold a password
            temporary.replace(self._folder / STORE)
            self._run = Run(self._folder, "experiment", self._experiment, {"stage": "experiment"}, {})
            earlier = sorted(self._folder.glob("experiment-*.jsonl"))
            self._run.begin(earlier[-1].stem if earlier else None)
            self.syncer = self._start_syncer()
        except OSError as error:
            log.warning("tracking: %s; jobs run without it.", error)

    def end(self, succeeded: bool) -> None:
        """End the parent run, attach the report after success, and wait up to ``CLOSE_SECONDS`` for the syncer."""
        if self.syncer is None:
            return
        if succeeded and self._report.is_dir():
            for path in sorted(self._report.iterdir()):
                self._run.file(path, "report")
        self._run.close("FINISHED" if succeeded else "FAILED")
        if self.syncer.poll() is not None:  # somebody killed it
            self.syncer = self._start_syncer()
        assert self.syncer.stdin is not None
        self.syncer.stdin.close()
        try:
            complete = self.syncer.wait(CLOSE_SECONDS) == 0
        except subprocess.TimeoutExpired:
            print(f"tracking: MLflow is slow, process {self.syncer.pid} sends the rest.", file=sys.stderr)
            return
        if not complete:
            print(
                f"tracking: not everything reached MLflow (why: {self._folder / 'sync.log'}); it is kept, and "
                f"`mkdt track sync --experiment {self._experiment}` sends it.",
                file=sys.stderr,
            )

    def _start_syncer(self) -> subprocess.Popen[bytes]:
        """Start the syncer. Its standard input ends when this process does, even by SIGKILL; it sends the rest and ends."""
        with open(os.open(self._folder / "sync.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "mkdt.jobs.mlflow_sync", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for Snakemake
            )

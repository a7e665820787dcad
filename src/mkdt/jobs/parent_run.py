"""Tracking in Snakemake's main process: the parent run of an experiment, and the process that sends runs to MLflow."""

import csv
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdt.config.plan import method_name, parameters
from mkdt.config.registry import makes_the_same
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.jobs.shown_values import NOTE, cost_metrics, experiment_note, run_note, summary_metrics
from mkdt.jobs.tracking import STORE, Run, parse, spools
from mkdt.report.origin import read

log = logging.getLogger("mkdt")

CLOSE_SECONDS = 60.0  # how long Snakemake waits at its end for the last values to be sent


class Tracker:
    """The parent run of an experiment and its syncer.

    Attributes:
        syncer: the process that sends; None before ``start`` and without tracking.
    """

    def __init__(self, config: Config, results: Path) -> None:
        """Take over a checked config; its ``tracking`` settings are read here."""
        self._config, self._experiment = config, config["experiment"]
        self._enabled, self._uri = config["tracking"]["enabled"], config["tracking"]["uri"]
        self._folder = spools(results, self._experiment)
        self._report = {role: results.parent / STAGES["report"].path(config, role) for role in STAGES["report"].outputs}
        self._run = Run(None, "", "", {}, {})
        self.syncer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the parent run, or continue that of an earlier Snakemake with the same config, and the syncer."""
        if not self._enabled:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{STORE}.{os.getpid()}"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"uri": self._uri}, file)  # it may hold a password
            temporary.replace(self._folder / STORE)
            settings = parameters(self._config)
            tags = {
                "stage": "experiment",
                "source": self._config["source"],
                "teacher": self._config["teacher"]["name"],
                "methods": ", ".join(map(method_name, self._config["methods"])),
            }
            self._run = Run(self._folder, "experiment", self._experiment, tags, settings)
            self._run.begin(self._earlier(settings))
            self._run.describe_experiment(experiment_note(self._config))
            self.syncer = self._start_syncer()
        except OSError as error:
            log.warning("tracking: %s; jobs run without it.", error)

    def end(self, succeeded: bool) -> None:
        """End the parent run, attach the report after success, and wait up to ``CLOSE_SECONDS`` for the syncer."""
        if self.syncer is None:
            return
        if succeeded and self._report["origin_json"].is_file():
            try:
                self._conclude()
            except Exception as error:  # a table that somebody altered, say
                log.warning("tracking: %s; MLflow lacks results of the report.", error)
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

    def _earlier(self, settings: Mapping[str, Any]) -> str | None:
        """Return the id of the last parent run if its config was the same: MLflow's parameters cannot be changed."""
        runs = sorted(self._folder.glob("experiment-*.jsonl"))
        begun = [record for path in runs[-1:] for record in parse(path.read_bytes()) if record["type"] == "run"]
        same = begun and begun[0]["params"] == {key: str(value) for key, value in settings.items()}
        return runs[-1].stem if same else None

    def _conclude(self) -> None:
        """Record the report, if it is of this config: its files, its summary and the costs as metrics, and a description."""
        from mkdt.report.costs import costs  # pandas takes half a second to import

        if not makes_the_same(read(self._report["origin_json"]).config, self._config):
            return  # this run made something else
        files = sorted(path for path in self._report.values() if path.is_file())
        for path in files:
            self._run.file(path, "report")
        with self._report["summary_csv"].open(encoding="utf-8", newline="") as table:
            values = summary_metrics(csv.DictReader(table))
        self._run.conclude(values | cost_metrics(costs(self._config).to_dict("records")))
        summary = self._report["summary_md"].read_text(encoding="utf-8")
        self._run.tag(NOTE, run_note(self._config, summary, files))

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

"""A real MLflow server, and what has arrived of an experiment's spools."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import with_sections
from mlflow.tracking import MlflowClient

from mkdt.config.sections import Config
from mkdt.jobs import tracking
from mkdt.jobs.mlflow_sync import Syncer
from mkdt.jobs.tracking import Run, spools

Metrics = Counter[tuple[str, int, float]]


class Server:
    """A real MLflow server on a loopback port of its own, on a fresh SQLite store.

    Attributes:
        uri: where it answers.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        folder = self._folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "served")],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for(self._answers, 60)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """End it with all its workers, without a chance to finish anything."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


class Experiment:
    """One experiment's spools and what has arrived of them.

    Attributes:
        folder: the spools.
    """

    def __init__(self, results: Path, name: str, uri: str | None = None) -> None:
        self.name, self.folder = name, spools(results, name)
        self.folder.mkdir(parents=True)
        (self.folder / tracking.STORE).write_text(json.dumps({"uri": uri}))
        self.uri = uri or f"sqlite:///{results.resolve()}/mlflow.db"

    def run(self, output: str = "train", name: str = "train · a") -> Run:
        return Run(self.folder, output, name, {"stage": output}, {"lr": 0.1})

    def sync(self) -> bool:
        return Syncer(self.folder).follow(lambda seconds: True)

    def follow(self) -> "subprocess.Popen[bytes]":
        """The syncer as Snakemake starts it."""
        return subprocess.Popen(
            [sys.executable, "-m", "mkdt.jobs.mlflow_sync", str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self) -> list[Any]:
        """The experiment's runs, oldest first, deleted ones left out."""
        experiment = self.client().get_experiment_by_name(self.name)
        assert experiment is not None
        found = self.client().search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        return list(found)

    def arrived(self, run_id: str) -> Metrics:
        """How often each value of a run is in the store, system metrics left out."""
        client = self.client()
        keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
        return Counter((key, m.step, m.value) for key in keys for m in client.get_metric_history(run_id, key))


def tracked(experiment: str = "e", uri: str | None = None, enabled: bool = True, **settings: Any) -> Config:
    """The default config, tracked."""
    return with_sections(experiment=experiment, tracking={"uri": uri, "enabled": enabled}, **settings)

"""Stores of MLflow that tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import Experiment, Server

from mkdt.jobs import tracking


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store of the person who runs the tests; short waits."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "5" if "TIMEOUT" in name else "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(tracking.__file__).parents[2]))
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, shared: every test has an experiment of its own."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store: creating its tables takes longer than most tests."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def local(tmp_path: Path, tables: Path) -> Experiment:
    """An experiment with the default store."""
    experiment = Experiment(tmp_path / "results", "e")
    shutil.copy(tables, tmp_path / "results" / "mlflow.db")
    return experiment


@pytest.fixture
def remote(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Experiment:
    """An experiment of its own on the shared server."""
    return Experiment(tmp_path / "results", request.node.name, server.uri)

"""MLflow: every job a run below its experiment's parent run. It watches, it never decides: a failure costs no job.

Jobs find the store through a small file that ``prepare`` writes before the first job starts, so tracking is
neither input nor parameter of any rule.
"""

import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mkdt.artifacts import write_text

log = logging.getLogger("mkdt")

FLUSH_SECONDS = 2.0  # metrics are sent in batches: one batch costs what a single metric does
BATCH = 900  # MLflow takes at most 1000 metrics in a request
TRIES = 3
CLOSE_SECONDS = 60.0  # how long a finished job waits for a slow server

# Nothing is reported to anybody, and a missing git binary is no news.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def _pointer(results: Path, experiment: str) -> Path:
    return results / ".tracking" / f"{experiment}.json"


def _client(uri: str) -> Any:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def code_version() -> str:
    """The git commit of this checkout, with ``+`` where files differ from it; ``unknown`` outside git."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def prepare(config: Mapping[str, Any], results: Path) -> None:
    """Create the store, the experiment and its parent run once, before any job writes; say so where it fails.

    Args:
        config: the whole config.
        results: the results folder; the default store is ``mlflow.db`` in it.
    """
    experiment, pointer = config["experiment"], _pointer(results, config["experiment"])
    if not config["tracking"]["enabled"]:
        pointer.unlink(missing_ok=True)
        return
    uri = config["tracking"]["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
    local = uri is None
    uri = uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"
    results.mkdir(parents=True, exist_ok=True)
    try:
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            place = (results / "mlartifacts").resolve().as_uri() if local else None
            experiment_id = client.create_experiment(experiment, artifact_location=place)
        else:
            experiment_id = found.experiment_id
        known = json.loads(pointer.read_text(encoding="utf-8")) if pointer.is_file() else {}
        parent = known.get("parent") if known.get("uri") == uri else None
        try:
            client.set_tag(parent, "code", code_version())
            client.update_run(parent, status="RUNNING")
        except Exception:  # the store is another one, or was deleted: a new parent run
            tags = {"mlflow.runName": experiment, "stage": "experiment", "code": code_version()}
            parent = client.create_run(experiment_id, tags=tags).info.run_id
        for run in client.search_runs(
            [experiment_id], f"tags.mlflow.parentRunId = '{parent}' and attributes.status = 'RUNNING'"
        ):
            client.set_terminated(run.info.run_id, "KILLED")  # its job was killed before it could say so
        write_text(pointer, json.dumps({"uri": uri, "experiment_id": experiment_id, "parent": parent}))
    except Exception as error:
        pointer.unlink(missing_ok=True)
        log.warning("tracking: MLflow at %s does not answer (%s); jobs run without it.", uri, error)


def conclude(config: Mapping[str, Any], results: Path, succeeded: bool) -> None:
    """End the parent run; after success it carries the report's files."""
    pointer = _pointer(results, config["experiment"])
    if not pointer.is_file():
        return
    try:
        where = json.loads(pointer.read_text(encoding="utf-8"))
        client = _client(where["uri"])
        report = results / config["experiment"] / "report"
        if succeeded and report.is_dir():
            client.log_artifacts(where["parent"], str(report), "report")
        client.set_terminated(where["parent"], "FINISHED" if succeeded else "FAILED")
    except Exception as error:
        log.warning("tracking: the parent run could not be ended (%s).", error)


class Run:
    """One job's MLflow run, fed by a thread of its own: the job never waits for it and never fails by it."""

    def __init__(
        self, results: Path, experiment: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        """Start recording; does nothing where ``prepare`` left no store."""
        self._queue: queue.Queue[tuple[Any, ...]] = queue.Queue()
        pointer = _pointer(results, experiment)
        self._thread: threading.Thread | None = None
        if pointer.is_file():
            where = json.loads(pointer.read_text(encoding="utf-8"))
            arguments = (where, {"mlflow.runName": name, **tags}, dict(params))
            self._thread = threading.Thread(target=self._work, args=arguments, name="mlflow", daemon=True)
            self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step; returns at once."""
        if self._thread:
            self._queue.put(("metrics", step, time.time_ns() // 1_000_000, dict(values)))

    def picture(self, step: int, key: str, picture: Any) -> None:
        """Record a picture, uint8 tensor [C,H,W], at a step; returns at once."""
        if self._thread:
            self._queue.put(("picture", step, key, picture))

    def tag(self, key: str, value: str) -> None:
        """Set a tag; returns at once."""
        if self._thread:
            self._queue.put(("tag", key, value))

    def file(self, path: Path) -> None:
        """Attach a small file; returns at once."""
        if self._thread:
            self._queue.put(("file", path))

    def close(self, status: str) -> None:
        """Send what is left and end the run as FINISHED, FAILED or KILLED; waits a bounded time."""
        if self._thread:
            self._queue.put(("close", status))
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("tracking: MLflow is too slow; the last values are only beside the artifact.")

    def _work(self, where: Mapping[str, str], tags: dict[str, str], params: dict[str, Any]) -> None:
        try:
            from mlflow.entities import Metric, Param

            client = _client(where["uri"])
            tags |= {"mlflow.parentRunId": where["parent"], "code": code_version()}
            run = client.create_run(where["experiment_id"], tags=tags).info.run_id
            client.log_batch(run, params=[Param(key, str(value)[:500]) for key, value in params.items()])
            pending: list[Any] = []
            sent = time.monotonic()
            while True:
                try:
                    item = self._queue.get(timeout=FLUSH_SECONDS)
                except queue.Empty:
                    item = ("nothing",)
                if item[0] == "metrics":
                    _, step, now, values = item
                    pending += [Metric(key, float(value), now, step) for key, value in values.items()]
                if len(pending) >= BATCH or item[0] == "close" or time.monotonic() - sent > FLUSH_SECONDS:
                    for first in range(0, len(pending), BATCH):
                        _persist(partial(client.log_batch, run, metrics=pending[first : first + BATCH]))
                    pending, sent = [], time.monotonic()
                if item[0] == "picture":
                    picture = item[3].permute(1, 2, 0).numpy()
                    _persist(partial(client.log_image, run, picture, key=item[2], step=item[1]))
                elif item[0] == "tag":
                    _persist(partial(client.set_tag, run, item[1], item[2]))
                elif item[0] == "file":
                    _persist(partial(client.log_artifact, run, str(item[1])))
                elif item[0] == "close":
                    _persist(partial(client.set_terminated, run, item[1]))
                    return
        except Exception as error:
            log.warning("tracking: MLflow failed (%s); the job goes on, its values are beside the artifact.", error)


def _persist(call: Callable[[], object]) -> None:
    """Try a call a few times: a locked database or a busy server is no reason to lose what follows."""
    for attempt in range(TRIES):
        try:
            call()
            return
        except Exception:
            if attempt + 1 == TRIES:
                raise
            time.sleep(2**attempt)

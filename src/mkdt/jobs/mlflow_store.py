"""One experiment in an MLflow store: turn the records of ``mkdt.jobs.tracking`` into requests.

Every request may be repeated without harm, because the sender may die before it notes that it has sent:

- a run is looked up by its tag before it is created; one that was created twice is removed at the end,
- MLflow's SQL stores keep a metric with the same key, step, time and value once,
- parameters, tags, statuses and data sets are set to the same value; pictures and files have fixed names.
"""

import hashlib
import json
import logging
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mkdt.jobs.shown_values import NOTE, NOTE_LENGTH

log = logging.getLogger("mkdt")

# MLflow's limits: items of one request, characters of a name and of a value.
BATCH = {"metrics": 1000, "params": 100, "tags": 100}
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, NOTE_LENGTH
# Errors of MLflow that remain if the request is repeated.
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
}
RUN_TAG = "mkdt.run"  # the name of a run's spool
STORE_TAG = "mkdt.store"  # identity of an experiment


@dataclass
class Sent:
    """What the store has of a run.

    Attributes:
        run: MLflow's id.
        offset: number of bytes of the spool that were sent.
        status: MLflow's status once the run has ended.
    """

    run: str | None = None
    offset: int = 0
    status: str | None = None


def fitting(name: str) -> str:
    """Return a name as MLflow takes it; one that had to change ends in its digest, so that no two become the same."""
    parts = [part for part in re.sub(r"[^/\w.\- :]", "_", name).split("/") if part not in ("", ".", "..")]
    fit = re.sub(r"^\.\.", "_", "/".join(parts))
    if fit and fit == name and len(fit) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{fit[: NAME_LENGTH - len(digest) - 1]}-{digest}"


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else f"{value[: length - 3]}..."


class Store:
    """One experiment in an MLflow store.

    Attributes:
        client: MLflow's client.
        identity: a random name of this experiment, kept in the store.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None) -> None:
        """Connect, and create the experiment if it is missing.

        Args:
            uri: tracking URI.
            experiment: name of the experiment.
            artifacts: URI of the folder for files; None leaves it to the server.
        """
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient(uri)
        entry = self.client.get_experiment_by_name(experiment)
        if entry is None:
            self.client.create_experiment(experiment, artifact_location=artifacts)
            entry = self.client.get_experiment_by_name(experiment)
        self._experiment: str = entry.experiment_id
        if STORE_TAG not in entry.tags:
            self.client.set_experiment_tag(self._experiment, STORE_TAG, uuid.uuid4().hex)
            entry = self.client.get_experiment(self._experiment)
        self.identity: str = entry.tags[STORE_TAG]
        self._refused: set[str] = set()

    def check(self) -> None:
        """Raise MLflow's error if the store does not answer."""
        self.client.get_experiment(self._experiment)

    def send(self, spool: Path, sent: Sent, parent: str | None, records: Sequence[Mapping[str, Any]]) -> None:
        """Send records of a spool; create their run, below the run ``parent``, if it is missing.

        Raises:
            Exception: MLflow's, if the store does not answer.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Any] = []
        end: Mapping[str, Any] | None = None
        for record in records:
            kind = record["type"]
            if kind == "run":
                self._begin(spool.stem, sent, parent, record)
                end = None  # the run goes on
                params = [(fitting(key), _cut(value, PARAM_LENGTH)) for key, value in record["params"].items()]
                self._log(sent, "params", [Param(*param) for param in params])
            elif kind == "metrics":
                step, at = record["step"], record["time"]
                metrics += [Metric(fitting(key), value, at, step) for key, value in record["values"].items()]
            elif kind == "tags":
                tags = [(fitting(key), _cut(value, TAG_LENGTH)) for key, value in record["tags"].items()]
                self._log(sent, "tags", [RunTag(*tag) for tag in tags])
            elif kind == "dataset":
                self._send_dataset(sent, record)
            elif kind == "picture":
                self._send_picture(spool, sent, record)
            elif kind == "file":
                self._send_file(spool.parent / record["file"], sent, record["folder"])
            elif kind == "experiment":
                self._describe(record["note"])
            elif kind == "end":
                end = record
        self._log(sent, "metrics", metrics)
        if end is not None:
            self.end(sent, end["status"], end["time"])

    def _describe(self, note: str) -> None:
        """Describe the experiment, unless somebody has done so."""
        if NOTE not in self.client.get_experiment(self._experiment).tags:
            self.client.set_experiment_tag(self._experiment, NOTE, note)

    def _begin(self, name: str, sent: Sent, parent: str | None, record: Mapping[str, Any]) -> None:
        """Find the MLflow run of a spool or create it, and mark it as running."""
        if sent.run is None:
            runs = self._find(f"tags.`{RUN_TAG}` = '{name}'")
            # A run that was deleted in the UI stays deleted. One that was created twice also exists active.
            runs.sort(key=lambda run: run.info.lifecycle_stage != "active")
            if runs:
                sent.run = runs[0].info.run_id
            else:
                tags = {RUN_TAG: name} | ({"mlflow.parentRunId": parent} if parent else {})
                run = self.client.create_run(self._experiment, record["time"], tags, record["name"])
                sent.run = run.info.run_id
        if sent.status is not None:
            self._request(sent, self.client.update_run, status="RUNNING")
            sent.status = None

    def end(self, sent: Sent, status: str, at: int) -> None:
        """Set the final status of a run (FINISHED, FAILED, KILLED) at a time in ms since 1970."""
        self._request(sent, self.client.set_terminated, status=status, end_time=at)
        sent.status = status

    def _log(self, sent: Sent, kind: str, items: Sequence[Any]) -> None:
        """Send parameters, tags or metrics in batches; items of a refused batch one by one."""
        for first in range(0, len(items), BATCH[kind]):
            batch = items[first : first + BATCH[kind]]
            if not self._request(sent, partial(self.client.log_batch, **{kind: batch}), complain=len(batch) == 1):
                for item in batch if len(batch) > 1 else ():
                    self._request(sent, partial(self.client.log_batch, **{kind: [item]}))

    def _request(
        self, sent: Sent, request: Callable[..., object], *args: Any, complain: bool = True, **options: Any
    ) -> bool:
        """Make a request about a run; return False if MLflow refuses it for good, as it does for a deleted run."""
        from mlflow.exceptions import MlflowException

        try:
            request(sent.run, *args, **options)
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            if complain and str(error) not in self._refused:
                self._refused.add(str(error))
                log.warning("skipped what MLflow refuses: %s", error)
            return False
        return True

    def _send_dataset(self, sent: Sent, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = json.dumps(record["profile"])
        dataset = Dataset(record["name"], record["digest"], "local", record["source"], profile=profile)
        tags = [InputTag("mlflow.data.context", record["context"])]
        self._request(sent, self.client.log_inputs, datasets=[DatasetInput(dataset, tags)])

    def _send_picture(self, spool: Path, sent: Sent, record: Mapping[str, Any]) -> None:
        """Do what ``MlflowClient.log_image`` does, but under a fixed name."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        key, step = record["key"].replace("/", "~"), record["step"]
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{spool.stem} {key} {step}")
        stem = f"{key}+step+{step}+timestamp+{record['time']}+{unique}"
        try:
            with tempfile.TemporaryDirectory() as folder, Image.open(spool.parent / record["file"]) as picture:
                picture.save(Path(folder) / f"{stem}.png")
                compress_image_size(picture).save(Path(folder) / f"{stem}+compressed.webp")
                self._request(sent, self.client.log_artifacts, folder, "images")
        except (FileNotFoundError, SyntaxError) as error:
            log.warning("a picture is missing or damaged: %s", error)
            return
        self._request(sent, self.client.set_tag, "mlflow.loggedImages", "true")

    def _send_file(self, path: Path, sent: Sent, folder: str) -> None:
        if path.is_file():
            self._request(sent, self.client.log_artifact, str(path), folder or None)
        else:
            log.warning("a file is missing: %s", path)

    def remove_doubles(self, known: Mapping[str, Sent]) -> None:
        """Delete runs that were created twice: a slow server may carry out a request that its client gave up."""
        for run in self._find(f"attributes.status = 'RUNNING' AND tags.`{RUN_TAG}` LIKE '%'"):
            ours = known.get(run.data.tags[RUN_TAG], Sent()).run
            if ours not in (None, run.info.run_id) and run.info.lifecycle_stage == "active":
                self.client.delete_run(run.info.run_id)

    def _find(self, query: str) -> list[Any]:
        """Return the runs of the experiment that match, including those that somebody deleted."""
        from mlflow.entities import ViewType

        return list(self.client.search_runs([self._experiment], query, ViewType.ALL, max_results=1000))

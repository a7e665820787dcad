"""The one process that talks to MLflow: it sends what runs have recorded (``mkdt.jobs.tracking``), each value once.

Snakemake starts it beside the jobs, ``mkdt track sync`` after them. Every request may be sent again without harm, since
a process can die between sending and noting that it has sent:

- a run is looked up by its tag before it is created; one that a late request made twice is removed at the end,
- MLflow's SQL stores keep a metric with the same key, step, time and value once,
- parameters, tags, statuses and data sets are set to the same value, pictures and files have fixed names.

So ``progress.json`` only saves work. It belongs to one experiment of one store: another one is sent everything.
"""

import argparse
import fcntl
import hashlib
import json
import logging
import os
import select
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from mkdt.errors import UserError, redact
from mkdt.jobs.tracking import REPORT_LINK, RUN_LINK, STORE, parse, spools

log = logging.getLogger("mkdt")

POLL_SECONDS = 1.0
LONGEST_WAIT = 10.0  # seconds between two tries while the store does not answer
DRAIN_SECONDS = 10.0  # without any success, after Snakemake's end
READ_BYTES = 1_000_000  # read and sent at a time
BATCH = 1000  # metrics in a request, MLflow's limit; parameters and tags: 100
# Errors of MLflow that another try does not cure.
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
}
RUN_TAG = "mkdt.run"  # a run's id in the spools
STORE_TAG = "mkdt.store"  # an experiment's identity
PARENT_TAG = "mlflow.parentRunId"
DESCRIPTION_TAG = "mlflow.note.content"
SUPERSEDED = " (superseded)"  # at the end of a run's name
MADE_FROM = "Made from"
OUR_DESCRIPTIONS = (MADE_FROM, REPORT_LINK)  # how they begin
LINKS = 40  # in a run's description


def quiet() -> None:
    """Settings of MLflow for this process; its own retries could create a run twice."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may hold a password


class Redacting(logging.Formatter):
    """Whatever is logged, libraries' tracebacks included, has no password in it."""

    def format(self, record: logging.LogRecord) -> str:
        """One message, without secrets."""
        return redact(super().format(record))


def abandoned(path: Path) -> bool:
    """Whether nobody writes to a spool any more: its writer holds a lock as long as it lives."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: `mkdt.jobs.tracking` has the same case
            return True
    return True


class Syncer:
    """Sends one experiment's spools to its store."""

    def __init__(self, folder: Path) -> None:
        """Read where to send and how far it has come.

        Args:
            folder: the experiment's spools.
        """
        self.experiment, self._folder = folder.name, folder
        self._uri: str | None = None
        with suppress(OSError, ValueError):
            self._uri = json.loads((folder / STORE).read_text(encoding="utf-8"))["uri"]
        results = folder.parents[1].resolve()
        self._uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results / 'mlflow.db'}"
        # What `progress.json` may keep of it: it may hold a password.
        self.address = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        sqlite = self._uri.startswith("sqlite:")
        self._artifacts = (results / "mlartifacts").as_uri() if sqlite else None
        # Experiments may be sent from different nodes, and SQLite is no database for several: one at a time.
        self._turn = FileLock(folder.parent / "sqlite.lock", timeout=LONGEST_WAIT) if sqlite else nullcontext()
        self._client: Any = None
        self._progress: dict[str, Any] = {"store": "", "runs": {}}
        with suppress(OSError, ValueError):
            self._progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        self._refused: set[str] = set()

    # -- the loop

    def follow(self, ended: Callable[[float], bool]) -> bool:
        """Send what comes until Snakemake has ended and nothing is left; True if everything was sent.

        Args:
            ended: waits up to that many seconds for Snakemake's end, and says whether it has come.
        """
        wait, over, complained, last_success = 0.0, False, False, time.monotonic()
        while True:
            if over:
                time.sleep(min(wait, POLL_SECONDS))
            elif ended(wait):
                over, last_success = True, time.monotonic()
            before = self._sent()
            try:
                with self._turn:
                    self.send()
                    if over:
                        self.remove_doubles()
                        return True
                wait, complained = POLL_SECONDS, False
            except Exception as error:
                wait = min(max(2 * wait, POLL_SECONDS), LONGEST_WAIT)
                if not complained:
                    complained = True
                    log.warning("MLflow at %s does not take it (%s); trying again until it does.", self._uri, error)
            if self._sent() != before:
                last_success = time.monotonic()
            if over and time.monotonic() - last_success > DRAIN_SECONDS:
                log.warning("giving up for now; `mkdt track sync` sends the rest.")
                return False

    def _sent(self) -> int:
        return sum(entry["offset"] for entry in self._progress["runs"].values())

    def send(self) -> None:
        """Send everything that is in the spools now.

        Raises:
            Exception: MLflow's; the store does not answer or refuses.
        """
        if self._client is None:
            self._connect()
        failure: Exception | None = None
        paths = sorted(self._folder.glob("*.jsonl"), key=lambda path: (not path.stem.startswith("experiment-"), path))
        for path in paths:
            try:
                self._send_spool(path)
            except Exception as error:
                failure = error
                self._client.get_experiment(self._experiment_id)  # is it the store, or only this run?
        if failure is not None:
            raise failure
        self._supersede([path.stem for path in paths])
        self._link([path.stem for path in paths])

    def _connect(self) -> None:
        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(self._uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            client.create_experiment(self.experiment, artifact_location=self._artifacts)
            found = client.get_experiment_by_name(self.experiment)
        if STORE_TAG not in found.tags:
            client.set_experiment_tag(found.experiment_id, STORE_TAG, uuid.uuid4().hex)
            found = client.get_experiment(found.experiment_id)
        self._experiment_id = found.experiment_id
        if self._progress["store"] != found.tags[STORE_TAG]:
            self._progress = {"store": found.tags[STORE_TAG], "runs": {}}
        self._progress["address"] = self.address
        self._save()
        self._client = client

    # -- one spool

    def _entry(self, name: str) -> dict[str, Any]:
        """What is known of a run.

        MLflow's id and its name, bytes sent, status once it has ended, who superseded it; identities (16 digits) of what
        it made and of what it read, and whether its description leads to them.
        """
        new: dict[str, Any] = {"run": None, "name": "", "offset": 0, "status": None, "superseded": None}
        entry: dict[str, Any] = self._progress["runs"].setdefault(name, {})
        for key, value in {**new, "made": [], "read": [], "linked": False}.items():
            entry.setdefault(key, value)
        return entry

    def _send_spool(self, path: Path) -> None:
        entry = self._entry(path.stem)
        if entry["status"] is not None and path.stat().st_size <= entry["offset"]:
            return
        gone = abandoned(path)  # before reading: what a dead writer left is then read to its end
        with path.open("rb") as file:
            file.seek(entry["offset"])
            while text := self._read_lines(file):
                self._send_records(path.stem, entry, parse(text))
                entry["offset"] += len(text)
                self._save()
        if gone and entry["run"] is not None and entry["status"] is None:
            self._end(entry, "KILLED", int(1000 * path.stat().st_mtime))
            self._save()

    @staticmethod
    def _read_lines(file: BinaryIO) -> bytes:
        """The next whole lines; nothing where there is none yet."""
        text = file.read(READ_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        file.seek(len(whole) - len(text), os.SEEK_CUR)
        return whole

    def _send_records(self, name: str, entry: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        metrics: list[Any] = []
        for record in records:
            kind = record["type"]
            if kind == "run" and entry["status"] != "DELETED":
                self._begin(name, entry, record)
            if entry["run"] is None or entry["status"] == "DELETED":  # a spool without a beginning; or nobody wants it
                return
            if kind == "run":
                self._log(entry, "params", [Param(key, value) for key, value in record["params"].items()])
            elif kind == "metrics":
                step, now = record["step"], record["time"]
                metrics += [Metric(key, value, now, step) for key, value in record["values"].items()]
            elif kind == "tags":
                self._log(entry, "tags", [RunTag(key, value) for key, value in record["tags"].items()])
                for role, key in (("output.", "made"), ("input.", "read")):
                    values = ",".join(value for tag, value in record["tags"].items() if tag.startswith(role))
                    entry[key] = sorted({*entry[key], *(identity[:16] for identity in filter(None, values.split(",")))})
            elif kind == "description":
                self._describe(entry, record["text"].replace(RUN_LINK, self._address(entry)))
            elif kind == "dataset":
                profile = json.dumps(record["profile"])
                dataset = Dataset(record["name"], record["digest"], "local", record["source"], profile=profile)
                tags = [InputTag("mlflow.data.context", record["context"])]
                self._ask(entry, self._client.log_inputs, datasets=[DatasetInput(dataset, tags)])
            elif kind == "picture":
                self._send_picture(name, entry, record)
            elif kind == "file":
                self._send_file(entry, record)
            elif kind == "end":
                self._log(entry, "metrics", metrics)
                metrics = []
                self._end(entry, record["status"], record["time"])
        self._log(entry, "metrics", metrics)

    def _begin(self, name: str, entry: dict[str, Any], record: dict[str, Any]) -> None:
        """The MLflow run of a spool: the one there is, or a new one."""
        entry["name"] = record["name"]
        if entry["run"] is None:
            found = self._find(f"tags.`{RUN_TAG}` = '{name}'")
            # One that was made twice is there once deleted (`remove_doubles`) and once active.
            found.sort(key=lambda run: run.info.lifecycle_stage != "active")
            entry["run"] = found[0].info.run_id if found else self._create(name, record)
            self._save()
        if entry["status"] is not None:  # it goes on
            self._ask(entry, self._client.update_run, status="RUNNING")
            entry["status"] = "DELETED" if entry["status"] == "DELETED" else None

    def _create(self, name: str, record: dict[str, Any]) -> str:
        tags = {RUN_TAG: name}
        parents = [known for known in self._progress["runs"] if known.startswith("experiment-")]
        if parents and not name.startswith("experiment-") and (parent := self._entry(max(parents))["run"]):
            tags[PARENT_TAG] = parent
        run = self._client.create_run(self._experiment_id, record["time"], tags, record["name"])
        run_id: str = run.info.run_id
        return run_id

    def _end(self, entry: dict[str, Any], status: str, at: int) -> None:
        self._ask(entry, self._client.set_terminated, status=status, end_time=at)
        entry["status"] = entry["status"] or status

    def _log(self, entry: dict[str, Any], kind: str, items: Sequence[Any]) -> None:
        """Send parameters, tags or metrics in batches; of a batch that MLflow refuses, all but what it refuses."""
        most = BATCH if kind == "metrics" else 100
        for first in range(0, len(items), most):
            batch = items[first : first + most]
            request = partial(self._client.log_batch, **{kind: batch})
            alone = len(batch) == 1
            if not self._ask(entry, request, complain=alone) and not alone:
                half = len(batch) // 2
                self._log(entry, kind, batch[:half])
                self._log(entry, kind, batch[half:])

    def _ask(
        self, entry: dict[str, Any], request: Callable[..., object], *args: Any, complain: bool = True, **more: Any
    ) -> bool:
        """Make a request about a run; False where MLflow refuses it for good. A run deleted in the UI stays deleted."""
        from mlflow.exceptions import MlflowException

        if entry["status"] == "DELETED":
            return True
        try:
            request(entry["run"], *args, **more)
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            try:
                gone = self._client.get_run(entry["run"]).info.lifecycle_stage == "deleted"
            except MlflowException as missing:
                gone = missing.error_code == "RESOURCE_DOES_NOT_EXIST"
            if gone:
                entry["status"] = "DELETED"
                return True
            if complain and str(error) not in self._refused:
                self._refused.add(str(error))
                log.warning("skipped what MLflow refuses: %s", error)
            return False
        return True

    def _send_picture(self, name: str, entry: dict[str, Any], record: dict[str, Any]) -> None:
        """As ``MlflowClient.log_image`` does, but under a name that is the same each time."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        key, step = record["key"].replace("/", "~"), record["step"]
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {key} {step}")
        stem = f"{key}+step+{step}+timestamp+{record['time']}+{unique}"
        try:
            with tempfile.TemporaryDirectory() as folder, Image.open(self._folder / record["file"]) as picture:
                picture.save(Path(folder) / f"{stem}.png")
                compress_image_size(picture).save(Path(folder) / f"{stem}+compressed.webp")
                self._ask(entry, self._client.log_artifacts, folder, "images")
        except (FileNotFoundError, SyntaxError) as error:
            log.warning("a picture is gone or damaged: %s", error)
            return
        self._ask(entry, self._client.set_tag, "mlflow.loggedImages", "true")

    def _send_file(self, entry: dict[str, Any], record: dict[str, Any]) -> None:
        path = self._folder / record["file"]
        if path.is_file():
            self._ask(entry, self._client.log_artifact, str(path), record["folder"] or None)
        else:
            log.warning("a file is gone: %s", path)

    def _describe(self, entry: dict[str, Any], text: str) -> None:
        """Set a run's description; what somebody else wrote there stays."""

        def describe(run_id: str) -> None:
            found = self._client.get_run(run_id).data.tags.get(DESCRIPTION_TAG, "")
            if not found or found.startswith(OUR_DESCRIPTIONS):
                self._client.set_tag(run_id, DESCRIPTION_TAG, text)

        self._ask(entry, describe)

    def _address(self, entry: dict[str, Any]) -> str:
        """Of a run in the UI, relative to any page of it."""
        return f"#/experiments/{self._experiment_id}/runs/{entry['run']}"

    # -- several runs

    def _supersede(self, names: Sequence[str]) -> None:
        """Of the runs that made the same output the newest counts; older ones are marked and folded beneath it."""
        attempts = defaultdict(list)
        for name in names:
            attempts[name.rsplit("-", 2)[0]].append(name)
        for group in attempts.values():
            *older, newest = sorted(group)
            successor = self._entry(newest)["run"]
            for name in older:
                entry = self._entry(name)
                if successor is None or entry["run"] is None or entry["status"] is None:
                    continue  # not yet
                if entry["superseded"] != newest:
                    title = f"{self._client.get_run(entry['run']).info.run_name.removesuffix(SUPERSEDED)}{SUPERSEDED}"
                    self._ask(entry, self._client.set_tag, "superseded_by", successor)
                    self._ask(entry, self._client.set_tag, PARENT_TAG, successor)
                    self._ask(entry, self._client.update_run, name=title)
                    entry["superseded"] = newest
                    self._save()

    def _link(self, names: Sequence[str]) -> None:
        """Let the description of each finished run lead to the runs that made what it read.

        Runs of other experiments, whose files this one shares, are not known here.
        """
        entries = [self._entry(name) for name in sorted(names)]
        makers = {made: entry for entry in entries if entry["run"] is not None for made in entry["made"]}
        for entry in entries:
            if entry["status"] != "FINISHED" or entry["linked"] or not entry["read"]:
                continue
            found = {makers[read]["run"]: makers[read] for read in entry["read"] if read in makers}
            found.pop(entry["run"], None)
            lines = sorted(f"- [{maker['name']}]({self._address(maker)})" for maker in found.values())
            if len(lines) > LINKS:
                lines[LINKS:] = [f"- and {len(lines) - LINKS} more"]
            if lines:
                self._describe(entry, "\n".join([MADE_FROM, "", *lines]))
            entry["linked"] = True
            self._save()

    def remove_doubles(self) -> None:
        """Remove runs that were created twice: a slow server may do what its client had given up and asked for again."""
        mine = {name: entry["run"] for name, entry in self._progress["runs"].items()}
        for run in self._find(f"attributes.status = 'RUNNING' AND tags.`{RUN_TAG}` LIKE '%'"):
            name = run.data.tags[RUN_TAG]
            if run.info.run_id != mine.get(name, run.info.run_id) and run.info.lifecycle_stage == "active":
                self._client.delete_run(run.info.run_id)

    def _find(self, query: str) -> list[Any]:
        """All runs of the experiment that match, deleted ones included: what somebody deleted stays deleted."""
        from mlflow.entities import ViewType

        runs, token = [], None
        while True:
            page = self._client.search_runs([self._experiment_id], query, ViewType.ALL, 1000, page_token=token)
            runs += list(page)
            token = page.token
            if not token:
                return runs

    def _save(self) -> None:
        """A crash may lose the last state: then the same is sent again, which changes nothing."""
        temporary = self._folder / f".progress.{os.getpid()}"
        temporary.write_text(json.dumps(self._progress), encoding="utf-8")
        temporary.replace(self._folder / "progress.json")


def lock(folder: Path) -> FileLock:
    """Held by the one syncer of an experiment."""
    return FileLock(folder / "sync.lock")


def until_end_of_input(seconds: float) -> bool:
    """Whether standard input has ended, or ends within some seconds: Snakemake holds the other end."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


def follow(folder: Path) -> bool:
    """Send what an experiment's jobs record until standard input ends; True if everything was sent."""
    quiet()
    ours = lock(folder)
    while True:
        with suppress(Timeout):
            ours.acquire(timeout=POLL_SECONDS)
            break
        if until_end_of_input(0):  # another one, still at work for an earlier Snakemake, may need a moment
            try:
                ours.acquire(timeout=DRAIN_SECONDS)
                break
            except Timeout:
                log.warning("another process is sending this experiment's runs.")
                return False
    with ours:
        return Syncer(folder).follow(until_end_of_input)


def await_other(folder: Path) -> bool:
    """Wait for the process that sends an experiment's runs until what is there now has arrived; send it if that one ends.

    Returns:
        whether everything was sent; False where it gets nowhere.
    """
    ours, address = lock(folder), Syncer(folder).address
    wanted = {path.stem: path.stat().st_size for path in folder.glob("*.jsonl")}
    sent, last = -1, time.monotonic()
    while True:
        with suppress(Timeout), ours.acquire(timeout=POLL_SECONDS):
            return Syncer(folder).follow(lambda seconds: True)
        runs: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            runs = progress["runs"] if progress.get("address") == address else {}
        offsets = {name: runs.get(name, {}).get("offset", 0) for name in wanted}
        if all(offsets[name] >= size for name, size in wanted.items()):
            return True
        if sum(offsets.values()) != sent:
            sent, last = sum(offsets.values()), time.monotonic()
        if time.monotonic() - last > LONGEST_WAIT + DRAIN_SECONDS:
            log.warning("another process is sending these runs, and gets nowhere: %s says why.", folder / "sync.log")
            return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand ``mkdt track``."""
    actions = parser.add_subparsers(required=True, metavar="action")
    sync = actions.add_parser("sync", help="send to MLflow what has not reached it yet")
    sync.add_argument("--experiment", help="default: every experiment of the results")
    sync.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    sync.set_defaults(run=_sync)


def _sync(arguments: argparse.Namespace) -> int:
    parent = spools(arguments.results, arguments.experiment or "any").parent
    folders = sorted(path.parent for path in parent.glob(f"{arguments.experiment or '*'}/{STORE}"))
    if not folders:
        what = f"of experiment '{arguments.experiment}'" if arguments.experiment else "of any experiment"
        raise UserError(f"{parent} has no recorded runs {what}: name the results folder with --results.")
    _log_to(sys.stderr, "%(message)s")
    quiet()
    missing = []
    for folder in folders:
        complete = await_other(folder)
        print(f"{folder.name}: {'everything is in MLflow' if complete else 'not everything could be sent'}.")
        missing += [] if complete else [folder.name]
    return int(bool(missing))


def _log_to(stream: Any, layout: str) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting(layout, "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> int:
    """``python -m mkdt.jobs.mlflow_sync FOLDER``, as Snakemake starts it."""
    _log_to(sys.stderr, "%(asctime)s %(message)s")
    try:
        return 0 if follow(Path(sys.argv[1])) else 3
    except Exception:
        log.exception("a bug:")
        return 1


if __name__ == "__main__":
    sys.exit(main())

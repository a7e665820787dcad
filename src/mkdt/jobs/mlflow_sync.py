"""The process that sends the runs of an experiment to MLflow, and ``mkdt track sync``.

Snakemake starts it beside the jobs; it ends with Snakemake. ``progress.json`` only saves work: without it, or with
another store, everything is sent again, and nothing arrives twice (``mkdt.jobs.mlflow_store``).
"""

import argparse
import fcntl
import hashlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from mkdt.errors import UserError, redact
from mkdt.jobs.mlflow_store import Sent, Store
from mkdt.jobs.tracking import STORE, parse, spools

log = logging.getLogger("mkdt")

POLL_SECONDS = 1.0
LONGEST_WAIT = 10.0  # seconds between two tries while the store does not answer
DRAIN_SECONDS = 10.0  # without any success, after Snakemake's end
READ_BYTES = 1_000_000  # read and sent at a time


class Syncer:
    """Sends one experiment's spools to its store.

    Attributes:
        store: the connected store; None before ``connect``.
        runs: what the store has of each run, by the name of the spool.
    """

    def __init__(self, folder: Path) -> None:
        """Read the address of the store and what was sent to it.

        Args:
            folder: the experiment's spools.
        """
        self._folder = folder
        uri: str | None = None
        with suppress(OSError, ValueError):
            uri = json.loads((folder / STORE).read_text(encoding="utf-8"))["uri"]
        results = folder.parents[1].resolve()
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results / 'mlflow.db'}"
        sqlite = self._uri.startswith("sqlite:")
        self._artifacts = (results / "mlartifacts").as_uri() if sqlite else None
        # Experiments may be sent from different nodes, and SQLite must not be written from several at a time.
        self._turn = FileLock(folder.parent / "sqlite.lock", timeout=LONGEST_WAIT) if sqlite else nullcontext()
        # The address may hold a password, so progress.json has its digest.
        self._address = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        self.store: Store | None = None
        self._identity, self.runs = "", dict[str, Sent]()
        with suppress(OSError, ValueError, TypeError, KeyError):
            progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            if progress["address"] == self._address:
                self.runs = {name: Sent(**entry) for name, entry in progress["runs"].items()}
                self._identity = progress["store"]

    def follow(self, ended: Callable[[float], bool]) -> bool:
        """Send new records until Snakemake has ended and nothing is left; return True if everything was sent.

        Args:
            ended: waits up to that many seconds for Snakemake's end, and returns whether it has ended.
        """
        wait, over, complained, last_success = 0.0, False, False, time.monotonic()
        while True:
            if over:
                time.sleep(min(wait, POLL_SECONDS))
            elif ended(wait):
                over, last_success = True, time.monotonic()
            before = self._sent_bytes()
            try:
                with self._turn:
                    self.send()
                    if over:
                        self.connect().remove_doubles(self.runs)
                        return True
                wait, complained = POLL_SECONDS, False
            except Exception as error:
                wait = min(max(2 * wait, POLL_SECONDS), LONGEST_WAIT)
                if not complained:
                    complained = True
                    log.warning("MLflow at %s failed (%s); trying again until it answers.", self._uri, error)
            if self._sent_bytes() != before:
                last_success = time.monotonic()
            if over and time.monotonic() - last_success > DRAIN_SECONDS:
                log.warning("giving up for now; `mkdt track sync` sends the rest.")
                return False

    def _sent_bytes(self) -> int:
        return sum(sent.offset for sent in self.runs.values())

    def connect(self) -> Store:
        """Return the store, connected; forget what was sent if it was sent to another one."""
        if self.store is None:
            for name in ("alembic", "mlflow", "urllib3"):
                logging.getLogger(name).setLevel(logging.ERROR)
            store = Store(self._uri, self._folder.name, self._artifacts)
            if self._identity != store.identity:
                self._identity, self.runs = store.identity, {}
            self._save()
            self.store = store
        return self.store

    def send(self) -> None:
        """Send everything that is in the spools now.

        Raises:
            Exception: MLflow's, if the store does not answer or refuses.
        """
        store = self.connect()
        failure: Exception | None = None
        # The parent run comes first, since the others name it.
        for path in sorted(self._folder.glob("*.jsonl"), key=lambda path: (not _is_parent(path.stem), path)):
            try:
                self._send_spool(store, path)
            except Exception as error:
                failure = error
                store.check()  # if only this run fails, the others go on
        if failure is not None:
            raise failure

    def _send_spool(self, store: Store, path: Path) -> None:
        sent = self.runs.setdefault(path.stem, Sent())
        if sent.status is not None and path.stat().st_size <= sent.offset:
            return
        parent = None if _is_parent(path.stem) else self._parent(path.stem)
        gone = _abandoned(path)  # asked before reading, so that a dead writer's last records are read
        with path.open("rb") as file:
            file.seek(sent.offset)
            while text := _read_lines(file):
                store.send(path, sent, parent, parse(text))
                sent.offset += len(text)
                self._save()
        if gone and sent.run is not None and sent.status is None:
            store.end(sent, "KILLED", int(1000 * path.stat().st_mtime))
            self._save()

    def _parent(self, name: str) -> str | None:
        """Return MLflow's id of the parent run that had begun last when a run began; where clocks differ, of the first."""
        parents = sorted(
            (_begun(other), sent.run) for other, sent in self.runs.items() if _is_parent(other) and sent.run
        )
        before = [run for begun, run in parents if begun <= _begun(name)]
        return before[-1] if before else next((run for _, run in parents), None)

    def _save(self) -> None:
        """Write progress.json. If a crash loses it, the same records are sent again."""
        runs = {name: asdict(sent) for name, sent in self.runs.items()}
        temporary = self._folder / f".progress.{os.getpid()}"
        temporary.write_text(json.dumps({"address": self._address, "store": self._identity, "runs": runs}))
        temporary.replace(self._folder / "progress.json")


def _is_parent(name: str) -> bool:
    return name.startswith("experiment-")


def _begun(name: str) -> str:
    """Return when a run began, as its name has it: digits that sort like the time."""
    return name.split("-")[-2]


def _abandoned(path: Path) -> bool:
    """Return whether the writer of a spool has ended: it holds a lock as long as it lives."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks; the writer has none either
            return True
    return True


def _read_lines(file: BinaryIO) -> bytes:
    """Read the next whole lines; empty if there is none yet."""
    text = file.read(READ_BYTES)
    if b"\n" not in text:  # a longer line
        text += file.readline()
    whole = text[: text.rfind(b"\n") + 1]
    file.seek(len(whole) - len(text), os.SEEK_CUR)
    return whole


def lock(folder: Path) -> FileLock:
    """Return the lock that the one sender of an experiment holds."""
    return FileLock(folder / "sync.lock")


def follow(folder: Path) -> bool:
    """Send what an experiment's jobs record until standard input ends; return True if everything was sent."""
    _configure_mlflow()
    ours = lock(folder)
    while True:  # another process may still send for an earlier Snakemake
        ended = _input_ends(0)
        with suppress(Timeout), ours.acquire(timeout=DRAIN_SECONDS if ended else POLL_SECONDS):
            return Syncer(folder).follow(_input_ends)
        if ended:
            log.warning("another process is sending this experiment's runs.")
            return False


def _input_ends(seconds: float) -> bool:
    """Wait up to that many seconds for the end of standard input, which Snakemake holds open."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


def send_all(folder: Path) -> bool:
    """Send what is recorded now, or wait while another process sends it; return True if everything was sent."""
    wanted = {path.stem: path.stat().st_size for path in folder.glob("*.jsonl")}
    progress, last_progress = -1, time.monotonic()
    while time.monotonic() - last_progress <= LONGEST_WAIT + DRAIN_SECONDS:
        with suppress(Timeout), lock(folder).acquire(timeout=POLL_SECONDS):
            return Syncer(folder).follow(lambda seconds: True)
        runs = Syncer(folder).runs
        offsets = {name: runs.get(name, Sent()).offset for name in wanted}
        if all(offsets[name] >= size for name, size in wanted.items()):
            return True
        if sum(offsets.values()) != progress:
            progress, last_progress = sum(offsets.values()), time.monotonic()
    log.warning("another process is sending these runs, without progress: %s says why.", folder / "sync.log")
    return False


def _configure_mlflow() -> None:
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # MLflow's own retries could create a run twice
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may hold a password


class _Redacting(logging.Formatter):
    """Remove passwords from everything that is logged, including tracebacks of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _log_to(stream: Any, layout: str) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Redacting(layout, "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of ``mkdt track``."""
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
    _configure_mlflow()
    failed = 0
    for folder in folders:
        complete = send_all(folder)
        print(f"{folder.name}: {'everything is in MLflow' if complete else 'not everything could be sent'}.")
        failed += not complete
    return int(failed > 0)


def main() -> int:
    """Run ``python -m mkdt.jobs.mlflow_sync FOLDER``, as Snakemake starts it."""
    _log_to(sys.stderr, "%(asctime)s %(message)s")
    try:
        return 0 if follow(Path(sys.argv[1])) else 3
    except Exception:
        log.exception("a bug:")
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Record a run for MLflow as JSON lines in a file of its own, a spool. ``mkdt.jobs.mlflow_sync`` sends the spools.

Jobs never import MLflow. Tracking is neither input nor parameter of any rule, and no failure of it fails a job.
docs/tracking.md describes the format.
"""

import csv
import fcntl
import io
import json
import logging
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mkdt.jobs.system_metrics import Sampler

log = logging.getLogger("mkdt")

FLUSH_SECONDS = 1.0  # a value is in the spool this long after it was reported
SAMPLE_SECONDS = 10.0  # between two system metrics, as in MLflow
# A job that resumes continues its earlier run, so a run without values waits this long for `begin`.
GRACE_SECONDS = 30.0
KEPT_RECORDS = 100_000  # held in memory while the spool cannot be written: some 30 MB
STORE = "store.json"  # in the folder of spools: where to send them


def spools(results: Path, experiment: str) -> Path:
    """Return the folder of an experiment's spools."""
    return results / ".tracking" / experiment


def code_version() -> str:
    """Return the git commit of this checkout, with ``+`` if files differ from it; ``unknown`` outside git."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.returncode else "")


class Run:
    """The record of one run. All methods return at once; a thread writes.

    Attributes:
        id: name of the spool; empty if nothing is recorded.
    """

    def __init__(
        self, folder: Path | None, output: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        """Start recording.

        Args:
            folder: of the spools; None records nothing.
            output: what the run makes; begins the name of the spool.
            name, tags, params: as MLflow shows them.
        """
        self.id = ""
        if folder is None:
            return
        self.id = f"{output}-{time.time_ns():016x}-{secrets.token_hex(2)}"
        self._folder, self._name, self._params = folder, name, {key: str(value) for key, value in params.items()}
        self._born, self._started = time.monotonic(), _now()
        self._guard = threading.Lock()
        self._lost = False  # whether records were dropped
        self._records: list[dict[str, Any]] = [{"type": "tags", "tags": {"code": code_version(), **tags}}]
        self._unwritten = b""
        self._seen: set[tuple[str, int]] = set()  # names and steps of recorded values
        self._last: dict[str, tuple[int, float]] = {}  # step and value that were recorded last, by name
        self._samples = 0
        self._spool: int | None = None
        self._complained = False
        self._status = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def begin(self, earlier: str | None = None) -> None:
        """Create the spool.

        Args:
            earlier: id of an interrupted run to continue in its spool. Values that it has recorded are not recorded
                again, so that its curves have neither gaps nor duplicates.
        """
        if not self.id or self._spool is not None:
            return
        try:
            with self._guard:
                if self._spool is not None:  # the thread was faster
                    return
                if earlier is None or not self._continue(earlier):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._open(self._folder / f"{self.id}.jsonl")
                header = {"type": "run", "time": self._started, "name": self._name, "params": self._params}
                self._records.insert(0, header)
        except OSError as error:
            self._complain(error)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step, each at most once."""
        if not self.id:
            return
        self.begin()
        fresh = {key: float(value) for key, value in values.items() if (key, step) not in self._seen}
        if fresh:
            self._seen.update((key, step) for key in fresh)
            self._last.update((key, (step, value)) for key, value in fresh.items())
            self._add({"type": "metrics", "time": _now(), "step": step, "values": fresh})

    def conclude(self, values: Mapping[str, float]) -> None:
        """Record what the run ends with. Of a run that goes on only what changed is recorded, at a later step: MLflow shows the last."""
        if not self.id:
            return
        self.begin()
        fresh = {key: value for key, value in values.items() if self._last.get(key, (0, None))[1] != value}
        self.metrics(1 + max((self._last[key][0] for key in fresh if key in self._last), default=-1), fresh)

    def picture(self, step: int, key: str, picture: Any) -> None:
        """Record a picture, uint8 tensor [C,H,W], at a step."""
        if self.id and (f"picture {key}", step) not in self._seen:
            self._seen.add((f"picture {key}", step))
            self._add({"type": "picture", "time": _now(), "step": step, "key": key, "pixels": picture})

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._add({"type": "tags", "tags": {key: value}})

    def dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Record a data set that the run reads: digest (hex) of its content, path, purpose and shapes."""
        record = {"name": name, "digest": digest, "source": source, "context": context, "profile": dict(profile)}
        self._add({"type": "dataset", **record})

    def describe_experiment(self, note: str) -> None:
        """Give the run's experiment a description, Markdown, if it has none."""
        self._add({"type": "experiment", "note": note})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Attach rows with equal keys as a table, the file ``name``.csv."""
        text = io.StringIO()
        table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        self._attach(f"{name}.csv", "", lambda copy: copy.write_text(text.getvalue(), encoding="utf-8"))

    def file(self, path: Path, folder: str = "") -> None:
        """Attach a copy of a small file, in a folder of the run's artifacts."""
        self._attach(path.name, folder, lambda copy: shutil.copyfile(path, copy))

    def _attach(self, name: str, folder: str, write: Callable[[Path], object]) -> None:
        if not self.id:
            return
        self.begin()
        copy = self._folder / self.id / "files" / name
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write(copy)
        except OSError as error:
            self._complain(error)
            return
        self._add({"type": "file", "file": str(copy.relative_to(self._folder)), "folder": folder})

    def close(self, status: str) -> None:
        """Write what is left and end the run as FINISHED, FAILED or KILLED."""
        if not self.id:
            return
        self.begin()
        self._status = status
        self._closing.set()
        self._thread.join()
        if self._spool is not None:
            os.close(self._spool)
        self.id = ""

    def _add(self, record: dict[str, Any]) -> None:
        if not self.id:
            return
        with self._guard:
            if len(self._records) < KEPT_RECORDS:
                self._records.append(record)
            elif not self._lost:
                self._lost = True
                log.warning("tracking: too much waits for room on the disk; from here on curves have gaps.")

    def _open(self, path: Path) -> None:
        """Open and lock the spool. The syncer takes a run whose spool is not locked for killed."""
        spool = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(spool)
            raise
        except OSError:
            pass  # a file system without locks: the run is shown as killed until it ends
        self._spool = spool

    def _continue(self, earlier: str) -> bool:
        """Open the spool of an interrupted run; return False if it is gone or still being written."""
        path = self._folder / f"{earlier}.jsonl"
        if not path.is_file():
            return False
        try:
            self._open(path)
        except BlockingIOError:
            return False
        assert self._spool is not None
        text = path.read_bytes()
        os.ftruncate(self._spool, text.rfind(b"\n") + 1)  # SIGKILL may have cut the last line
        self.id = earlier
        for record in parse(text):
            if record["type"] == "metrics":
                self._seen.update((key, record["step"]) for key in record["values"])
                self._last.update((key, (record["step"], value)) for key, value in record["values"].items())
            elif record["type"] == "picture":
                self._seen.add((f"picture {record['key']}", record["step"]))
        self._samples = 1 + max((step for key, step in self._seen if key.startswith("system/")), default=-1)
        return True

    def _work(self) -> None:
        """Write records and sample system metrics until the run is closed."""
        sampler = Sampler()  # made here, since psutil measures between calls of one thread
        next_sample = self._born + SAMPLE_SECONDS
        while not self._closing.wait(FLUSH_SECONDS):
            now = time.monotonic()
            if now - self._born > GRACE_SECONDS:
                self.begin()
            if now > next_sample and self._spool is not None:
                self._sample(sampler)
                next_sample = now + SAMPLE_SECONDS
            self._write()
        self._sample(sampler)
        self._add({"type": "end", "time": _now(), "status": self._status})
        self._write()

    def _sample(self, sampler: Sampler) -> None:
        try:
            self.metrics(self._samples, {f"system/{key}": value for key, value in sampler().items()})
        except Exception as error:  # of a driver or of the system
            self._complain(error)
        self._samples += 1

    def _write(self) -> None:
        """Append the new records to the spool, unless a full disk has not yet taken the earlier ones."""
        if self._spool is None or not self._append():
            return
        with self._guard:
            records, self._records = self._records, []
        lines = []
        for record in records:
            try:
                if "pixels" in record:
                    record = self._write_picture(record)
                lines.append(json.dumps(record) + "\n")
            except Exception as error:  # no room for a picture, or a value that JSON does not have
                self._complain(error)
        self._unwritten = "".join(lines).encode()
        self._append()

    def _append(self) -> bool:
        """Write the unwritten bytes; a full disk may take a part of a line now and the rest later."""
        assert self._spool is not None
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._spool, self._unwritten) :]
        except OSError as error:
            self._complain(error)
        return not self._unwritten

    def _write_picture(self, record: dict[str, Any]) -> dict[str, Any]:
        from mkdt.artifacts import write_picture  # imports torch, which the Snakefile does not need

        pixels = record.pop("pixels")
        path = self._folder / self.id / "pictures" / f"{record['key']}-{record['step']}.png"
        write_picture(path, pixels)
        return {**record, "file": str(path.relative_to(self._folder))}

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("tracking: %s; the job goes on, and its values are also beside its output.", error)


def parse(text: bytes) -> list[dict[str, Any]]:
    """Return the records of whole lines, without damaged ones."""
    records = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "type" in record:
                records.append(record)
    return records


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000

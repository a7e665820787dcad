"""What runs write down for MLflow: JSON lines in a spool of their own, which ``mkdt.jobs.mlflow_sync`` sends. No MLflow here.

Tracking watches and never decides: it is neither input nor parameter of any rule, and no failure of it costs a job.
docs/tracking.md has the format.
"""

import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger("mkdt")

FLUSH_SECONDS = 1.0  # a value is in the spool this long after it was reported
SAMPLE_SECONDS = 10.0  # between two system metrics, as in MLflow
# A job that resumes goes on with its earlier run. So one without values waits this long for `begin` before it appears.
GRACE_SECONDS = 30.0
KEPT_RECORDS = 100_000  # what a job holds in memory while the spool cannot be written: some 30 MB
CLOSE_SECONDS = 60.0  # how long Snakemake waits for the last values to be sent
DESCRIPTION_CHARACTERS = 5000  # of summary tables; MLflow takes 8000
RUN_LINK = "{run}"
REPORT_LINK = "[The whole report]("
STORE = "store.json"  # in the folder of spools: where to send them


def spools(results: Path, experiment: str) -> Path:
    """The folder of an experiment's spools."""
    return results / ".tracking" / experiment


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


class Run:
    """One run's record. All methods return at once; a thread writes.

    Attributes:
        id: names the spool; empty where nothing is recorded.
    """

    def __init__(
        self, folder: Path | None, output: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        """Start recording.

        Args:
            folder: of the spools; None records nothing.
            output: what the run makes. A later run of the same output supersedes this one.
            name, tags, params: as MLflow shows them.
        """
        self.id = ""
        if folder is None:
            return
        self.id = f"{output}-{time.time_ns():016x}-{secrets.token_hex(2)}"
        self._folder, self._name, self._params = folder, name, {key: str(value) for key, value in params.items()}
        self._born, self._started = time.monotonic(), _now()
        self._guard = threading.Lock()
        self._records: list[dict[str, Any]] = [{"type": "tags", "tags": {"code": code_version(), **tags}}]
        self._unwritten = b""
        self._seen: set[tuple[str, int]] = set()
        self._samples = 0
        self._spool: int | None = None
        self._complained = self._lost = False
        self._status = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def begin(self, earlier: str | None = None) -> None:
        """Appear in the spool folder.

        Args:
            earlier: id of an interrupted run that this one goes on with. What that run has recorded already is not
                recorded again, so that its curves have neither gaps nor doubles.
        """
        if not self.id or self._spool is not None:
            return
        try:
            with self._guard:
                if self._spool is not None:  # the thread was faster
                    return
                if earlier is None or not self._adopt(earlier):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._open(self._folder / f"{self.id}.jsonl")
                header = {"type": "run", "time": self._started, "name": self._name, "params": self._params}
                self._records.insert(0, header)
        except OSError as error:
            self._complain(error)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step; a value of a step counts once."""
        if not self.id:
            return
        self.begin()
        fresh = {key: float(value) for key, value in values.items() if (key, step) not in self._seen}
        if fresh:
            self._seen.update((key, step) for key in fresh)
            self._add({"type": "metrics", "time": _now(), "step": step, "values": fresh})

    def picture(self, step: int, key: str, picture: Any) -> None:
        """Record a picture, uint8 tensor [C,H,W], at a step."""
        if self.id and (f"picture {key}", step) not in self._seen:
            self._seen.add((f"picture {key}", step))
            self._add({"type": "picture", "time": _now(), "step": step, "key": key, "pixels": picture})

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._add({"type": "tags", "tags": {key: value}})

    def describe(self, text: str) -> None:
        """Give the run a description, Markdown; ``RUN_LINK`` in it becomes the address of the run in the UI."""
        self._add({"type": "description", "text": text})

    def dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Name a data set that the run reads: digest (hex) of its content, path, what it is for, and its shapes."""
        record = {"name": name, "digest": digest, "source": source, "context": context, "profile": dict(profile)}
        self._add({"type": "dataset", **record})

    def file(self, path: Path, folder: str = "") -> None:
        """Attach a small file as it is now (a second name of it, where files are replaced and never overwritten)."""
        if not self.id:
            return
        self.begin()
        kept = self._folder / self.id / "files" / path.name
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:
                shutil.copyfile(path, kept)
        except OSError as error:
            self._complain(error)
            return
        self._add({"type": "file", "file": str(kept.relative_to(self._folder)), "folder": folder})

    def close(self, status: str) -> None:
        """Write what is left and end the run as FINISHED, FAILED or KILLED."""
        if not self.id:
            return
        self.begin()
        self._status = status
        self._closing.set()
        self._thread.join()
        with self._guard:
            if self._spool is not None:
                os.close(self._spool)
                self._spool = None
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
        """Open the spool and lock it: whoever gets the lock knows that its writer is gone."""
        spool = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(spool)
            raise
        except OSError:
            pass  # a file system without locks: the run is taken for killed until it ends
        self._spool = spool

    def _adopt(self, earlier: str) -> bool:
        """Go on with the spool of an interrupted run; False where it is gone or still written to."""
        path = self._folder / f"{earlier}.jsonl"
        if not path.is_file():
            return False
        try:
            self._open(path)
        except BlockingIOError:
            return False
        assert self._spool is not None
        text = path.read_bytes()
        os.ftruncate(self._spool, text.rfind(b"\n") + 1)  # a line that a SIGKILL tore
        self.id = earlier
        for record in parse(text):
            if record["type"] == "metrics":
                self._seen.update((key, record["step"]) for key in record["values"])
            elif record["type"] == "picture":
                self._seen.add((f"picture {record['key']}", record["step"]))
        self._samples = 1 + max((step for key, step in self._seen if key.startswith("system/")), default=-1)
        return True

    def _work(self) -> None:
        sampler = Sampler()  # here, since psutil measures from call to call of one thread
        next_sample = self._born + SAMPLE_SECONDS

        def sample() -> None:
            try:
                self.metrics(self._samples, {f"system/{key}": value for key, value in sampler().items()})
            except Exception as error:  # of a driver, or of the system
                self._complain(error)
            self._samples += 1

        while not self._closing.wait(FLUSH_SECONDS):
            now = time.monotonic()
            if now - self._born > GRACE_SECONDS:
                self.begin()
            if now > next_sample and self._spool is not None:
                sample()
                next_sample = now + SAMPLE_SECONDS
            self._write()
        sample()
        self._add({"type": "end", "time": _now(), "status": self._status})
        self._write()

    def _write(self) -> None:
        """Serialise what was added and append it; what a full disk does not take is kept for the next time."""
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
        """Write what is unwritten, piece by piece: a full disk may take a part of a line, and later the rest."""
        assert self._spool is not None
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._spool, self._unwritten) :]
        except OSError as error:
            self._complain(error)
        return not self._unwritten

    def _write_picture(self, record: dict[str, Any]) -> dict[str, Any]:
        from mkdt.artifacts import write_picture  # brings torch, which the workflow itself does without

        pixels = record.pop("pixels")
        path = self._folder / self.id / "pictures" / f"{record['key']}-{record['step']}.png"
        write_picture(path, pixels)
        return {**record, "file": str(path.relative_to(self._folder))}

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("tracking: %s; the job goes on, its values are also beside the artifact.", error)


def parse(text: bytes) -> list[dict[str, Any]]:
    """The records of whole lines; what a crash tore is left out."""
    records = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "type" in record:
                records.append(record)
    return records


class Sampler:
    """System metrics, named as MLflow names them; ``process`` ones are this process's."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        psutil.cpu_percent()
        self._process.cpu_percent()

    def __call__(self) -> dict[str, float]:
        """CPU in per cent since the last call, memory in MB (1e6 bytes) and per cent, GPU where torch uses one."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_initialized():
            device = cuda.current_device()
            free, total = cuda.mem_get_info(device)
            values[f"gpu_{device}_memory_usage_megabytes"] = (total - free) / 1e6
            values[f"gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
            with suppress(Exception):  # a driver without these counters
                values[f"gpu_{device}_utilization_percentage"] = cuda.utilization(device)
                values[f"gpu_{device}_power_usage_watts"] = cuda.power_draw(device) / 1000
        return {key: round(value, 1) for key, value in values.items()}


class Tracker:
    """Tracking as Snakemake's main process sees it: the parent run and the syncer beside it."""

    def __init__(self, config: Mapping[str, Any], results: Path) -> None:
        self._experiment: str = config["experiment"]
        self._enabled, self._uri = config["tracking"]["enabled"], config["tracking"]["uri"]
        self._folder = spools(results, self._experiment)
        self._report = results / self._experiment / "report"
        self._run = Run(None, "", "", {}, {})
        self._syncer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Before the first job: the parent run, and the process that sends what runs record."""
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
            self._syncer = self._start_syncer()
        except OSError as error:
            log.warning("tracking: %s; jobs run without it.", error)

    def end(self, succeeded: bool) -> None:
        """After the last job: end the parent run, with the report after success, and wait a while for the syncer."""
        if self._syncer is None:
            return
        if succeeded and self._report.is_dir():
            for path in sorted(self._report.iterdir()):
                self._run.file(path, "report")
            self._run.describe(self._description())
        self._run.close("FINISHED" if succeeded else "FAILED")
        if self._syncer.poll() is not None:  # somebody killed it
            self._syncer = self._start_syncer()
        assert self._syncer.stdin is not None
        self._syncer.stdin.close()
        try:
            complete = self._syncer.wait(CLOSE_SECONDS) == 0
        except subprocess.TimeoutExpired:
            print(f"tracking: MLflow is slow, process {self._syncer.pid} sends the rest.", file=sys.stderr)
            return
        if not complete:
            print(
                f"tracking: not everything reached MLflow (why: {self._folder / 'sync.log'}); it is kept, and "
                f"`mkdt track sync --experiment {self._experiment}` sends it.",
                file=sys.stderr,
            )

    def _description(self) -> str:
        """The summary's tables, as many as fit, below a link to the whole report."""
        text = f"{REPORT_LINK}{RUN_LINK}/artifacts/report/index.html)\n"
        with suppress(OSError):
            tables = re.split(r"\n{2,}(?=\S[^|\n]*\n\n\|)", (self._report / "summary.md").read_text(encoding="utf-8"))
            for number, table in enumerate(tables):
                if len(text) + len(table) > DESCRIPTION_CHARACTERS:
                    text += f"\n{len(tables) - number} more tables are in the report.\n"
                    break
                text += f"\n{table.strip()}\n"
        return text

    def _start_syncer(self) -> subprocess.Popen[bytes]:
        """Its standard input ends when this process does, however that happens: then it sends the rest and ends too."""
        with open(os.open(self._folder / "sync.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "mkdt.jobs.mlflow_sync", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for Snakemake
            )


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000

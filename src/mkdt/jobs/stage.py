"""Run a stage: log, progress, device, threads, provenance, resume points, tracking and a clean stop.

A script is ``with job.stage(snakemake, NAME) as stage:`` around: open the inputs, resume, call the science, save.
"""

import hashlib
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mkdt import artifacts
from mkdt.config.budgets import budget_words
from mkdt.config.result_folders import RESULTS
from mkdt.config.schema import flat
from mkdt.config.stages import STAGES
from mkdt.data.pixels import image_grid
from mkdt.errors import UserError
from mkdt.jobs.code_digest import forget, stage_code
from mkdt.jobs.gpu_locks import own_gpus
from mkdt.jobs.provenance import Provenance
from mkdt.jobs.resume import ResumeFolder, bytes_in_use, content_digest
from mkdt.jobs.tracking import Run, spools
from mkdt.jobs.unchanged_run import begun_code
from mkdt.networks.precision import available, compute_in, current

log = logging.getLogger("mkdt")

LOG_SECONDS = 30.0  # between two lines of progress in the log
TRACKED = {".png", ".csv", ".jsonl", ".md", ".html"}  # outputs that are shown in MLflow


class _Finished(Exception):
    """An earlier job made all outputs of this one."""


class StageJob:
    """One running job. Scripts use its methods; the science only ever sees ``report`` and ``checkpoint``.

    Attributes:
        name: of the stage.
        input, output, wildcards: Snakemake's.
        settings: the slice of the config that the rule was given.
        seed: root of the random streams.
        device: where to compute.
        title: which job this is, for people.
        provenance: opens inputs and writes outputs.
    """

    def __init__(self, job: Any, name: str) -> None:
        """Take over what Snakemake gives to the script.

        Raises:
            UserError: the code changed since the run began, or a GPU is wanted that is not there.
        """
        self.name, self.input, self.output, self.wildcards = name, job.input, job.output, job.wildcards
        self.settings: dict[str, Any] = dict(job.params.settings)
        self.seed: int = self.settings["seed"]
        self.device = _device(job.config["compute"]["device"], job.resources.get("gpu", 0))
        self.title = _title(job, name)
        compute_in(available(job.config["compute"]["precision"], self.device))
        self._code = _unchanged_code(job, name)
        self._compute = job.config["compute"]
        self._outputs = [Path(path) for path in job.output]
        self._resume: ResumeFolder | None = None
        self._alone = False  # whether the resume folder belongs to this job's outputs only
        self._rows: list[dict[str, Any]] = []
        self._saved = self._logged = self._offered = time.monotonic()
        self._between = 0.0  # the longest time between two checkpoints so far, in seconds
        self._stop: int | None = None
        self._bar: Any = None
        self._run = _record(job, name, self.title, self.settings)
        self.provenance = Provenance(name, job.config, self.settings, self._code, self._run)

    def check_room(self, megabytes: float) -> None:
        """Refuse to start where the disk has not the room that the job may need, before anything is computed.

        Args:
            megabytes: of its outputs and resume points; those that earlier jobs left are there already.

        Raises:
            UserError: says what is needed, what is free, and what to do.
        """
        needed, free = 1e6 * megabytes - bytes_in_use(self._outputs), shutil.disk_usage(RESULTS).free
        if needed > free:
            raise UserError(
                f"this job may write {needed / 1e9:.3g} GB (outputs and resume points), but the disk of "
                f"{RESULTS.resolve()} has {free / 1e9:.3g} GB free: free space (mkdt clean says what can go) or let "
                f"{RESULTS} be a link to a larger disk, and give the same command again."
            )

    # -- inputs and outputs

    def open(self, role: str, path: str | Path, artifact: str | None = None) -> artifacts.Artifact:
        """Open an input, as ``Provenance.open`` does."""
        return self.provenance.open(role, path, artifact)

    def open_all(self, role: str, paths: Sequence[str], artifact: str) -> list[artifacts.Artifact]:
        """Open several inputs under one role, as ``Provenance.open_all`` does."""
        return self.provenance.open_all(role, paths, artifact)

    def save(
        self, path: str | Path, tensors: Mapping[str, torch.Tensor], rows: Sequence[str] = (), **more: Any
    ) -> None:
        """Write an output, as ``Provenance.save`` does."""
        self.provenance.save(path, tensors, rows, **more)

    def write_metrics(self, path: str | Path, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write every reported value as JSON lines; stages whose members may come from earlier jobs give the rows."""
        rows = self._rows if rows is None else rows
        artifacts.write_jsonl(path, rows)
        self._replay(rows)

    def _replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record what this run has not: values that an earlier job reported, so that curves have no gaps."""
        for row in rows:
            self._run.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})

    # -- what the science is given

    def expect(self, total: int, unit: str, done: int = 0) -> None:
        """Announce how many reports will come, for the progress bar and the estimate of what is left."""
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, desc=self.title, disable=hidden, leave=False)
        self._total, self._first, self._begun = total, done, time.monotonic()
        self._done = done

    def report(self, step: int, values: Mapping[str, float], pictures: torch.Tensor | None = None) -> None:
        """Take values (and pictures, uint8 [n,C,H,W]) at a step: to the metrics file, MLflow, bar and log."""
        self._rows.append({"step": step, **values})
        self._run.metrics(step, values)
        if pictures is not None:
            self.show(step, pictures)
        if self._bar is None:
            return
        self._done += 1
        self._bar.update()
        if time.monotonic() - self._logged > LOG_SECONDS or self._done == self._total:
            self._logged = time.monotonic()
            left = (self._logged - self._begun) / (self._done - self._first) * (self._total - self._done)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info("%d of %d, about %.0f s left: %s", self._done, self._total, left, shown)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows as a table, ``{name}.csv``, in MLflow."""
        self._run.table(name, rows)

    def show(self, step: int, pictures: torch.Tensor) -> None:
        """Show pictures, uint8 [n,C,H,W], at a step in MLflow, side by side."""
        self._run.picture(step, "synthetic", image_grid(pictures))

    def checkpoint(self, make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        """Save the resume state if it is time, or if the job was asked to stop; then stop.

        Raises:
            SystemExit: the job was asked to stop and its state is saved.
        """
        stop = self._stop  # read once: a signal that comes after this line must not stop what was not saved
        offered = time.monotonic()
        self._between, self._offered = max(self._between, offered - self._offered), offered
        if now or stop is not None or offered - self._saved >= 60 * self._compute["resume_minutes"]:
            assert self._resume is not None, "resume() comes before the first checkpoint"
            self._resume.save({"state": make(), "rows": self._rows, "run": self._run.id})
            self._saved = self._offered = time.monotonic()
            stop = self._stop
        if stop is not None:
            log.info("stopped by %s; the next run goes on from here.", signal.Signals(stop).name)
            raise SystemExit(128 + stop)

    # -- resume

    def resume(
        self, shared: str | Path | None = None, processes: int = 1, take_over: bool = True
    ) -> dict[str, Any] | None:
        """Lock the resume folder of these settings and inputs, and return the state that an earlier job left there.

        If an earlier job with the same key made all outputs, take them over and end the stage here. That happens after
        Snakemake was killed: its jobs run to their end without it.

        Args:
            shared: folder name, relative to the results, for jobs that share finished members (experts);
                default: one folder a first output.
            processes: how many share the work.
            take_over: whether outputs that an earlier job made may be taken; not where files from outside decide them.
        """
        # Threads, processes, device and torch decide the last bits: a state made with others cannot end with the same.
        machine = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "precision": current(),
            "processes": processes,
        }
        key = {
            "settings": self.settings,
            "code": self._code,
            "inputs": self.provenance.identities,
            "machine": machine,
        }
        place = Path(shared) if shared else self._outputs[0].relative_to(RESULTS)
        self._resume = ResumeFolder(place, self._outputs[0], key)
        self._alone = take_over and shared is None
        if self._alone and self._take_over():
            raise _Finished
        saved = self._resume.load()
        self._offered = time.monotonic()
        self._run.begin(saved.get("run") if saved else None)
        if saved is None:
            return None
        self._rows = saved["rows"]
        self._replay(self._rows)
        state: dict[str, Any] = saved["state"]
        return state

    @property
    def scratch(self) -> Path:
        """A folder for what is too large for the resume state; it stays until the job is done."""
        assert self._resume is not None, "resume() makes the folder"
        return self._resume.scratch

    def restore(self, path: str | Path) -> bool:
        """Take a finished member from the resume folder; return False where it is not there or damaged."""
        assert self._resume is not None, "resume() makes the folder"
        artifact = self._resume.restore(Path(path), STAGES[self.name].artifact)
        if artifact is not None:
            self._run.tag(f"output.{Path(path).name}", artifact.identity)
        return artifact is not None

    def keep(self, path: str | Path) -> None:
        """Keep a finished member in the resume folder."""
        assert self._resume is not None, "resume() makes the folder"
        self._resume.keep(Path(path))

    def _take_over(self) -> bool:
        """Take all outputs from the resume folder; return False where one is not there or damaged."""
        assert self._resume is not None
        if not self._resume.holds_all(self._outputs):
            return False
        tensors = [path for path in self._outputs if path.suffix == ".safetensors"]
        if not all(self.restore(path) for path in tensors):
            return False
        for path in self._outputs:
            if path not in tensors:
                self._resume.link_back(path)
        return True

    # -- life

    def ask_to_stop(self, signum: int) -> None:
        """Stop at the next checkpoint; at once where there has been no resume point yet, or never will be.

        Raises:
            SystemExit: the job has no resume folder yet.
        """
        if self._resume is None:
            raise SystemExit(128 + signum)
        first, self._stop = self._stop is None, signum
        if first:  # signals come in pairs, from the terminal and from Snakemake
            left = self._offered + self._between - time.monotonic()
            when = f", in about {max(1.0, left):.0f} s," if self._between else ""
            text = f"{signal.Signals(signum).name} was heard: this job saves its state at its next checkpoint{when} and stops."
            # Nobody may read any more, and this may have interrupted a writer: the state matters more than the answer.
            with suppress(OSError, RuntimeError, ValueError):
                log.info("%s", text)
                if not sys.stderr.isatty():  # a terminal shows the log
                    print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def finish(self, status: str) -> None:
        """Close the run with a status (FINISHED, FAILED or KILLED); of a finished job keep the outputs."""
        if self._bar is not None:
            self._bar.close()
        done = status == "FINISHED"
        self._tag_files(done)
        self._run.close(status)
        if self._resume is None:
            return
        if done and self._alone:
            self._resume.keep_all(self._outputs)
        if done:
            self._resume.clear()
        self._resume.release()

    def _tag_files(self, done: bool) -> None:
        """Tag the run with the digests of outputs that are no tensor files, and of inputs that were read without ``open``."""
        for path in self._outputs if done else ():
            if path.suffix in TRACKED:
                self._run.file(path)
                self._run.tag(f"output.{path.name}", content_digest(path))
        for path in map(Path, self.input):
            if str(path) not in self.provenance.opened and path.suffix in {".csv", ".jsonl", ".safetensors"}:
                with suppress(UserError, OSError):  # a file of somebody else's
                    self._run.tag(f"input.{path}", content_digest(path))


def _unchanged_code(job: Any, name: str) -> str:
    """Return the digest of the stage's code.

    Raises:
        UserError: it is not the one that the run began with.
    """
    names = dict(job.wildcards.items())
    code: str = begun_code(job.config, name, names, job.params.code)
    forget()  # what was read before the job began
    try:
        unchanged = stage_code(STAGES[name], job.config, names) == code
    except (KeyError, OSError, SyntaxError):  # a file that is gone, or being written
        unchanged = False
    if not unchanged:
        raise UserError("the code changed while this run was going on: give the same command again.")
    return code


def _title(job: Any, name: str) -> str:
    """Return a readable name of the job: stage, experts, data set or method, seeds."""
    known = {key: str(value) for key, value in job.wildcards.items()}
    known |= {key: budget_words(known[key]) for key in ("budget",) if key in known}
    batch = [Path(path).stem for path in getattr(job.output, "experts", ())]
    numbers = ["–".join(str(int(number)) for number in dict.fromkeys((batch[0], batch[-1])))] if batch else []
    first = [known[key] for key in ("dataset", "method", "student", "budget") if key in known]
    last = [f"{key.removeprefix('distill_')} {known[key]}" for key in ("distill_seed", "seed") if key in known]
    return " · ".join([name, *numbers, *first, *last])


def _record(job: Any, name: str, title: str, settings: Mapping[str, Any]) -> Run:
    """Return this job's run: a readable name, tags to filter by, the settings as parameters."""
    config, known = job.config, {key: str(value) for key, value in job.wildcards.items()}
    tags = {"stage": name, "source": config["source"], "seed": str(settings["seed"]), **known}
    if "SLURM_JOB_ID" in os.environ:
        tags["slurm_job"] = os.environ["SLURM_JOB_ID"]
    return Run(
        spools(RESULTS, config["experiment"]) if config["tracking"]["enabled"] else None,
        f"{name}-{hashlib.sha256(str(job.output[0]).encode()).hexdigest()[:10]}",
        title,
        tags,
        dict(flat(settings)),
    )


@contextmanager
def stage(job: Any, name: str) -> Iterator[StageJob]:
    """Run a stage. A ``UserError`` becomes one sentence and exit code 1; SIGTERM and SIGINT stop at the next checkpoint.

    Args:
        job: Snakemake's object in a script.
        name: of the stage, in ``STAGES``.
    """
    _set_up_log(job.log[0])
    # scikit-learn takes few labels of many classes for a mistake; here they are what is studied.
    warnings.filterwarnings("ignore", "The number of unique classes is greater than 50% of the number of samples")
    running: StageJob | None = None
    held = ExitStack()  # the job's GPUs, until all is written: this process uses their memory until it ends

    def stop(signum: int, frame: Any) -> None:
        if running is None:
            raise SystemExit(128 + signum)
        running.ask_to_stop(signum)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    status = "FAILED"
    gpus, jobs_per_gpu = job.resources.get("gpu", 0), job.config["compute"]["jobs_per_gpu"]
    try:
        own = held.enter_context(own_gpus(gpus, jobs_per_gpu))
        with threadpool_limits(job.threads):
            _set_up_torch(job.threads)
            running = StageJob(job, name)
            where = f"{running.device} ({', '.join(own)})" if own else str(running.device)
            log.info("%s on %s, %s, %d thread(s)", running.title, where, current(), job.threads)
            if running.device.type == "cpu" and os.getenv("CUDA_VISIBLE_DEVICES"):
                log.warning("this job was given a GPU, but torch sees none.")
            running.check_room(job.resources.get("disk_mb", 0))
            with suppress(_Finished):
                yield running
        status = "FINISHED"
    except UserError as error:
        log.error("%s", error)
        print(f"{job.rule}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit:
        status = "KILLED"
        raise
    except BaseException:
        log.exception("a bug:")
        raise
    finally:
        # Signals come in pairs (from the terminal and from Snakemake): a second one must not cut the closing short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if running is not None:
            running.finish(status)
        held.close()


def _set_up_log(file: str) -> None:
    handlers: list[logging.Handler] = [logging.FileHandler(file, mode="w", encoding="utf-8")]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers, log.propagate = handlers, False
    log.setLevel(logging.INFO)


def _set_up_torch(threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _device(wanted: str, gpus: int) -> torch.device:
    """Return the device of ``compute.device``, in a job that asked for so many GPUs.

    Raises:
        UserError: ``cuda`` is asked for and not there.
    """
    if wanted == "cuda" and not gpus:  # on a cluster such a job may run where there is none
        wanted = "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but torch sees no GPU here: set it to auto or cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

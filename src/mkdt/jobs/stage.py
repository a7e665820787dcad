"""What every stage shares: log, progress, device, threads, provenance, resume, tracking and a clean stop.

A script is ``with job.stage(snakemake) as stage:`` around: open the inputs, resume, call the science, save.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mkdt import artifacts
from mkdt.config.loading import KEPT, RESULTS, budget_words, differences, settings
from mkdt.config.methods import SET_RULES
from mkdt.config.schema import flat
from mkdt.data.pixels import image_grid
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.errors import UserError
from mkdt.jobs.tracking import Run, spools

log = logging.getLogger("mkdt")

LOG_SECONDS = 30.0  # between two lines of progress in the log
IDENTITIES = 250  # in one tag, each cut to 16 digits: MLflow takes 8000 characters


class _Finished(Exception):
    """An earlier job made all outputs of this one."""


class Stage:
    """One running job. Scripts use its methods; the science only ever sees ``report`` and ``checkpoint``.

    Attributes:
        input, output, wildcards: Snakemake's.
        settings: the slice of the config that the rule was given.
        seed: root of the random streams.
        device: where to compute.
        title: which job this is, for people.
    """

    def __init__(self, job: Any) -> None:
        self.input, self.output, self.wildcards, self.rule = job.input, job.output, job.wildcards, job.rule
        self.settings: dict[str, Any] = dict(job.params.settings)
        self.seed: int = self.settings["seed"]
        self.data, self._config = job.config["data"], job.config
        self.device = _device(job.config["compute"]["device"], job.resources.get("gpu", 0))
        self._code: str = job.params.code
        self._results = RESULTS
        self._tf32: bool = job.config["compute"]["tf32"]
        self._every = 60 * job.config["compute"]["resume_minutes"]
        self._identities: dict[str, str] = {}
        self._read: set[str] = set()
        self._folder: Path | None = None
        self._state_file: Path | None = None
        self._alone = False  # whether the resume folder belongs to this job's outputs only
        self._lock: FileLock | None = None
        self._rows: list[dict[str, Any]] = []
        self._saved = self._logged = time.monotonic()
        self._stop: int | None = None
        self._bar: Any = None
        self.name = self.rule.split("_")[0]  # experts_0_4 is a job of the stage experts
        self._run = self._record(job)

    def _record(self, job: Any) -> Run:
        """This job's run: a readable name, tags to filter by, the settings as parameters."""
        config, known = job.config, {key: str(value) for key, value in job.wildcards.items()}
        batch = self.rule.split("_")[1:]
        shown = known | {key: budget_words(known[key]) for key in ("budget",) if key in known}
        first = [shown[key] for key in ("dataset", "method", "student", "budget") if key in shown]
        last = [f"{key.removeprefix('distill_')} {known[key]}" for key in ("distill_seed", "seed") if key in known]
        self.title = " · ".join([self.name, *filter(None, ["–".join(batch)]), *first, *last])
        tags = {"stage": self.name, "source": config["source"], "seed": str(self.seed), **known}
        if "SLURM_JOB_ID" in os.environ:
            tags["slurm_job"] = os.environ["SLURM_JOB_ID"]
        return Run(
            spools(self._results, config["experiment"]) if config["tracking"]["enabled"] else None,
            f"{self.name}-{hashlib.sha256(str(self.output[0]).encode()).hexdigest()[:10]}",
            self.title,
            tags,
            dict(flat(self.settings)),
        )

    def check_room(self, megabytes: float) -> None:
        """Refuse to start where the disk has not the room that the job may need, before anything is computed.

        Args:
            megabytes: of its outputs and resume points; those that earlier jobs left are there already.

        Raises:
            UserError: says what is needed, what is free, and what to do.
        """
        first = Path(self.output[0])
        names = {*(Path(path).name for path in self.output), f"{first.stem}.state.pt"}
        there = [0]
        for place in (first, first.parent):  # as `resume` names the folder, of one job or of several that share members
            for folder in (self._results / ".resume" / place.relative_to(self._results)).glob("*/"):
                files = [file for file in folder.glob("*") if file.name in names] + [*folder.glob("scratch/*")]
                there.append(sum(file.stat().st_size for file in files))
        needed, free = 1e6 * megabytes - max(there), shutil.disk_usage(self._results).free
        if needed > free:
            raise UserError(
                f"this job may write {needed / 1e9:.3g} GB (outputs and resume points), but the disk of "
                f"{self._results.resolve()} has {free / 1e9:.3g} GB free: free space (mkdt clean says what can go) or let "
                f"{self._results} be a link to a larger disk, and give the same command again."
            )

    # -- inputs and outputs

    def open(self, role: str, path: str | Path, stage: str | None = None) -> artifacts.Artifact:
        """Open an input artifact and remember its identity, for provenance and for the resume state.

        Raises:
            UserError: it is damaged or of another stage, or it lacks images where ``data.on_error`` wants all.
        """
        artifact = self._artifact(path, stage)
        skipped = artifact.header.get("notes", {}).get("skipped", [])
        # No setting of the rule data: with it, every set would be decoded and used anew for one that has a bad file.
        if skipped and self.data["on_error"] == "fail":
            raise UserError(
                f"{path} was decoded without {len(skipped)} images that could not be read (the first is {skipped[0]}), and "
                "data.on_error is fail: set it to skip, or repair them and run with --forcerun data."
            )
        self.note_input(role, artifact.identity, path)
        images_of = {"data", *SET_RULES}
        if artifact.header["stage"] in images_of:  # images to train on or to score with
            name = Path(path).with_suffix("").as_posix().removeprefix(f"{self._results}/").removesuffix("/data")
            context = "evaluation" if self.name == "probe" else "training"
            shapes = {key: artifact.shape(key) for key in artifact.names}
            self._run.dataset(name, artifact.identity[:32], str(path), context, shapes)
        return artifact

    def _artifact(self, path: str | Path, stage: str | None) -> artifacts.Artifact:
        """Open an artifact. One that this run did not make was swapped, or copied there from elsewhere.

        Raises:
            UserError: it is damaged, of another stage, or of another run: made under another name of the results, by
                other settings, or from other data, teacher or targets than those that are there. Snakemake makes again
                whatever a change of the config or of a file touches, before it is read; so no file of this run differs.
        """
        artifact = artifacts.Artifact(path, stage)
        place, here = artifact.header.get("notes", {}).get("place"), self._place(path)
        again = f"delete it, and snakemake makes it again{artifacts.by_rule(artifact.header['stage'])}"
        if None not in (place, here) and place != here:
            raise UserError(
                f"{path} is a whole file, but was made as {self._results / place}: put it back, or {again}."
            )
        if stage is None or here is None or place is None:  # brought from outside
            return artifact
        now = json.loads(artifacts.canonical(settings(self._config, stage, **_names(stage, here))))
        then = {key: artifact.header["parameters"].get(key) for key in now}
        if then != now:
            raise UserError(
                f"{path} is a whole file, but of another run, with other settings ({differences(then, now)}): {again}."
            )
        for role, shared in self._shared.items():
            if artifact.header["inputs"].get(role, shared.identity) != shared.identity:
                raise UserError(
                    f"{path} is a whole file, but was made from another file of the rule '{role}' than {shared.path}: {again}."
                )
        return artifact

    @cached_property
    def _shared(self) -> dict[str, artifacts.Artifact]:
        """By role the artifacts that much is made from, those that are there."""
        source = self._results / self._config["source"]
        teacher = source / self._config["teacher"]["name"]
        files = {"data": source, "teacher": teacher, "targets": teacher}
        found = {role: folder / f"{role}.safetensors" for role, folder in files.items()}
        return {role: artifacts.Artifact(path, role) for role, path in found.items() if path.is_file()}

    def _place(self, path: str | Path) -> str | None:
        """A path below the results; None outside."""
        path = Path(path)
        return path.relative_to(self._results).as_posix() if path.is_relative_to(self._results) else None

    def open_all(self, role: str, paths: Sequence[str], stage: str) -> list[artifacts.Artifact]:
        """Open several artifacts under one role."""
        opened = [self._artifact(path, stage) for path in paths]
        self._read |= set(map(str, paths))
        self._identities[role] = artifacts.digest([artifact.identity for artifact in opened])
        for first in range(0, len(opened), IDENTITIES):
            part = [artifact.identity[:16] for artifact in opened[first : first + IDENTITIES]]
            self._run.tag(f"input.{role}{f'.{first}' if first else ''}", ",".join(part))
        return opened

    def note_input(self, role: str, identity: str, path: str | Path | None = None) -> None:
        """Remember the identity of an input; ``open`` does it, files from outside the project need it said."""
        self._read |= {str(path)} if path else set()
        self._identities[role] = identity
        self._run.tag(f"input.{role}", identity)

    def save(
        self,
        path: str | Path,
        tensors: Mapping[str, torch.Tensor],
        rows: Sequence[str] = (),
        found: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an output artifact with this job's provenance.

        ``found`` joins the parameters that the rule was given; ``notes`` say what a reader should know besides.
        """
        artifacts.save(
            path,
            tensors,
            stage=self.name,
            parameters=self.settings | dict(found or {}),
            code=self._code,
            inputs=self._identities,
            rows=rows,
            notes={"place": self._place(path)} | dict(notes or {}),
        )
        self._run.tag(f"output.{Path(path).name}", artifacts.Artifact(path).identity)

    def write_metrics(self, path: str | Path, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write every reported value as JSON lines; stages whose members may come from earlier jobs give the rows."""
        rows = self._rows if rows is None else rows
        artifacts.write_jsonl(path, rows)
        self._replay(rows)

    def _replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record what this run has not: values that an earlier job reported, so that curves have no gaps."""
        for row in rows:
            self._run.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})

    # -- what several rules do alike

    def distill(self, distiller: Callable[..., tuple[SyntheticSet, torch.Tensor]], *inputs: Any) -> None:
        """Distil the initial subset; write the set, its metrics, and a picture of how it came about.

        Args:
            distiller: called with the subset, ``inputs``, the student and the settings, and by name ``seed``, ``distill_seed``,
                ``device``, ``state``, ``report`` and ``checkpoint``; returns the set and its history, float32 [k,m',C,H,W].
            inputs: what else it sees; they are open before the subset, since all inputs decide the resume state.
        """
        initial = load_synthetic(self.open("initial", self.input.initial, "subset"))
        state = self.resume()
        self.show(0, initial.pixels())
        self.expect(self.settings["iterations"], "iteration", state.get("iteration", 0) if state else 0)
        synthetic, history = distiller(
            initial,
            *inputs,
            self.settings["student"],
            self.settings,
            seed=self.seed,
            distill_seed=int(self.wildcards.distill_seed),
            device=self.device,
            state=state,
            report=self.report,
            checkpoint=self.checkpoint,
        )
        self.write_metrics(self.output.metrics)
        pictures = torch.cat([synthetic.pixels(images) for images in history])
        artifacts.write_picture(
            self.output.evolution, image_grid(pictures, columns=history.shape[1], most=len(pictures))
        )
        self.save(self.output.set, synthetic.tensors())

    def train_experts(self, train: Callable[..., Mapping[str, torch.Tensor]]) -> None:
        """Write the experts of a job; those that an earlier one finished are taken over.

        Args:
            train: makes an expert's tensors; called with its number, ``state``, ``report`` and ``checkpoint``.
        """
        state = self.resume(shared=Path(self.output.experts[0]).parent.relative_to(self._results))
        missing = [path for path in self.output.experts if not self.restore(path)]
        self.expect(len(missing) * self.settings["epochs"], "epoch")
        for path in missing:
            expert = int(Path(path).stem)
            mine = state if state and state["expert"] == expert else None
            tensors = train(expert, state=mine, report=self.report, checkpoint=self.checkpoint)
            self.save(path, tensors, rows=["trajectory"])
            self.keep(path)
        rows = [
            {"step": epoch + 1, f"loss/{int(Path(path).stem)}": loss}
            for path in self.output.experts
            for epoch, loss in enumerate(artifacts.Artifact(path).tensor("epoch_losses").tolist())
        ]
        self.write_metrics(self.output.metrics, rows)

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

    def show(self, step: int, pictures: torch.Tensor) -> None:
        """Show pictures, uint8 [n,C,H,W], at a step in MLflow, side by side."""
        self._run.picture(step, "synthetic", image_grid(pictures))

    def checkpoint(self, make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        """Save the resume state if it is time, or if the job was asked to stop; then stop.

        Raises:
            SystemExit: the job was asked to stop and its state is saved.
        """
        stop = self._stop  # read once: a signal that comes after this line must not stop what was not saved
        if now or stop is not None or time.monotonic() - self._saved >= self._every:
            assert self._state_file is not None, "resume() comes before the first checkpoint"
            state = {"state": make(), "rows": self._rows, "run": self._run.id}
            state["digest"] = artifacts.state_digest(state)
            artifacts.write_atomically(self._state_file, lambda path: _save_state(state, path))
            self._saved = time.monotonic()
            stop = self._stop
        if stop is not None:
            log.info("stopped by %s; the next run goes on from here.", signal.Signals(stop).name)
            raise SystemExit(128 + stop)

    # -- resume

    def resume(
        self, shared: str | Path | None = None, processes: int = 1, take_over: bool = True
    ) -> dict[str, Any] | None:
        """Lock the resume folder of these settings and inputs, and return the state that an earlier job left there.

        Args:
            shared: folder name, relative to the results, for jobs that share finished members (experts);
                default: one folder a first output.
            processes: how many share the work.
            take_over: whether outputs that an earlier job made may be taken; not where files from outside decide them.

        The folder is keyed by a digest of settings, code and inputs. So a state with other settings is never
        taken; one line in the log names what differs. Where an earlier job with the same key made all outputs (a job
        of a Snakemake that was killed goes on without it), they are taken over and the stage ends here.
        """
        first = Path(self.output[0])
        place = self._results / ".resume" / (shared or first.relative_to(self._results))
        # Threads, processes, device and torch decide the last bits: a state made with others cannot end with the same.
        machine = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "tf32": self._tf32,
            "processes": processes,
        }
        settings = {"settings": self.settings, "code": self._code, "inputs": self._identities, "machine": machine}
        self._folder = place / artifacts.digest(settings)[:16]
        known = self._folder.is_dir()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / f"{first.name}.lock")
        try:
            self._lock.acquire(timeout=0.5)
        except TimeoutError:
            log.info("another job works on %s: waiting for it.", first)
            self._lock.acquire()  # SIGTERM ends the wait: before the first resume point it stops the job at once
        if not known:
            artifacts.write_text(self._folder / "settings.json", artifacts.canonical(settings))
            self._name_difference(place, settings)
        self._alone = take_over and shared is None
        if self._alone and self._take_over():
            raise _Finished
        state_file = self._state_file = self._folder / f"{first.stem}.state.pt"
        if not state_file.is_file():
            self._run.begin()
            return None
        try:
            saved = torch.load(state_file, map_location="cpu", weights_only=True)
            if saved.pop("digest") != artifacts.state_digest(saved):
                raise ValueError("its content does not match its digest")
        except Exception as error:
            state_file.rename(state_file.with_suffix(".damaged"))
            log.warning("the resume state %s is damaged (%s): set aside, starting anew.", state_file, error)
            self._run.begin()
            return None
        self._rows = saved["rows"]
        self._run.begin(saved.get("run"))
        self._replay(self._rows)
        log.info("resuming from %s.", state_file)
        state: dict[str, Any] = saved["state"]
        return state

    @property
    def scratch(self) -> Path:
        """A folder for what is too large for the resume state; it stays until the job is done."""
        assert self._folder is not None, "resume() makes the folder"
        folder = self._folder / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def restore(self, path: str | Path) -> bool:
        """Take a finished member from the resume folder; False where it is not there or damaged."""
        assert self._folder is not None
        kept = self._folder / Path(path).name
        if not kept.is_file():
            return False
        try:
            artifact = artifacts.Artifact(kept, self.name)
            for name in artifact.names:
                artifact.tensor(name)
        except UserError as error:
            log.warning("not reused: %s", error)
            kept.unlink()
            return False
        _link(kept, Path(path))
        self._run.tag(f"output.{Path(path).name}", artifact.identity)
        log.info("%s was finished before: taken from the resume folder.", path)
        return True

    def _take_over(self) -> bool:
        """Take all outputs from the resume folder; False where one is not there or damaged."""
        assert self._folder is not None
        files = [Path(path) for path in self.output]
        if not all((self._folder / file.name).is_file() for file in files):
            return False
        try:
            kept = json.loads((self._folder / KEPT).read_text(encoding="utf-8"))
            changed = [file.name for file in files if _content(self._folder / file.name) != kept[file.name]]
        except (OSError, ValueError, LookupError, TypeError, UserError) as error:
            log.warning("not reused, the record of what was kept is damaged or missing: %s.", error)
            return False
        if changed:
            log.warning("not reused, %s in %s was altered.", changed[0], self._folder)
            return False
        tensors = [file for file in files if file.suffix == ".safetensors"]
        if not all(self.restore(file) for file in tensors):
            return False
        for file in set(files) - set(tensors):
            _link(self._folder / file.name, file)
        return True

    def keep(self, path: str | Path) -> None:
        """Keep a finished member in the resume folder (a second name of the same file, no second copy)."""
        assert self._folder is not None
        _link(Path(path), self._folder / Path(path).name)

    def _name_difference(self, place: Path, settings: Mapping[str, Any]) -> None:
        assert self._folder is not None
        for other in sorted(place.glob("*/settings.json")):
            if other.parent == self._folder or not any(other.parent.glob("*state.pt")):
                continue
            old = json.loads(other.read_text(encoding="utf-8"))
            log.info("set aside: %s has other settings (%s).", other.parent, differences(old, settings))

    # -- life

    def _finish(self, status: str) -> None:
        if self._bar is not None:
            self._bar.close()
        if status == "FINISHED":
            for path in self.output:
                if Path(path).suffix in {".png", ".csv", ".jsonl", ".md", ".html"}:
                    self._run.file(Path(path))
                    self._run.tag(f"output.{Path(path).name}", _content(path))
        for path in self.input:  # read without `open`
            if str(path) not in self._read and Path(path).suffix in {".csv", ".jsonl", ".safetensors"}:
                with suppress(UserError, OSError):  # a file of somebody else's
                    self._run.tag(f"input.{path}", _content(path))
        self._run.close(status)
        if status == "FINISHED" and self._alone:
            files = [path for path in self.output if Path(path).is_file()]
            for path in files:
                self.keep(path)
            assert self._folder is not None
            record = {Path(path).name: _content(path) for path in files}
            artifacts.write_text(self._folder / KEPT, artifacts.canonical(record))
        if status == "FINISHED" and self._state_file is not None:
            self._state_file.unlink(missing_ok=True)
            shutil.rmtree(self._state_file.parent / "scratch", ignore_errors=True)
        if self._lock is not None:
            self._lock.release()


@contextmanager
def stage(job: Any) -> Iterator[Stage]:
    """Run a stage: ``job`` is Snakemake's object in a script.

    A ``UserError`` becomes one sentence and exit code 1; SIGTERM and SIGINT stop at the next checkpoint.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(job.log[0], mode="w", encoding="utf-8")]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers, log.propagate = handlers, False
    log.setLevel(logging.INFO)
    torch.set_num_threads(job.threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    # Convolutions take TF32 by default, products do not: one key decides for both.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = job.config["compute"]["tf32"]
    running: Stage | None = None

    def stop(signum: int, frame: Any) -> None:
        if (
            running is None or running._state_file is None
        ):  # before the first resume point, or a short stage without any
            raise SystemExit(128 + signum)
        running._stop = signum

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    status = "FAILED"
    try:
        running = Stage(job)
        with threadpool_limits(job.threads):
            log.info("%s on %s, %d thread(s)", running.title, running.device, job.threads)
            if running.device.type == "cpu" and os.getenv("CUDA_VISIBLE_DEVICES"):  # set by SLURM in a job with GPUs
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
            running._finish(status)


def _names(stage: str, path: str) -> dict[str, str]:
    """What a path below the results says that settings depend on (docs/artifacts.md)."""
    parts = Path(path).parts
    if stage == "data":
        return {"dataset": parts[0]}
    if stage == "subset":
        return {"method": parts[-3], "budget": parts[-2]}
    if stage == "own":
        return {"method": parts[-3]}
    if stage == "pretrain":
        return {"student": parts[-5], "method": parts[-4]}
    return {}


def _device(wanted: str, gpus: int) -> torch.device:
    """The device of ``compute.device``, in a job that asked for so many GPUs.

    Raises:
        UserError: ``cuda`` is asked for and not there.
    """
    if wanted == "cuda" and not gpus:  # on a cluster such a job may run where there is none
        wanted = "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but torch sees no GPU here: set it to auto or cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(str(error).split("\n")[0]) from error


def _content(path: str | Path) -> str:
    """Identity of an artifact, SHA-256 (hex) of any other file."""
    if Path(path).suffix == ".safetensors":
        return artifacts.Artifact(path).identity
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source``; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
